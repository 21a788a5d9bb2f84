"""Every "with n = 0 this is softmax()" of the documentation, and claims of the catalog about single mechanisms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import BlockSizes, attend, attention_weights, masks, normalizers, scores
from tests.tolerances import assert_close

LENGTH = 14


def qkv() -> jax.Array:
    return jax.random.normal(jax.random.key(0), (3, LENGTH, 2, 4))


N, M, S = normalizers, masks, scores
REDUCTIONS = {
    "softmax_plus_one(0) is softmax()": ({"normalizer": N.softmax_plus_one(0)}, {"normalizer": N.softmax()}),
    "softmax_plus_one(n) is softmax(sink=log(n))": (
        {"normalizer": N.softmax_plus_one(3.0)},
        {"normalizer": N.softmax(sink=float(np.log(3)))},
    ),
    "a sink of -inf is none": ({"normalizer": N.softmax(sink=-np.inf)}, {"normalizer": N.softmax()}),
    "log_n_softmax with n = e is softmax()": ({"normalizer": N.log_n_softmax(n=float(np.e))}, {}),
    "log_n_softmax with n = S scales by log(S)": (
        {"normalizer": N.log_n_softmax(n=float(LENGTH))},
        {"scale": 0.5 * float(np.log(LENGTH))},
    ),
    "sigmoid() is sigmoid(-log(S))": ({"normalizer": N.sigmoid()}, {"normalizer": N.sigmoid(-float(np.log(LENGTH)))}),
    "softcap grows to the identity": ({"score": S.softcap(1e6)}, {}),
    "alibi of slope 0 is nothing": ({"score": S.alibi(jnp.zeros(2))}, {}),
    "a zero table is nothing": ({"score": S.relative_bias(jnp.zeros((2, 5)))}, {}),
    "a zero bias is nothing": ({"score": S.bias(jnp.zeros((1, LENGTH, LENGTH)))}, {}),
    "alibi is a relative bias that reaches everywhere": (
        {"score": S.alibi(jnp.array([0.3, 0.1]))},
        {"score": S.relative_bias(-jnp.array([[0.3], [0.1]]) * jnp.abs(jnp.arange(-LENGTH, LENGTH + 1.0))[None])},
    ),
    "a bias of -inf is a mask, where a key is left": (
        {"score": S.bias(jnp.where(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)), 0, -jnp.inf))},
        {"mask": M.causal()},
    ),
    "a bias is a function of the indices": (
        {"score": S.from_function(lambda x, b, n, t, s: x + 0.1 * t - 0.2 * s)},
        {"score": S.bias(0.1 * jnp.arange(LENGTH)[:, None] - 0.2 * jnp.arange(LENGTH)[None])},
    ),
    "dot_product() is the default": ({"score": S.dot_product()}, {}),
    "scale defaults to 1 / sqrt(H)": ({"scale": 0.5}, {}),
    "dilated(1, l, r) is window(l, r)": ({"mask": M.dilated(1, 4, 2)}, {"mask": M.window(4, 2)}),
    "a wide causal window is causal": ({"mask": M.window(LENGTH)}, {"mask": M.causal()}),
    "window(l) is causal": ({"mask": M.window(4)}, {"mask": M.window(4, LENGTH) & M.causal()}),
    "prefix is sinks": ({"mask": M.prefix(3)}, {"mask": M.sinks(3)}),
    "prefix(0) adds nothing to causal": ({"mask": M.causal() | M.prefix(0)}, {"mask": M.causal()}),
    "one segment is no mask": ({"mask": M.segments(jnp.zeros(LENGTH, jnp.int32))}, {}),
    "block_local is segments of equal length": (
        {"mask": M.block_local(5)},
        {"mask": M.segments(jnp.arange(LENGTH) // 5)},
    ),
    "neighborhood as wide as the grid is no mask": ({"mask": M.neighborhood(LENGTH, LENGTH)}, {}),
    "causal neighborhood is a window": (
        {"mask": M.neighborhood(LENGTH, 4, causal=True)},
        {"mask": M.window(3)},
    ),
    "neighborhood with stride = window is blocked": (
        {"mask": M.neighborhood(LENGTH, 7, stride=7)},
        {"mask": M.block_local(7)},
    ),
    "lengths of T and S are no mask": ({"mask": M.lengths(LENGTH, LENGTH)}, {}),
    "not not": ({"mask": ~~M.causal()}, {"mask": M.causal()}),
    "de Morgan": ({"mask": ~(M.causal() | M.sinks(2))}, {"mask": ~M.causal() & ~M.sinks(2)}),
    "heads choose": ({"mask": M.heads(0) & M.causal() | M.heads(1) & M.window(2)}, {"mask": M.per_head(M.causal(), M.window(2))}),
}  # fmt: skip


@pytest.mark.parametrize("claim", REDUCTIONS)
def test_reduction(claim):
    q, k, _ = qkv()
    assert_close(*(attention_weights(q, k, **side) for side in REDUCTIONS[claim]))


def test_gradients_at_the_ends_of_the_scale():
    """Where a reduction is at log(0) or -inf, streamed gradients are finite and right as well."""
    claims = (
        "softmax_plus_one(0) is softmax()",
        "a sink of -inf is none",
        "a bias of -inf is a mask, where a key is left",
    )

    def of(knobs):
        attention = functools.partial(attend, implementation="blocks", block_sizes=BlockSizes(5, 5), **knobs)
        return jax.grad(lambda *x: (attention(*x) ** 2).sum(), (0, 1, 2))

    every = jax.jit(lambda *x: {claim: [of(side)(*x) for side in REDUCTIONS[claim]] for claim in claims})
    for one, two in every(*qkv()).values():
        assert_close(one, two, kind="derivative")


@pytest.mark.usefixtures("x64")
def test_multi_query_is_multi_head_with_tied_keys_and_values():
    """One key/value head under N query heads, and its gradient is the sum of the tied heads' (catalog 202)."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((LENGTH, n, 4))) for n in (8, 1, 1))

    @functools.partial(jax.jit, static_argnames="form")
    def both(q, k, v, form):
        of = functools.partial(attend, mask=masks.causal(), implementation=form, block_sizes=BlockSizes(5, 5))
        tied = lambda q, k, v: of(q, *(jnp.tile(x, (1, 8, 1)) for x in (k, v)))
        return [(f(q, k, v), jax.grad(lambda *x: (f(*x) ** 2).sum(), (0, 1, 2))(q, k, v)) for f in (of, tied)]  # noqa: B023

    for form in ("dense", "blocks"):
        (shared, gradient), (tied, tied_gradient) = both(q, k, v, form)
        assert_close(shared, tied)
        assert_close(gradient, tied_gradient, kind="derivative")


def test_rows_of_signed_softmax_have_absolute_sum_one():
    w = attention_weights(*qkv()[:2], normalizer=normalizers.signed_softmax(), mask=masks.causal())
    np.testing.assert_allclose(np.abs(w).sum(-1), 1, rtol=1e-6)
    assert (np.asarray(w) < 0).any()


def test_one_head_of_signed_softmax_subtracts_two_tokens():
    """y = x_a - x_b from one head: signed softmax can, softmax (an average) cannot (catalog 167).

    The query is e_1; keys are +c, -c and 0 along it, values the tokens. With signs the weights are +1/2, -1/2 and
    vanish elsewhere as c grows; averages stay in the convex hull, so their best error is a constant.
    """
    x = jax.random.normal(jax.random.key(0), (64, 5, 3))
    target = x[:, 0] - x[:, 1]

    def output(c, normalizer):
        direction = jnp.array([1.0, -1.0, 0.0, 0.0, 0.0])[:, None, None] * c
        k = jnp.broadcast_to(direction, (64, 5, 1, 1))
        return 2 * attend(jnp.ones((64, 1, 1, 1)), k, x[:, :, None], scale=1.0, normalizer=normalizer)[:, 0, 0]

    error = lambda normalizer, c: float(jnp.mean((output(c, normalizer) - target) ** 2))
    assert error(normalizers.signed_softmax(), 20.0) < 1e-10

    # Softmax with any logits at all: the least squares error of a convex combination, by gradient descent on logits.
    def best_of_softmax(logits):
        k = jnp.broadcast_to(logits[:, None, None], (64, 5, 1, 1))
        mixed = attend(jnp.ones((64, 1, 1, 1)), k, x[:, :, None], scale=1.0)[:, 0, 0]
        return jnp.mean((2 * mixed - target) ** 2)

    step = jax.jit(lambda logits: logits - jax.grad(best_of_softmax)(logits))
    logits = jnp.zeros(5)
    for _ in range(300):
        logits = step(logits)
    # With weights p: E|2 p - (1, -1, 0..)|^2 per feature is at least the squared distance to 2 times the simplex: 2.
    assert best_of_softmax(logits) > 1


def test_sigmoid_with_bias_minus_log_n_keeps_outputs_bounded():
    """|o| stays the same as n grows 16 times with the bias -log(n), and grows 16 times without (catalog 378)."""
    norms = {}
    for length in (128, 2048):
        q, k, v = jax.random.normal(jax.random.key(1), (3, length, 1, 8)) + jnp.array([0, 0, 1.0])[:, None, None, None]
        for bias in (None, 0.0):
            o = attend(q[:16], k, v, normalizer=normalizers.sigmoid(bias), implementation="blocks")
            norms[length, bias] = float(jnp.linalg.norm(o, axis=-1).mean())
    assert 0.8 < norms[2048, None] / norms[128, None] < 1.25
    assert 12 < norms[2048, 0.0] / norms[128, 0.0] < 20


@pytest.mark.parametrize("form", ["dense", "blocks", "rows"])
@pytest.mark.parametrize("shift", [0.0, 50.0, -50.0])
def test_stable_row_maximum_changes_nothing_in_float32(form, shift):
    """``tie_factor`` changes the log scale of tied rows, and output and gradients by rounding only (catalog 62)."""
    q, v = jax.random.normal(jax.random.key(2), (2, LENGTH, 2, 4))
    k = jnp.tile(q[:7], (2, 1, 1))  # every score of a row comes twice
    both = []
    for normalizer in (normalizers.softmax(), normalizers.softmax(tie_factor=2.0)):
        of = lambda *x, normalizer=normalizer: attend(
            *x, normalizer=normalizer, score=scores.from_function(lambda s, b, n, t, u: s + shift), implementation=form,
            block_sizes=BlockSizes(5, 5),
        )  # fmt: skip
        gradient = jax.grad(lambda *x, of=of: (of(*x) ** 2).sum(), (0, 1, 2))
        both.append(jax.jit(lambda *x, of=of, gradient=gradient: (of(*x), gradient(*x)))(q, k, v))
    (output, gradient), (stable, stable_gradient) = both
    assert_close(stable, output)
    assert_close(stable_gradient, gradient, kind="derivative")
