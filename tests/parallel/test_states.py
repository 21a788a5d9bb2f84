"""Linear attention over devices gives what one device gives: every kind of transition, derivatives, states, segments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import linear, parallel
from tests.parallel.test_attend import layout_of, quickly
from tests.tolerances import assert_close

LENGTH, HEADS, WIDTH = 32, 2, 4


def inputs(batch=2):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal((batch, LENGTH, *shape)))
    found = {
        "q": draw(2 * HEADS, WIDTH), "k": draw(HEADS, WIDTH), "v": draw(HEADS, 3),
        "log_decay": -jnp.abs(draw(HEADS)), "by_feature": -jnp.abs(draw(HEADS, WIDTH)),
        "beta": jax.nn.sigmoid(draw(HEADS)), "rate": jax.nn.sigmoid(draw(HEADS)), "log_write": draw(HEADS, WIDTH),
    }  # fmt: skip
    found["k"] /= jnp.linalg.norm(found["k"], axis=-1, keepdims=True)
    return found


MECHANISMS = {
    "no decay": lambda x, **run: linear.attend(x["q"], x["k"], x["v"], **run),
    "decay by token": lambda x, **run: linear.attend(x["q"], x["k"], x["v"], log_decay=x["log_decay"], **run),
    "decay by feature, exclusive": lambda x, **run: linear.attend(
        x["q"], x["k"], x["v"], log_decay=x["by_feature"], exclusive=True, **run
    ),
    "writes with scales, rows normalized": lambda x, **run: linear.attend(
        x["q"] ** 2, x["k"] ** 2, x["v"], log_decay=x["log_decay"], log_write=x["log_write"], normalize="row", **run
    ),
    "features normalized": lambda x, **run: linear.attend(
        x["q"], x["k"] ** 2 + 0.1, x["v"], log_decay=x["by_feature"], normalize="feature", **run
    ),
    "delta rule": lambda x, **run: linear.delta_rule(x["q"], x["k"], x["v"], x["beta"], x["by_feature"], **run),
    "momentum": lambda x, **run: linear.titans(x["q"], x["k"], x["v"], x["rate"], 0.5 * x["beta"], 0.1 * x["rate"], **run),
}  # fmt: skip


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "devices"), [*((name, 4) for name in MECHANISMS), ("decay by token", 2), ("delta rule", 8)]
)
def test_devices_pass_states_on(name, devices):
    """Outputs, last state and all gradients; segments that cross devices; a state to begin with; sequences that end."""
    rng = np.random.default_rng(1)
    ids = jnp.asarray([np.sort(rng.integers(0, 3, LENGTH)), np.arange(LENGTH) > 4], int)
    lengths = jnp.asarray([LENGTH, 11])  # the second ends within a device, and others have none of it
    over = parallel.state_passing(layout_of(devices))
    x = inputs()
    _, end = MECHANISMS[name](x, return_state=True)
    begin = [jnp.asarray(rng.standard_normal(s.shape)) for s in jax.tree.leaves(end)]

    def both(x, begin, ids, lengths):
        def loss(x, begin, **run):
            found = MECHANISMS[name](
                x, chunk_size=4, state=linear.State(*begin), return_state=True, segment_ids=ids, lengths=lengths, **run
            )
            return sum(jnp.sin(y).sum() for y in jax.tree.leaves(found)), jax.tree.leaves(found)

        gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
        return gradient(x, begin, over=over), gradient(x, begin)

    ((_, got), got_gradients), ((_, want), want_gradients) = quickly(both, x, begin, ids, lengths)
    jax.tree.map(assert_close, got, want)
    for a, b in zip(jax.tree.leaves(got_gradients), jax.tree.leaves(want_gradients), strict=True):
        if np.abs(b).max() > 0:
            assert_close(a, b, kind="derivative")
        else:
            np.testing.assert_array_equal(a, 0)


def test_named_mechanisms_take_it():
    x = jax.tree.map(lambda y: y.astype(jnp.float32), inputs())
    over = parallel.state_passing(layout_of(4))
    call = lambda x, **run: linear.retention(x["q"], x["k"], x["v"], **run)
    assert_close(quickly(lambda x: call(x, over=over), x), call(x))


def test_memory_of_a_device_falls_with_their_number():
    def bytes_on(devices: int) -> int:
        mesh = jax.make_mesh((devices,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
        layout = parallel.layout(mesh, {"sequence": "sequence"})
        over, place = parallel.state_passing(layout), layout.sharding("sequence", None, None)
        x = jax.ShapeDtypeStruct((32768, 2, 16), jnp.float32, sharding=place)
        loss = jax.grad(lambda q, k, v: (linear.attend(q, k, v, over=over) ** 2).sum(), (0, 1, 2))
        memory = jax.jit(loss, out_shardings=(place,) * 3).lower(x, x, x).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes

    few, many = bytes_on(2), bytes_on(8)
    print(f"{few:,} bytes on each of 2 devices, {many:,} on each of 8: {few / many:.2f} times")
    assert few / many > 3.4


@pytest.mark.usefixtures("without_run_time_types")
def test_what_is_refused():
    x = jnp.ones((2, 30, 2, 4))
    over = parallel.state_passing(layout_of(4))
    with pytest.raises(ValueError, match=r"sequence: got 30, want a multiple of the 4 devices"):
        linear.attend(x, x, x, over=over)
    with pytest.raises(NotImplementedError, match=r"causal=False is not supported"):
        linear.attend(x[:, :28], x[:, :28], x[:, :28], over=over, causal=False)
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match="want one mesh axis"):
        parallel.state_passing(parallel.layout(mesh, {"sequence": ("a", "b")}))
