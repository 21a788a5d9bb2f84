"""Plain ``attend`` in programs of several devices: right however arrays are split, and nothing is sent for split batches."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from attnjax import attend, masks, normalizers, scores
from pallas_kernels import Target, compile_for
from tests.tolerances import assert_close

MESH = ((2, 4), ("data", "tensor"))
HEADS = PartitionSpec("data", None, "tensor")
BATCH = PartitionSpec("data")
SENT = re.compile(r"(all-gather|all-to-all|collective-permute|reduce-scatter)\(")


def put(kind: AxisType, arrays, specs):
    mesh = jax.make_mesh(*MESH, axis_types=(kind,) * 2)
    return [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(arrays, specs, strict=True)]


def drawn(kv_heads: int, batch: int = 4):
    rng = np.random.default_rng(0)
    sizes = {"q": (batch, 32, 8, 4), "k": (batch, 32, kv_heads, 4), "v": (batch, 32, kv_heads, 3)}
    return [rng.standard_normal(size) for size in sizes.values()]


def everything(arrays, sink, slopes):
    """Gradients of an output and of statistics, of learned numbers too, by streaming."""
    segments = jnp.asarray(np.repeat([0, 1], [13, 19]), jnp.int32)

    def loss(arrays, sink, slopes):
        output, stats = attend(
            *arrays, mask=masks.causal() & masks.segments(segments), score=scores.alibi(slopes),
            normalizer=normalizers.softmax(sink), stats=("entropy", "key_mass"), implementation="blocks",
        )  # fmt: skip
        return sum((x**3).sum() for x in (output, *stats.values()))

    return jax.value_and_grad(loss, (0, 1, 2))(arrays, sink, slopes)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("kv_heads", "specs"),
    [(8, (HEADS,) * 3), (4, (HEADS,) * 3), (1, (HEADS, BATCH, BATCH)), (2, (BATCH,) * 3)],
    ids=str,
)
def test_split_batches_and_heads(kind, kv_heads, specs):
    """The same as on one device; each works on its own, but for sums of what is shared."""
    arrays, learned = drawn(kv_heads), (jnp.linspace(0, 1, 8), jnp.linspace(0.1, 1, 8))
    want = jax.jit(everything)(list(map(jnp.asarray, arrays)), *learned)
    given = put(kind, arrays, specs)
    with jax.set_mesh(given[0].sharding.mesh):
        compiled = jax.jit(everything).lower(given, *learned).compile({"xla_backend_optimization_level": 0})
        got = compiled(given, *learned)
    jax.tree.map(lambda a, b: assert_close(a, b, kind="derivative"), jax.device_get(got), jax.device_get(want))
    assert SENT.findall(compiled.as_text()) == []
    for x, gradient in zip(given, got[1][0], strict=True):
        assert gradient.sharding.is_equivalent_to(x.sharding, 4)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_eager_calls(kind):
    arrays = [x.astype(np.float32) for x in drawn(8)]
    output, stats = attend(*put(kind, arrays, (HEADS,) * 3), mask=masks.causal(), stats="key_mass")
    want, wanted = attend(*map(jnp.asarray, arrays), mask=masks.causal(), stats="key_mass")
    assert_close(jax.device_get(output), jax.device_get(want))
    assert_close(jax.device_get(stats["key_mass"]), jax.device_get(wanted["key_mass"]))
    assert output.sharding.shard_shape(output.shape) == (2, 32, 2, 3)


def test_a_split_sequence_is_gathered_or_refused():
    """By XLA, where it alone knows how arrays are split; types that say it are told what to use."""
    arrays = [x.astype(np.float32) for x in drawn(8)]
    spec = PartitionSpec("data", "tensor")
    call = jax.jit(lambda q, k, v: attend(q, k, v, mask=masks.causal(), implementation="blocks"))
    assert_close(jax.device_get(call(*put(AxisType.Auto, arrays, (spec,) * 3))), call(*map(jnp.asarray, arrays)))
    for name, specs in (("q", (spec, BATCH, BATCH)), ("v", (BATCH, BATCH, spec))):
        given = put(AxisType.Explicit, arrays, specs)
        with pytest.raises(ValueError, match=f"{name}: its sequence is split over .*'tensor'.*ring_attend"):
            call(*given)


def test_kernels_are_not_split():
    """Asked for, they say what to use instead; chosen, they are left out with a warning."""
    given = put(AxisType.Auto, [x.astype(np.float32) for x in drawn(8)], (HEADS,) * 3)
    call = lambda name: jax.jit(lambda q, k, v: attend(q, k, v, implementation=name))
    with compile_for(Target("tpu", interpret=True)):
        with pytest.raises(NotImplementedError, match="does not split kernels.*all_to_all_attend"):
            call("pallas")(*given)
        with pytest.warns(UserWarning, match="does not split kernels.*Streamed"):
            got = call("auto")(*given)
    assert_close(jax.device_get(got), jax.device_get(call("blocks")(*given)))
