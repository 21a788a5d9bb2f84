"""Claims of papers about mechanisms that `attend` serves, at toy scale; `attnjax.catalog` names each by its record."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import BlockSizes, attend, attention_weights, masks, normalizers, scores
from tests.tolerances import assert_close


def projections(getkey, *shape):
    return jax.random.normal(getkey(), (3, *shape))


# Rabe and Staats, 2021, Self-attention Does Not Need O(n^2) Memory, arXiv 2112.05682.


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("blocks", [(1, 96), (7, 13), (32, 32), (96, 1), (96, 96)], ids=str)
def test_any_chunking_gives_the_same_output_and_gradients(getkey, blocks):
    q, k, v = projections(getkey, 96, 2, 8)

    def loss(q, k, v, **knobs):
        out = attend(q, k, v, mask=masks.causal(), **knobs)
        return jnp.sin(out).sum(), out

    run = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True), static_argnames=("implementation", "block_sizes")
    )
    assert_close(
        run(q, k, v, implementation="blocks", block_sizes=BlockSizes(*blocks)), run(q, k, v, implementation="dense")
    )


# Shazeer, 2019, Fast Transformer Decoding, arXiv 1911.02150.


@pytest.mark.parametrize("form", ["dense", "blocks"])
def test_multi_query_attention_is_attention_with_tied_projections(getkey, form):
    """One key/value head equals N equal ones; and its gradient is the sum of theirs."""
    x = jax.random.normal(getkey(), (2, 33, 16))
    w_q = jax.random.normal(getkey(), (16, 8, 4)) / 4
    one = tuple(jax.random.normal(getkey(), (2, 16, 1, 4)) / 4)
    many = tuple(jnp.repeat(w, 8, axis=1) for w in one)

    @jax.jit
    def run(w_k, w_v):
        def loss(w_k, w_v):
            q, k, v = (jnp.einsum("btd,dnh->btnh", x, w) for w in (w_q, w_k, w_v))
            out = attend(q, k, v, mask=masks.causal(), implementation=form)
            return jnp.sin(out).sum(), out

        gradient, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(w_k, w_v)
        return out, gradient

    (of_one, gradient), (of_many, gradients) = run(*one), run(*many)
    assert_close(of_one, of_many)
    assert_close(gradient, tuple(w.sum(1, keepdims=True) for w in gradients), kind="derivative")


def test_the_cache_shrinks_by_the_number_of_heads():
    """A decoding step takes N query heads and K key/value heads: its operands are the cache, K (H + V) S numbers."""

    def operands(kv_heads: int) -> int:
        q = jax.ShapeDtypeStruct((1, 8, 64), jnp.float32)
        cache = jax.ShapeDtypeStruct((4096, kv_heads, 64), jnp.float32)
        memory = jax.jit(attend).lower(q, cache, cache).compile().memory_analysis()
        assert memory is not None
        return memory.argument_size_in_bytes - 4 * 8 * 64

    assert operands(8) == 8 * operands(1) == 4 * 2 * 4096 * 8 * 64


# Chen et al., 2025, AttentionEngine, arXiv 2502.15349.


def retention() -> normalizers.Normalizer:
    """Retention's row function, ``w_ts / max(|sum_s w_ts|, 1)``, whose state is a signed sum."""
    return normalizers.from_monoid(
        init=lambda rows, width, dtype: (jnp.zeros(rows, dtype), jnp.zeros((rows, width), dtype)),
        lift=lambda score, visible, v: (jnp.where(visible, score, 0).sum(1), jnp.where(visible, score, 0) @ v),
        combine=lambda a, b: (a[0] + b[0], a[1] + b[1]),
        finalize=lambda state: state[1] / jnp.maximum(jnp.abs(state[0]), 1)[:, None],
    )


DECAY = scores.from_function(lambda score, b, n, t, s: score * 0.9 ** jnp.abs(t - s))
TEMPLATE = {
    "softmax": (None, normalizers.softmax()),
    "softcap, ALiBi": (scores.softcap(5.0) >> scores.alibi(jnp.array([0.5, 0.1])), normalizers.softmax()),
    "relu": (None, normalizers.relu()),
    "sigmoid": (None, normalizers.sigmoid()),
    "retention": (DECAY, retention()),
}


@pytest.mark.parametrize("name", TEMPLATE)
@pytest.mark.parametrize("blocks", [(5, 64), (64, 5)], ids=str)
def test_one_template_serves_every_mechanism(getkey, name, blocks):
    """Values and gradients of a score, a mask and a row function, in blocks of any size, are those of the formula."""
    score, normalizer = TEMPLATE[name]
    mask = masks.causal() & (masks.window(20) | masks.sinks(2))
    q, k, v = projections(getkey, 64, 2, 8)
    knobs = {"mask": mask, "score": score, "normalizer": normalizer}

    def by_map(q, k, v):
        return jnp.einsum("nts,snh->tnh", attention_weights(q, k, **knobs), v)

    def in_blocks(q, k, v):
        return attend(q, k, v, implementation="blocks", block_sizes=BlockSizes(*blocks), **knobs)

    def run(function):
        loss = lambda *x: (jnp.sin(function(*x)).sum(), function(*x))
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    ((_, got), got_gradients), ((_, want), want_gradients) = run(in_blocks), run(by_map)
    assert_close(got, want)
    assert_close(got_gradients, want_gradients, kind="derivative")


def test_the_formula_of_retention(getkey):
    q, k, v = projections(getkey, 24, 2, 8)
    w = np.einsum("tnh,snh->nts", q, k) / np.sqrt(8)
    t, s = np.indices(w.shape[1:])
    w = np.where(s <= t, w * 0.9 ** (t - s), 0)
    w = w / np.maximum(np.abs(w.sum(-1, keepdims=True)), 1)
    got = attend(q, k, v, mask=masks.causal(), score=DECAY, normalizer=retention(), implementation="blocks")
    assert_close(got, np.einsum("nts,snh->tnh", w, v))


# Lv et al., 2024, More Expressive Attention with Negative Weights, arXiv 2411.07176.


@pytest.mark.usefixtures("x64")
def test_signed_weights_have_unit_l1_norm(getkey):
    q, k, _ = projections(getkey, 40, 3, 8)
    weights = attention_weights(q, k, mask=masks.causal(), normalizer=normalizers.signed_softmax())
    np.testing.assert_allclose(jnp.abs(weights).sum(-1), 1, rtol=1e-13)
    assert weights.min() < -0.5
    assert jnp.abs(weights.sum(-1)).max() <= 1 + 1e-13


def test_one_signed_head_subtracts_and_softmax_cannot(getkey):
    """y = x_a - x_b, up to a scale: scores +c and -c give (x_a - x_b) / 2, and softmax stays in the convex hull.

    Of softmax's outputs p x_a + (1 - p) x_b, scaled at will, the best is x_a: leaving half of the variance."""
    x = jax.random.normal(getkey(), (4096, 2, 1, 1))  # sequences of the two tokens a and b
    target = (x[:, 0] - x[:, 1])[..., 0]

    def output(scores_of_tokens, normalizer):
        q = jnp.ones((4096, 1, 1, 1))
        k = jnp.broadcast_to(scores_of_tokens.reshape(1, 2, 1, 1), x.shape)
        return attend(q, k, x, scale=1.0, normalizer=normalizer)[:, 0, 0]

    def residual(scores_of_tokens, normalizer):
        out = output(scores_of_tokens, normalizer)
        return ((target - (out * target).sum() / (out * out).sum() * out) ** 2).mean() / (target**2).mean()

    assert residual(jnp.array([20.0, -20.0]), normalizers.signed_softmax()) < 1e-10
    tried = [residual(jnp.array([c, -c]), normalizers.softmax()) for c in np.linspace(-20.0, 20.0, 41)]
    assert min(tried) > 0.45


def test_an_early_token_is_more_visible_after_one_signed_layer_and_less_after_four(getkey):
    """Sequences that differ in their first token: the distance of the last outputs, signed over softmax.

    The paper expects more than 1 of trained models. With random weights that holds after one layer only: softmax's
    weights, all positive, add up what the tokens between pass on, and signed ones cancel it. Residual layers of 16
    independent one-head models, 10 draws; geometric means, two standard errors."""
    length, models, width, layers = 256, 16, 16, 4

    def distances(key, normalizer):
        of_tokens, of_places, of_bits, of_weights = jax.random.split(key, 4)
        embedding = jax.random.normal(of_tokens, (2, models, width))
        places = jax.random.normal(of_places, (length, models, width))
        bits = jax.random.bernoulli(of_bits, 0.5, (length,)).astype(int)
        weights = jax.random.normal(of_weights, (layers, 3, models, width, width)) / np.sqrt(width)

        def last(first):
            def layer(x, w):
                y = x / jnp.sqrt((x**2).mean(-1, keepdims=True))
                q, k, v = jnp.einsum("snh,inhg->isng", y, w)
                x = x + attend(q, k, v, mask=masks.causal(), normalizer=normalizer, implementation="dense")
                return x, x[-1]

            return jax.lax.scan(layer, embedding[bits.at[0].set(first)] + places, weights)[1]

        return jnp.linalg.norm(last(0) - last(1), axis=-1)

    @jax.jit
    def log_ratio(key):
        signed, soft = (distances(key, f) for f in (normalizers.signed_softmax(), normalizers.softmax()))
        return jnp.log(signed / soft).mean(-1)

    found = np.array([log_ratio(key) for key in jax.random.split(getkey(), 10)])
    mean, error = found.mean(0), found.std(0, ddof=1) / np.sqrt(len(found))
    print("signed over softmax, after each layer:", np.exp(mean).round(2), "two standard errors:", (2 * error).round(2))
    assert mean[0] > 2 * error[0]
    assert mean[-1] < -2 * error[-1]


# Ramapuram et al., 2024, Theory, Analysis, and Best Practices for Sigmoid Self-Attention, arXiv 2409.04431.


def test_the_bias_keeps_sigmoid_outputs_bounded(getkey):
    """Values with a mean: the output's norm grows like n without a bias and stays with b = -log n, like softmax's."""

    @functools.partial(jax.jit, static_argnames="n")
    def norms(key, n):
        q, k, v = jax.random.normal(key, (3, n, 1, 16))
        knobs = [normalizers.sigmoid(bias=0.0), normalizers.sigmoid(), normalizers.softmax()]
        outs = [attend(q[:64], k, v + 1.0, normalizer=one) for one in knobs]
        return jnp.stack([jnp.linalg.norm(out, axis=-1).mean() for out in outs])

    lengths = (64, 256, 1024, 4096)
    key = getkey()
    found = np.array([norms(key, n) for n in lengths])
    print(found)
    growth = np.polyfit(np.log(lengths), np.log(found), 1)[0]
    np.testing.assert_allclose(growth, [1.0, 0.0, 0.0], atol=0.06)


def test_sigmoid_attention_is_smoother_than_softmax_in_a_tied_row():
    """The Jacobian of the last token's output in all tokens, where it attends to two opposite tokens of size R equally.

    A query of 0 and keys R, -R, 0 with values equal to keys: d o / d q is sum_s w'_s k_s^2, which is 2 R^2 / 3 for
    softmax (the variance of the keys), and 2 R^2 p (1 - p) = 3 R^2 / 8 for sigmoid with b = -log 3, p = 1/4."""

    @functools.partial(jax.jit, static_argnames="form")
    def norm(size, form):
        tokens = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]) * size
        normalizer = {"sigmoid": normalizers.sigmoid(), "softmax": normalizers.softmax()}[form]

        def last(x):
            x = x[:, None]
            return attend(x[-1:], x, x, scale=1.0, normalizer=normalizer)[0, 0]

        return jnp.linalg.norm(jax.jacfwd(last)(tokens).reshape(2, -1), 2)

    ratios = [norm(size, "sigmoid") / norm(size, "softmax") for size in (4.0, 16.0, 64.0)]
    assert ratios[-1] == pytest.approx((3 / 8) / (2 / 3), rel=1e-3)
    assert max(ratios) < 1
