"""Kernels for GPU against the streamed form, interpreted: values and derivatives of every case that they run."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import BlockSizes, attend, explain, masks
from pallas_kernels import Target, _compat, compile_for
from tests.attention.cases import CASES
from tests.attention.test_conformance import derivatives, gradients
from tests.kernels.targets import GPU, assert_case, assert_learned_scores, by_kernels, interpreted
from tests.tolerances import assert_close


def whole(length: int) -> int:
    return -(-length // 64) * 64


EVERY_DERIVATIVE = {"bias of keys", "cosine"}
"""Scores of the cases that are differentiated in every way."""


@interpreted
@pytest.mark.parametrize("case", [c for c in CASES if c.streams], ids=str)
def test_case(case):
    """Value and gradient equal those of the dense form; for some cases every other derivative does, too."""
    case = dataclasses.replace(case, blocks=BlockSizes(whole(case.blocks.q), whole(case.blocks.kv)))
    assert_case(case, GPU, derivatives if case.score in EVERY_DERIVATIVE else gradients)


@interpreted
def test_memory_that_begins_as_nan_and_watched_for_races():
    """Forward and gradients in order of rows, of columns (grouped heads, learned slopes), and of single tiles."""
    watched = _compat.interpreter(detect_races=True)

    @contextlib.contextmanager
    def hunting():
        with compile_for(Target("gpu", "h100", interpret=watched)), jax.disable_jit():
            yield

    assert_learned_scores(192, None, hunting)
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
    got = by_kernels(GPU, of, "pallas", q, k, v)
    assert all(x.dtype == dtype for x in jax.tree.leaves(got))
    for a, b, kind in zip(jax.tree.leaves(got), jax.tree.leaves(want), ["value", *["derivative"] * 3], strict=True):
        assert_close(a, b, kind=kind)


@interpreted
def test_the_same_bits_twice():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 130, 1, 16))
    gradients = jax.grad(lambda *x: attend(*x, mask=masks.causal(), implementation="pallas").sum(), (0, 1, 2))
    jax.tree.map(
        np.testing.assert_array_equal, by_kernels(GPU, gradients, q, k, v), by_kernels(GPU, gradients, q, k, v)
    )


def test_what_no_kernel_runs_is_said():
    x = jnp.ones((128, 1, 256), jnp.float32)
    with compile_for(Target("gpu", "h100")):
        with pytest.raises(NotImplementedError, match=r"bytes of shared memory .* h100 has 232,448"):
            attend(x, x, x, implementation="pallas")
        with pytest.raises(ValueError, match="no multiples of 64"):
            attend(x[..., :64], x[..., :64], x, implementation="pallas", block_sizes=BlockSizes(100, 128))
        assert explain(x, x, x).implementation != "pallas"  # until they are timed
