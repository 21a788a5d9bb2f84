"""Targets that kernels run on in tests, interpreted, and what shows that it was kernels that ran."""

import contextlib
from collections.abc import Callable
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks, scores
from attnjax.attention import _pallas
from pallas_kernels import Target, _compat, compile_for
from pallas_kernels.attention import Unsupported, fold
from tests.attention.cases import Case
from tests.attention.test_conformance import call
from tests.tolerances import TOLERANCES, assert_close

TPU, GPU = Target("tpu", interpret=True), Target("gpu", "h100", interpret=True)
interpreted = pytest.mark.skipif(not _compat.can_interpret(), reason="this jax does not interpret kernels for GPU")
BOTH = pytest.mark.parametrize("target", [TPU, pytest.param(GPU, marks=interpreted)], ids=lambda t: t.platform)


def by_kernels(target: Target, function: Callable, *arguments):
    """On GPU eagerly: its interpreter's callbacks are in an order that no jit knows of."""
    with compile_for(target), jax.disable_jit(target.platform == "gpu"):
        return function(*arguments)


@contextlib.contextmanager
def nothing_streamed():
    """Fails if a fold, or a derivative of one, was not run by a kernel."""
    reasons = []

    def watched(*arguments):
        try:
            return fold(*arguments)
        except Unsupported as error:
            reasons.append(str(error))
            raise

    jax.clear_caches()
    with mock.patch.object(_pallas, "fold", watched):
        yield
    assert not reasons, reasons


def assert_case(case: Case, target: Target, derivatives: Callable) -> None:
    """Kernels give the values and derivatives of the dense form, and nothing of them is streamed."""
    floats, integers = case.draw()
    tangents, _ = case.draw(seed=1)
    tangents = {name: tangents[name] - floats[name] for name in floats}
    cotangent = np.random.default_rng(2).standard_normal((*case.size.batch, case.size.t, case.size.n, case.size.v))
    single = lambda x: jnp.asarray(x, jnp.float32 if np.asarray(x).dtype == np.float64 else None)
    floats, integers, tangents, cotangent = jax.tree.map(single, (floats, integers, tangents, cotangent))

    def of(form):
        return jax.jit(lambda x, v, c: derivatives(lambda x: call(case, form, x, integers), x, v, c))

    want = of("dense")(floats, tangents, cotangent)
    with nothing_streamed():
        got = by_kernels(target, of("pallas"), floats, tangents, cotangent)
    for name in want:
        bound = getattr(TOLERANCES["float32"], {"value": "value", "hvp": "second"}.get(name, "derivative"))
        for a, b in zip(jax.tree.leaves(got[name]), jax.tree.leaves(want[name]), strict=True):
            rms = lambda x: float(jnp.sqrt(jnp.mean(x**2)))
            # Inputs are of order one: what is far smaller is a sum that cancels, and a single number sums up most.
            assert rms(a - b) <= bound * max(rms(b), 0.1 if b.ndim else 1.0), name


def assert_learned_scores(length: int, block_sizes, watched: Callable) -> None:
    """Forward and gradients in order of rows, of columns (grouped heads, learned slopes), and of single tiles, by
    kernels within a context."""
    key = jax.random.key(0)
    q, k, v, cotangent = jax.random.normal(key, (4, length, 2, 16))
    k, v = k[:, :1], v[:, :1]
    slopes, bias = jnp.array([0.1, 0.2]), jax.random.normal(key, (2, length, length))

    def loss(form):
        def of(q, k, v, slopes, bias):
            score = scores.dot_product() >> scores.alibi(slopes) >> scores.bias(bias)
            knobs = {"mask": masks.causal(), "score": score, "block_sizes": block_sizes}
            return (attend(q, k, v, **knobs, implementation=form) * cotangent).sum()

        return jax.value_and_grad(of, (0, 1, 2, 3, 4))

    want = loss("blocks")(q, k, v, slopes, bias)
    with watched():
        got = loss("pallas")(q, k, v, slopes, bias)
    jax.tree.map(lambda a, b: assert_close(a, b, kind="derivative"), got, want)
