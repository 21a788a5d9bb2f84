"""What splitting a sequence is for, and what it must not do: memory, balance, hops, independence of documents, errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import BlockSizes, attend, masks, normalizers, parallel
from attnjax.attention._attend import checked
from attnjax.parallel._attend import _arc
from pallas_kernels import Target, compile_for
from tests.parallel.test_attend import FORMS, layout_of, quickly
from tests.tolerances import assert_close


def on(devices: int) -> parallel.Layout:
    """That many devices, all of them along the sequence."""
    mesh = jax.make_mesh((devices,), ("sequence",), axis_types=(jax.sharding.AxisType.Auto,))
    return parallel.layout(mesh, {"sequence": "sequence"})


def loss_of(form: str, layout: parallel.Layout, **knobs):
    return lambda q, k, v: (FORMS[form](q, k, v, layout=layout, **knobs) ** 2).sum()


@pytest.mark.parametrize(("form", "bound"), [("ring", 1.15), ("all to all", 1.15)])
def test_memory_of_a_device_falls_with_their_number(form, bound):
    """Outputs and gradients: arguments, results and temporaries of 8 devices are an eighth of those of one."""
    length, heads = 4096, 8

    def bytes_on(devices: int) -> int:
        layout = on(devices)
        place = layout.sharding("sequence", None, None)
        x = jax.ShapeDtypeStruct((length, heads, 16), jnp.float32, sharding=place)
        knobs = {"mask": masks.causal(), "block_sizes": BlockSizes(64, 64)}
        found = jax.value_and_grad(loss_of(form, layout, **knobs), (0, 1, 2))
        compiled = jax.jit(found, out_shardings=(None, (place,) * 3)).lower(x, x, x).compile()
        memory = compiled.memory_analysis()
        return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes

    few, many = bytes_on(2), bytes_on(8)
    print(f"{few:,} bytes on each of 2 devices, {many:,} on each of 8: {few / many:.2f} times")
    assert few / many > 4 / bound


def test_a_ring_of_half_the_sequence_each_way_is_even():
    """Causal: every device visits as many tiles as the others, at every hop, if it holds an early and a late piece."""
    even = parallel.visited_tiles(masks.causal(), parallel.zigzag(8), 8192)
    assert even.shape == (8, 8)
    assert even.sum(1).tolist() == [260] * 8
    assert even.max(0).sum() == 260
    uneven = parallel.visited_tiles(masks.causal(), parallel.contiguous(8), 8192)
    assert (uneven.sum(1).min(), uneven.sum(1).max()) == (36, 484)
    assert uneven.sum() == even.sum() == 64 * 65 / 2


def test_useless_hops_are_left_out():
    """A window needs its own keys and its neighbor's: one hop, however many devices there are."""
    layout, x = on(8), jax.ShapeDtypeStruct((64, 2, 4), jnp.float32)

    def permutes(mask) -> int:
        function = lambda q, k, v: parallel.ring_attend(q, k, v, layout=layout, mask=mask)
        return jax.jit(function).lower(x, x, x).as_text().count("collective_permute")

    def hops(mask) -> tuple[int, int]:
        request = checked(x, x, x, mask, None, None, None, "blocks", (), None)
        return _arc(request, parallel.contiguous(8), 8)

    assert hops(masks.causal()) == (0, 8)
    assert hops(masks.causal() & masks.window(8)) == (0, 2)
    assert hops(masks.window(8, 8)) == (7, 3)  # begins at the device after it
    assert hops(masks.block_local(8)) == (0, 1)
    assert permutes(masks.block_local(8)) == 0
    assert permutes(masks.causal()) > 0


@pytest.mark.parametrize("form", ["alone", *FORMS])
def test_documents_do_not_touch_each_other(form):
    """Other tokens in one packed document change no bit of another's outputs and gradients."""
    rng = np.random.default_rng(0)
    ids = jnp.asarray(np.repeat([0, 1, 2, 3], [5, 30, 1, 28]), jnp.int32)  # borders are not those of the devices
    first = [jnp.asarray(x) for x in rng.standard_normal((3, 64, 8, 4)).astype(np.float32)]
    changed = [jnp.where((ids == 1)[:, None, None], x[::-1] * 100, x) for x in first]
    others = np.asarray(ids != 1)
    weight = jnp.asarray(rng.standard_normal((64, 8, 4)), jnp.float32)

    def everything(q, k, v):
        mask = masks.causal() & masks.segments(ids)
        call = attend if form == "alone" else FORMS[form]
        knobs = {"implementation": "blocks"} if form == "alone" else {"layout": layout_of(4)}
        function = lambda q, k, v: call(q, k, v, mask=mask, block_sizes=BlockSizes(8, 8), **knobs)
        output, pull = jax.vjp(function, q, k, v)
        return output, pull(weight)

    run = jax.jit(everything)
    for a, b in zip(jax.tree.leaves(run(*first)), jax.tree.leaves(run(*changed)), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[others], np.asarray(b)[others])
        assert not np.array_equal(np.asarray(a)[~others], np.asarray(b)[~others])


@pytest.mark.parametrize("form", FORMS)
def test_kernels_run_on_each_device(form):
    """Interpreted: outputs and gradients by kernels, in the ring and after the exchange."""
    layout = on(2)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 256, 2, 16))
    knobs = {"mask": masks.causal(), "layout": layout, "placement": parallel.zigzag(2)}
    both = lambda **more: jax.jit(jax.value_and_grad(loss_of(form, **knobs, **more), (0, 1, 2)))(q, k, v)
    want = both(implementation="blocks")
    with compile_for(Target("tpu", interpret=True)):
        got = both(implementation="pallas", block_sizes=BlockSizes(64, 64))
    jax.tree.map(lambda a, b: assert_close(a, b, kind="derivative"), got, want)


def test_vmap_adds_an_axis_that_is_not_split():
    q, k, v = (jnp.asarray(x) for x in np.random.default_rng(0).standard_normal((3, 3, 16, 2, 4)).astype(np.float32))
    call = lambda q, k, v: parallel.ring_attend(q, k, v, layout=on(2), mask=masks.causal())
    assert_close(quickly(jax.vmap(call), q, k, v), attend(q, k, v, mask=masks.causal()))


def test_heads_of_a_layout_are_split_too():
    """Batch, sequence and heads at once, fewer key/value heads than devices."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "sequence", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    layout = parallel.layout(mesh, {"batch": "data", "sequence": "sequence", "heads": "tensor"})
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((4, 16, n, 4)), jnp.float32) for n in (8, 1, 1))
    for call in FORMS.values():
        function = lambda q, k, v, call=call: call(q, k, v, layout=layout, mask=masks.causal())
        output = quickly(function, q, k, v)
        assert_close(output, attend(q, k, v, mask=masks.causal()))
        assert output.sharding.is_equivalent_to(layout.sharding("batch", "sequence", "heads", None), 4)


# What is refused, and how it is said.


def refused(call, *words):
    with pytest.raises(ValueError, match=re.escape(words[0])) as error:
        call()
    for word in words:
        assert word in str(error.value)


@pytest.mark.usefixtures("without_run_time_types")
def test_what_is_refused():
    layout, x = on(4), jnp.ones((16, 4, 4))
    ring = lambda *arrays, **knobs: parallel.ring_attend(*arrays, **({"layout": layout} | knobs))
    to_all = lambda *arrays, **knobs: parallel.all_to_all_attend(*arrays, **({"layout": layout} | knobs))
    refused(lambda: ring(x[:15], x[:15], x[:15]), "q: got 15 tokens", "multiple of 4", "pad")
    refused(lambda: ring(x[:12], x[:12], x[:12], placement=parallel.zigzag(4)), "multiple of 8")
    refused(lambda: ring(x, x, x, placement=parallel.zigzag(3)), "placement", "want one of 4 devices")
    refused(lambda: ring(x, x, x, layout=parallel.layout(layout.mesh, {})), "'sequence'", "one mesh axis")
    refused(lambda: ring(x, x, x, implementation="dense"), "implementation", "blocks")
    refused(lambda: to_all(x[:, :3], x[:, :3], x[:, :3]), "N=3", "4 devices", "ring_attend")
    refused(lambda: to_all(x, x, x, normalizer=normalizers.sparsemax()), "whole rows")
    batched = layout_of(4)
    refused(lambda: ring(x[None], x[None], x[None], layout=batched), "batch: got 1 sequences", "2 devices")
    refused(lambda: parallel.layout(layout.mesh, {"heads": "model"}), "rules['heads']", "sequence")
    refused(lambda: parallel.layout(layout.mesh, {"a": "sequence", "b": "sequence"}).spec("a", "b"), "one mesh axis")
    explicit = jax.make_mesh((4,), ("sequence",), axis_types=(jax.sharding.AxisType.Explicit,))
    refused(lambda: parallel.layout(explicit, {}), "not Auto", "axis_types")
    refused(lambda: parallel.zigzag(0), "devices=0")
    refused(lambda: parallel.visited_tiles(None, parallel.zigzag(4), 100), "length=100", "128")
    own = normalizers.from_monoid(
        lambda rows, width, dtype: jnp.zeros((rows, width), dtype),
        lambda score, visible, v: jnp.where(visible, score, 0) @ v, jnp.add, lambda x: x,
    )  # fmt: skip
    with compile_for(Target("tpu", interpret=True)), pytest.raises(NotImplementedError, match="tiles of 4 keys span"):
        ring(x, x, x, placement=parallel.zigzag(4), normalizer=own, implementation="pallas")
