"""Linear attention in programs of several devices: split batches and heads are run where they are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from attnjax import linear
from tests.tolerances import assert_close

SENT = re.compile(r"(all-gather|all-to-all|collective-permute|reduce-scatter)\(")


def gated(q, k, v):
    decay = jax.nn.log_sigmoid(k)
    return linear.gated_linear_attention(q, k, v, decay, return_state=True)


def delta(q, k, v):
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    return linear.delta_rule(q, k, v, jax.nn.sigmoid(v[..., 0]), return_state=True)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mechanism", [gated, delta])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@pytest.mark.parametrize("spec", [("data", None, "tensor"), (("data", "tensor"),)], ids=str)
def test_split_batches_and_heads(spec, kind, mechanism):
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(kind,) * 2)
    place = NamedSharding(mesh, PartitionSpec(*spec))
    arrays = np.random.default_rng(0).standard_normal((3, 8, 32, 4, 4))

    def loss(q, k, v):
        out, state = mechanism(q, k, v)
        return (out**3).sum() + (state.value**3).sum(), state.value

    found = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    given = jax.device_put(tuple(arrays), place)
    compiled = found.lower(*given).compile({"xla_backend_optimization_level": 0})
    got, want = compiled(*given), found(*map(jnp.asarray, arrays))
    jax.tree.map(lambda a, b: assert_close(a, b, kind="derivative"), jax.device_get(got), jax.device_get(want))
    assert SENT.findall(compiled.as_text()) == []
    assert all(x.sharding.is_equivalent_to(place, 4) for x in got[0])
    assert got[1].sharding.shard_shape(got[1].shape)[:2] == ((4, 1) if len(spec) > 1 else (1, 4))


def test_a_split_sequence():
    mesh = jax.make_mesh((8,), ("context",), axis_types=(AxisType.Explicit,))
    x = jax.device_put(jnp.ones((16, 2, 4)), NamedSharding(mesh, PartitionSpec("context")))
    with pytest.raises(ValueError, match="q: its sequence is split over .*'context'.*state_passing"):
        linear.attend(x, x, x)
