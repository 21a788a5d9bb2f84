"""Streamed statistics equal those of the dense map, for every normalizer, and so do their gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import BlockSizes, attend, attention_weights, masks, normalizers, scores, statistics
from attnjax.attention.statistics import Statistic
from tests.attention.cases import NO_WEIGHTS, NORMALIZERS, Case, Sizes
from tests.references import attention as reference
from tests.tolerances import assert_close

SIZE = Sizes((2,), 37, 50, 4, 2, 4, 3)
BLOCKS = BlockSizes(16, 12)
ON = masks.window(8) | masks.sinks(2)
EXPONENTIAL = {name for name in NORMALIZERS if "softmax" in name}


DIFFERENTIATED = ("softmax", "softmax with a sink", "log-n softmax", "sigmoid, learned bias", "squared relu",
                  "signed softmax", "sparsemax")  # fmt: skip
"""One normalizer of each kind; the others are compared in value."""


def case_of(normalizer: str) -> Case:
    return Case("causal segments", "alibi", normalizer, SIZE, BLOCKS)


def wanted(normalizer: str) -> list[str | Statistic]:
    names = ["entropy", "max_logit", "key_mass", "participation_ratio", statistics.mass_on(ON, name="near")]
    return names + (["logsumexp"] if normalizer in EXPONENTIAL else [])


def log_masses(name: str, score: np.ndarray, arrays, seen) -> np.ndarray:
    """What a normalizer exponentiates."""
    if name == "signed softmax":
        return jnp.abs(score)
    if name == "log-n softmax":
        logs = jnp.log(jnp.maximum(seen.sum(-1, keepdims=True), 1))
        return score * arrays["normalizer coefficient"][None, :, None, None] * logs
    if name == "log-n softmax, n given":
        return score * np.log(SIZE.s)
    return score


def from_the_map(name: str, arrays: dict) -> dict[str, jax.Array]:
    """The statistics from ``attention_weights``, and from scores written out; JAX differentiates this."""
    case = case_of(name)
    w = attention_weights(arrays["q"], arrays["k"], **case.knobs(arrays))  # [B, N, T, S]
    k = jnp.repeat(arrays["k"], SIZE.n // SIZE.k, axis=-2)
    t, s = np.indices((SIZE.t, SIZE.s))
    score = arrays["scale"] * jnp.einsum("btnh,bsnh->bnts", arrays["q"], k)
    score = score - arrays["score slopes"][None, :, None, None] * np.abs(t - s)[None, None]
    seen = (s <= t)[None, None] & (arrays["mask q_ids"][:, None, :, None] == arrays["mask kv_ids"][:, None, None, :])
    total = jnp.abs(w).sum(-1, keepdims=True)
    p = jnp.abs(w) / jnp.where(total > 0, total, 1)
    some = p > 0
    squares = (p**2).sum(-1)
    on = (0 <= t - s) & (t - s <= 8) | (s < 2)
    mass = jnp.where(seen, log_masses(name, score, arrays, seen), -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(mass, -1, keepdims=True))
    sums = jnp.where(seen, jnp.exp(jnp.where(seen, mass, 0) - jnp.where(jnp.isfinite(top), top, 0)), 0).sum(-1)
    any_seen = jnp.broadcast_to(seen.any(-1), sums.shape)
    found = {
        "entropy": -jnp.where(some, p * jnp.log(jnp.where(some, p, 1)), 0).sum(-1),
        "participation_ratio": jnp.where(squares > 0, 1 / jnp.where(squares > 0, squares, 1), 0),
        "near": jnp.where(on[None, None], w, 0).sum(-1),
        "max_logit": jnp.max(jnp.where(seen, score, -jnp.inf), -1),
    }
    if name in EXPONENTIAL:
        found["logsumexp"] = jnp.where(any_seen, top[..., 0] + jnp.log(jnp.where(any_seen, sums, 1)), -jnp.inf)
    found = {key: x.swapaxes(1, 2) for key, x in found.items()}
    return found | {"key_mass": w.sum(-2).swapaxes(1, 2)}


def weighted_sum(found: dict, weights: dict) -> jax.Array:
    """A scalar of all statistics; rows that see nothing have infinite ones, left out."""
    return sum(jnp.where(jnp.isfinite(x), x, 0).ravel() @ weights[name].ravel() for name, x in found.items())


@functools.cache
def found(name: str) -> dict:
    case = case_of(name)
    floats, integers = case.draw()
    rng = np.random.default_rng(3)
    tangents = {key: rng.standard_normal(x.shape) for key, x in floats.items()}
    forms = ("dense", "blocks") if case.streams else ("dense", "rows")

    def of(form, floats):
        arrays = floats | integers
        if form == "map":
            return from_the_map(name, arrays)
        output, stats = attend(
            *(arrays[x] for x in "qkv"),
            **case.knobs(arrays),
            stats=wanted(name),
            implementation=form,
            block_sizes=BLOCKS,
        )
        return stats

    shapes = jax.eval_shape(functools.partial(of, "map"), floats)
    weights = {key: rng.standard_normal(x.shape) for key, x in shapes.items()}

    def everything(form, floats, tangents):
        loss = lambda floats: weighted_sum(of(form, floats), weights)
        found = {"value": of(form, floats)}
        used = lambda tree: {key: x for key, x in tree.items() if key != "v"}
        if name == "softmax":
            gradient, product = jax.jvp(jax.grad(loss), (floats,), (tangents,))
            found |= {"gradient": used(gradient), "hvp": used(product)}
        elif name in DIFFERENTIATED:
            found["gradient"] = used(jax.grad(loss)(floats))
        return found

    all_forms = jax.jit(lambda f, t: {form: everything(form, f, t) for form in (*forms, "map")})
    with jax.enable_x64(True):
        return all_forms(floats, tangents)


def assert_equal_to_the_loops(name):
    case = case_of(name)
    loops = case.loops(functools.reduce(dict.__or__, case.draw()))
    per_row = lambda f, x: np.apply_along_axis(f, -1, x).swapaxes(1, 2)
    got = found(name)["blocks" if case.streams else "rows"]["value"]
    assert_close(got["entropy"], per_row(reference.entropy, loops.weights))
    assert_close(got["participation_ratio"], per_row(reference.participation_ratio, loops.weights))
    assert_close(got["max_logit"], per_row(np.max, loops.scores))
    assert_close(got["key_mass"], loops.weights.sum(2).swapaxes(1, 2))
    if name in {"softmax", "softmax with a sink", "softmax plus one", "softmax with a stable maximum"}:
        assert_close(got["logsumexp"], per_row(reference.logsumexp, loops.scores))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", sorted(set(NORMALIZERS) - NO_WEIGHTS))
def test_statistics_equal_those_of_the_map_and_the_loops(name):
    assert_equal_to_the_loops(name)
    forms = dict(found(name))
    want = forms.pop("map")
    for form, got in forms.items():
        print(form)
        assert_close(got["value"], want["value"])
        for order, kind in (("gradient", "derivative"), ("hvp", "second")):
            if order in want:
                assert_close(got[order], want[order], kind=kind)


@pytest.mark.parametrize("form", ["dense", "blocks", "rows"])
def test_rows_that_see_nothing(form):
    """-inf for logarithms and maxima, 0 for the rest, and no gradient, in float32 as users have it."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 8, 1, 4))
    names = ["entropy", "max_logit", "key_mass", "participation_ratio", "logsumexp", statistics.mass_on(masks.sinks(9))]
    mask = masks.causal() & masks.from_function(lambda b, n, t, s: t != 5)

    def of(q, k):
        return attend(q, k, v, mask=mask, stats=names, implementation=form, block_sizes=BlockSizes(3, 3))

    @jax.jit
    def all_of(q, k):
        output, stats = of(q, k)
        total = lambda q, k: sum(jnp.where(jnp.isfinite(x), x, 0).sum() for x in of(q, k)[1].values())
        return output, stats, jax.grad(total, (0, 1))(q, k)

    output, stats, (dq, dk) = all_of(q, k)
    assert not output[5].any()
    for name, x in stats.items():
        if name == "key_mass":
            assert x[7] > 0  # the last key is seen by the last query only
            np.testing.assert_allclose(x.sum(), 7, rtol=1e-6)
        else:
            assert x[5] == (-np.inf if name in ("max_logit", "logsumexp") else 0), name
            assert np.isfinite(np.delete(x, 5, 0)).all()
    assert not dq[5].any()
    assert np.isfinite(dq).all()
    assert np.isfinite(dk).all()


def test_dtype_and_shape_of_statistics():
    """Statistics of bfloat16 inputs are float32."""
    q = jnp.ones((2, 3, 9, 4, 5), jnp.bfloat16)
    k, v = jnp.ones((2, 3, 6, 2, 5), jnp.bfloat16), jnp.ones((2, 3, 6, 2, 7), jnp.bfloat16)
    names = ["entropy", "key_mass"]
    for form in ("dense", "blocks", "rows"):
        output, stats = attend(q, k, v, stats=names, implementation=form)
        assert (output.dtype, output.shape) == (jnp.bfloat16, (2, 3, 9, 4, 7))
        assert (stats["entropy"].dtype, stats["entropy"].shape) == (jnp.float32, (2, 3, 9, 4))
        assert (stats["key_mass"].dtype, stats["key_mass"].shape) == (jnp.float32, (2, 3, 6, 4))
        assert list(stats) == names


@pytest.mark.usefixtures("x64")
def test_maxima_share_their_gradient():
    """Two keys that attain the maximum get half of it each, as in ``jnp.max``."""
    q, k = jnp.ones((1, 1, 2)), jnp.array([[1.0, 0], [0, 1], [0.5, 0.25], [0.3, 0.7]])[:, None]
    top = lambda k, form: attend(
        q, k, k, scale=1.0, stats="max_logit", implementation=form, block_sizes=BlockSizes(1, 1)
    )[1]["max_logit"].sum()
    for form in ("dense", "blocks", "rows"):
        share = jax.jit(jax.grad(top), static_argnums=1)(k, form)
        np.testing.assert_allclose(share[:, 0], np.array([1, 1, 0, 1])[:, None] / 3 * np.ones(2), atol=1e-12)


def test_statistics_of_large_logits_stay_finite():
    """Logits of 1e4: a naive exponential overflows float32."""
    q = 100 * jax.random.normal(jax.random.key(0), (20, 2, 8))
    for form in ("dense", "blocks"):
        output, stats = attend(
            q, q, q, scale=1.0, stats=["entropy", "logsumexp", "participation_ratio"], implementation=form,
            block_sizes=BlockSizes(8, 8),
        )  # fmt: skip
        assert np.isfinite(output).all()
        assert all(np.isfinite(x).all() for x in stats.values())
        assert (stats["participation_ratio"] >= 1 - 1e-6).all()


def test_statistics_do_not_change_the_output():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 20, 2, 8))
    for normalizer in (normalizers.softmax(), normalizers.sigmoid()):
        of = functools.partial(
            attend, q, k, v, normalizer=normalizer, score=scores.softcap(3.0), implementation="blocks",
            block_sizes=BlockSizes(8, 8),
        )  # fmt: skip
        np.testing.assert_array_equal(of(), of(stats=["entropy", "key_mass"])[0])
