"""Kernels for GPU against the streamed form, interpreted: values and derivatives of every case that they run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import BlockSizes, attend, explain, masks, scores
from attnjax.attention import _pallas
from pallas_kernels import Target, _compat, compile_for
from tests.attention.cases import CASES
from tests.attention.test_conformance import call, derivatives
from tests.tolerances import TOLERANCES, assert_close

INTERPRETED = Target("gpu", "h100", interpret=True)
interpreted = pytest.mark.skipif(not _compat.can_interpret(), reason="this jax does not interpret kernels for GPU")

THREE_AXES = {"additive", "additive, shared by the heads", "negative distance"}
"""Scores that make blocks of queries by keys by features."""


def run(function, *arguments):
    """Interpreted, and so eagerly: the interpreter's callbacks are in an order that no jit knows of."""
    with compile_for(INTERPRETED), jax.disable_jit():
        return function(*arguments)


def single(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if np.asarray(x).dtype == np.float64 else None), tree)


def whole(length: int) -> int:
    return -(-length // 64) * 64


RUN = [c for c in CASES if c.streams and c.score not in THREE_AXES and c.normalizer != "user's monoid"]


@interpreted
@pytest.mark.parametrize("case", RUN, ids=str)
def test_case(case):
    """Value, jvp, gradient and Hessian-vector product equal those of the dense form."""
    case = dataclasses.replace(case, blocks=BlockSizes(whole(case.blocks.q), whole(case.blocks.kv)))
    floats, integers = case.draw()
    tangents, _ = case.draw(seed=1)
    tangents = {name: tangents[name] - floats[name] for name in floats}
    cotangent = np.random.default_rng(2).standard_normal((*case.size.batch, case.size.t, case.size.n, case.size.v))
    floats, integers, tangents, cotangent = single((floats, integers, tangents, cotangent))

    def of(form):
        return lambda x, v, c: derivatives(lambda x: call(case, form, x, integers), x, v, c)

    want = jax.jit(of("dense"))(floats, tangents, cotangent)
    got = run(of("pallas"), floats, tangents, cotangent)
    for name, kind in {"value": "value", "jvp": "derivative", "gradient": "derivative", "hvp": "second"}.items():
        bound = getattr(TOLERANCES["float32"], kind)
        for a, b in zip(jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True):
            rms = lambda x: float(jnp.sqrt(jnp.mean(x**2)))
            assert rms(a - b) <= bound * max(rms(b), 0.1 if b.ndim else 1.0), name
