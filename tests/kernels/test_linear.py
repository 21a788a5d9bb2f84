"""Chunks of linear attention in kernels, interpreted: against the chunked form, which tests/linear holds against NumPy."""

import contextlib
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from attnjax import linear
from attnjax.linear import _pallas, _step
from pallas_kernels import Target, _compat, compile_for
from pallas_kernels.linear import Unsupported, walk
from tests.kernels.targets import BOTH, GPU, TPU, by_kernels, interpreted
from tests.linear.cases import Case
from tests.tolerances import assert_close

KINDS = [
    Case("token", beta=True), Case("token", normalize="row"), Case("", "feature", normalize="feature"),
    Case("token", beta=True, exclusive=True), Case("feature", exclusive=True),
]  # fmt: skip
"""Every kind of decay, with and without correction, and every kind of read."""


QUICK = {"xla_backend_optimization_level": 0}
"""Programs that run once are not worth optimizing."""


@pytest.fixture(autouse=True)
def small_leaves(monkeypatch):
    """So that a chunk of 16 tokens has leaves and halves."""
    monkeypatch.setattr(_step, "LEAF", 4)


def once(function, *arguments):
    return jax.jit(function, compiler_options=QUICK)(*arguments)


@contextlib.contextmanager
def nothing_looped():
    """Fails if a walk, or a derivative of one, was not run by a kernel."""
    reasons = []

    def watched(*arguments):
        try:
            return walk(*arguments)
        except Unsupported as error:
            reasons.append(str(error))
            raise

    jax.clear_caches()
    with mock.patch.object(_pallas.kernels, "walk", watched):
        yield
    assert reasons == []


def draw(case: Case, length: int, **sizes) -> dict:
    return {name: jnp.asarray(x, jnp.float32) for name, x in case.draw(length, **sizes).items()}


def results(case: Case, form: str, arrays: dict, **knobs):
    """Outputs, the last state, and gradients through both."""
    weights = jnp.cos(jnp.arange(arrays["q"].size // arrays["q"].shape[-1] * 3.0))

    def loss(arrays):
        size = 16 if form == "pallas" else 7
        knobs_all = {**case.knobs, **knobs, "form": form, "chunk_size": size, "return_state": True}
        out, state = linear.attend(**arrays, **knobs_all)
        return (out.ravel() * weights).sum() + (state.value**2).sum(), (out, state)

    return jax.value_and_grad(loss, has_aux=True)(arrays)


def assert_same(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_close(a, b, kind="derivative")


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_kernels_are_the_chunked_form(case):
    """Outputs, last states and gradients: an odd length, segments, a sequence that ends early, grouped heads."""
    segments = np.sort(np.random.default_rng(1).integers(0, 4, (2, 45)), axis=-1)
    more = {"segment_ids": jnp.asarray(segments), "lengths": jnp.array([31, 45])}
    arrays = draw(case, 45)
    want = once(functools.partial(results, case, "chunked", **more), arrays)
    with nothing_looped(), compile_for(TPU):
        got = once(functools.partial(results, case, "pallas", **more), arrays)
    assert_same(got, want)


@interpreted
@pytest.mark.parametrize("case", [Case("token", normalize="row"), Case("feature", beta=True)], ids=str)
def test_kernels_for_gpu_are_the_chunked_form(case):
    arrays = draw(case, 45, batch=1, heads=2, kv_heads=1)
    want = once(functools.partial(results, case, "chunked"), arrays)
    with nothing_looped():
        got = by_kernels(GPU, functools.partial(results, case, "pallas"), arrays)
    assert_same(got, want)


def test_all_orders_of_derivatives():
    """Forward mode, and a product with the Hessian, are walks too."""
    case = Case("token", beta=True)
    arrays, along = (draw(case, 20, batch=1, seed=seed) for seed in (0, 1))

    def both(form, arrays, along):
        of = lambda x: results(case, form, x)[0][0]
        gradient = lambda x: results(case, form, x)[1]
        return jax.jvp(of, (arrays,), (along,)), jax.jvp(gradient, (arrays,), (along,))[1]

    want = once(functools.partial(both, "chunked"), arrays, along)
    with nothing_looped(), compile_for(TPU):
        got = once(functools.partial(both, "pallas"), arrays, along)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_close(a, b, kind="second")


@pytest.mark.parametrize("case", [Case("feature"), Case("token", beta=True)], ids=str)
def test_memory_that_begins_as_nan_and_watched_for_races(case):
    arrays = draw(case, 40, batch=1, heads=1, kv_heads=1)
    want = once(functools.partial(results, case, "chunked"), arrays)
    params = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True, out_of_bounds_reads="raise")
    with compile_for(Target("tpu", interpret=params)), jax.disable_jit():
        got = results(case, "pallas", arrays)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert not interpret_pallas_call.races.races_found
    assert_same(got, want)


@interpreted
def test_gpu_watched_for_races():
    case = Case("token", beta=True)
    arrays = draw(case, 40, batch=1, heads=1, kv_heads=1)
    want = once(functools.partial(results, case, "chunked"), arrays)
    watched = Target("gpu", "h100", interpret=_compat.interpreter(detect_races=True))
    got = by_kernels(watched, functools.partial(results, case, "pallas"), arrays)
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    assert not gpu_callbacks.get_races().races_found
    assert_same(got, want)


@BOTH
def test_16_bit_inputs(target):
    """Operands of products are rounded to 16 bits, sums are not."""
    case = Case("token", beta=True)
    wide = draw(case, 100, batch=1, heads=2, kv_heads=1)
    short = {name: x.astype(jnp.bfloat16) if name in "qkv" else x for name, x in wide.items()}
    rounded = {name: x.astype(jnp.float32) for name, x in short.items()}
    want = once(lambda arrays: linear.attend(**arrays), rounded)
    got = by_kernels(target, lambda arrays: linear.attend(**arrays, form="pallas", chunk_size=32), short)
    assert got.dtype == jnp.bfloat16
    assert_close(got, want, dtype="bfloat16")


def test_the_same_bits_twice():
    case = Case("feature", beta=True)
    arrays = draw(case, 40, batch=1, heads=1, kv_heads=1)
    with compile_for(TPU):
        of = jax.jit(functools.partial(results, case, "pallas"), compiler_options=QUICK)
        for a, b in zip(jax.tree.leaves(of(arrays)), jax.tree.leaves(of(arrays)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_long_chunks_and_decays_from_nothing_to_one(monkeypatch):
    """Decays from 1e-6 to 1 in every feature, with leaves as they are."""
    monkeypatch.undo()
    case = Case("feature", beta=True)
    arrays = draw(case, 150, batch=1, heads=1, kv_heads=1)
    wild = np.random.default_rng(0).uniform(np.log(1e-6), 0, arrays["log_decay"].shape)
    arrays["log_decay"] = jnp.asarray(wild, jnp.float32)
    want = once(lambda arrays: linear.attend(**arrays, form="recurrent"), arrays)
    with compile_for(TPU):
        got = once(lambda arrays: linear.attend(**arrays, form="pallas", chunk_size=64), arrays)
    assert_close(got, want)


@pytest.mark.parametrize(
    ("change", "knobs", "error", "words"),
    [
        ({}, {"chunk_size": 24}, ValueError, ["chunk_size: got 24", "16 times a power of two"]),
        ({"platform": "cpu"}, {}, NotImplementedError, ["form='pallas'", "needs a TPU", "form='chunked'"]),
    ],
)
def test_what_kernels_refuse(change, knobs, error, words):
    x = jnp.ones((32, 2, 4))
    with pytest.raises(error) as caught, contextlib.nullcontext() if change else compile_for(TPU):
        linear.attend(x, x, x, form="pallas", **knobs)
    assert all(word in str(caught.value) for word in words), caught.value


def test_momentum_and_float64_have_no_kernel(x64):
    x = jnp.ones((32, 2, 4), jnp.float32)
    with compile_for(TPU):
        with pytest.raises(NotImplementedError, match="momentum"):
            linear.titans(x, x, x, jnp.ones((32, 2), jnp.float32), form="pallas")
        with pytest.raises(NotImplementedError, match="float64"):
            linear.attend(*[x.astype(jnp.float64)] * 3, form="pallas")
