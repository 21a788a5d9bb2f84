"""Kernels for GPU against the streamed form, interpreted: values and derivatives of every case that they run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import BlockSizes, attend, explain, masks, scores
from pallas_kernels import Target, _compat, compile_for
from tests.attention.cases import CASES
from tests.attention.test_conformance import call, derivatives, gradients
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


EVERY_DERIVATIVE = {"bias of keys", "cosine"}
"""Scores of the cases that are differentiated in every way."""

RUN = [c for c in CASES if c.streams and c.score not in THREE_AXES]


@interpreted
@pytest.mark.parametrize("case", RUN, ids=str)
def test_case(case):
    """Value and gradient equal those of the dense form; for some cases every other derivative does, too."""
    case = dataclasses.replace(case, blocks=BlockSizes(whole(case.blocks.q), whole(case.blocks.kv)))
    floats, integers = case.draw()
    tangents, _ = case.draw(seed=1)
    tangents = {name: tangents[name] - floats[name] for name in floats}
    cotangent = np.random.default_rng(2).standard_normal((*case.size.batch, case.size.t, case.size.n, case.size.v))
    floats, integers, tangents, cotangent = single((floats, integers, tangents, cotangent))
    of = lambda form: lambda x: call(case, form, x, integers)

    found = derivatives if case.score in EVERY_DERIVATIVE else gradients
    want = jax.jit(lambda *x: found(of("dense"), *x))(floats, tangents, cotangent)
    got = run(lambda *x: found(of("pallas"), *x), floats, tangents, cotangent)
    for name in want:
        bound = getattr(TOLERANCES["float32"], {"value": "value", "hvp": "second"}.get(name, "derivative"))
        for a, b in zip(jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True):
            rms = lambda x: float(jnp.sqrt(jnp.mean(x**2)))
            assert rms(a - b) <= bound * max(rms(b), 0.1 if b.ndim else 1.0), name


@interpreted
def test_memory_that_begins_as_nan_and_watched_for_races():
    """Forward and gradients in order of rows, of columns (grouped heads, learned slopes), and of single tiles."""
    length, key = 192, jax.random.key(0)
    q, k, v, cotangent = jax.random.normal(key, (4, length, 2, 16))
    k, v = k[:, :1], v[:, :1]
    slopes, bias = jnp.array([0.1, 0.2]), jax.random.normal(key, (2, length, length))

    def loss(form):
        def of(q, k, v, slopes, bias):
            score = scores.dot_product() >> scores.alibi(slopes) >> scores.bias(bias)
            return (attend(q, k, v, mask=masks.causal(), score=score, implementation=form) * cotangent).sum()

        return jax.value_and_grad(of, (0, 1, 2, 3, 4))

    want = loss("blocks")(q, k, v, slopes, bias)
    watched = _compat.interpreter(detect_races=True)
    with compile_for(Target("gpu", "h100", interpret=watched)), jax.disable_jit():
        got = loss("pallas")(q, k, v, slopes, bias)
    jax.tree.map(lambda a, b: assert_close(a, b, kind="derivative"), got, want)
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    assert not gpu_callbacks.get_races().races_found


@interpreted
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_inputs(dtype):
    q, k, v, cotangent = jax.random.normal(jax.random.key(0), (4, 150, 2, 32), dtype)
    k, v = k[:, :1], v[:, :1]

    def of(form, *x):
        output, pull = jax.vjp(lambda *x: attend(*x, mask=masks.causal(), implementation=form), *x)
        return output, pull(cotangent.astype(output.dtype))

    want = of("blocks", *(x.astype(jnp.float32) for x in (q, k, v)))
    got = run(of, "pallas", q, k, v)
    assert all(x.dtype == dtype for x in jax.tree.leaves(got))
    for a, b, kind in zip(jax.tree.leaves(got), jax.tree.leaves(want), ["value", *["derivative"] * 3], strict=True):
        assert_close(a, b, kind=kind)


@interpreted
def test_the_same_bits_twice():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 130, 1, 16))
    gradients = jax.grad(lambda *x: attend(*x, mask=masks.causal(), implementation="pallas").sum(), (0, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, run(gradients, q, k, v), run(gradients, q, k, v))


def test_what_no_kernel_runs_is_said():
    x = jnp.ones((128, 1, 256), jnp.float32)
    with compile_for(Target("gpu", "h100")):
        with pytest.raises(NotImplementedError, match=r"bytes of shared memory .* h100 has 232,448"):
            attend(x, x, x, implementation="pallas")
        with pytest.raises(ValueError, match="no multiples of 64"):
            attend(x[..., :64], x[..., :64], x, implementation="pallas", block_sizes=BlockSizes(100, 128))
        assert explain(x, x, x).implementation != "pallas"  # until they are timed
