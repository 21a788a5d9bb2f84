"""The sink metric, from the map and from streamed statistics, on attention whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, attention_weights, masks, normalizers, statistics
from attnjax.measures import mean_received, received, row_shares, sink_rate
from tests.tolerances import assert_close


def projections(getkey, heads=4, length=24, batch=(2,)):
    return jax.random.normal(getkey(), (3, *batch, length, heads, 8))


def by_hand(weights: np.ndarray, key: int, offset: int) -> float:
    """Gu et al., section 3.2, for one head, as it is written: the mean over queries at or after the key."""
    rows = [weights[t, key] for t in range(len(weights)) if t + offset >= key]
    return sum(rows) / len(rows)


def alphas(weights, key: int, offset: int = 0) -> np.ndarray:
    """The formula for every head of a map ``[*B, N, T, S]``."""
    weights = np.asarray(weights)
    flat = weights.reshape(-1, *weights.shape[-2:])
    return np.array([by_hand(head, key, offset) for head in flat]).reshape(weights.shape[:-2])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("length", "offset"), [(24, 0), (7, 5)], ids=["all queries", "the last seven of twelve"])
def test_the_three_ways_agree_with_the_formula(getkey, length, offset):
    q, k, v = projections(getkey, length=length + offset)
    q = q[:, offset:]
    mask, tested = masks.causal(offset), (0, 1, 5, 9, length + offset - 1)
    on = {key: statistics.mass_on(masks.sinks(key + 1) & ~masks.sinks(key), name=str(key)) for key in tested}
    _, found = attend(q, k, v, mask=mask, implementation="blocks", stats=["key_mass", *on.values()])
    weights = attention_weights(q, k, mask=mask)
    for key in tested:
        want = alphas(weights, key, offset)
        assert_close(mean_received(weights[..., key].swapaxes(-1, -2), key, offset=offset), want)
        assert_close(mean_received(found[str(key)], key, offset=offset), want)
        assert_close(received(found["key_mass"], length, key, offset=offset), want)


def biased(strength: float, heads: int, length: int = 64):
    """Queries and keys whose score is ``strength`` on the first key and 0 elsewhere, in the first half of the heads."""
    q = jnp.zeros((length, heads, 2)).at[..., 0].set(jnp.sqrt(2.0))
    k = jnp.zeros((length, heads, 2)).at[0, : heads // 2, 0].set(strength)
    return q, k, jnp.zeros((length, heads, 1))


def rate(q, k, v, **knobs):
    first, all_keys = (statistics.mass_on(masks.sinks(n), name=str(n)) for n in (1, k.shape[-3]))
    _, found = attend(q, k, v, mask=masks.causal(), stats=[first, all_keys], **knobs)
    total = found[all_keys.name]
    return sink_rate(mean_received(found["1"] / jnp.where(total > 0, total, 1)))


def test_the_rate_counts_the_heads_with_a_sink():
    assert rate(*biased(8.0, heads=8)) == 0.5
    assert rate(*biased(0.0, heads=8)) == 0.0  # uniform attention of 64 tokens: alpha is H_64 / 64 = 0.07


def test_the_paper_s_threshold_is_crossed_where_the_formula_says():
    """With score b on the first key, alpha = mean_t e^b / (e^b + t) over t = 0 .. 63."""
    alpha = lambda b: np.mean(np.exp(b) / (np.exp(b) + np.arange(64)))
    strengths = np.linspace(1.0, 4.0, 13)
    assert min(alpha(b) for b in strengths) < 0.3 < max(alpha(b) for b in strengths)
    for b in strengths:
        assert rate(*biased(b, heads=2)) == (0.5 if alpha(b) > 0.3 else 0.0)


def test_a_key_bias_takes_the_sink():
    """Key bias, section 7: a key k* with value 0 before all others; the sink moves from the first token to it."""
    q, k, v = biased(6.0, heads=2)
    star = jnp.zeros((1, 2, 2)).at[..., 0].set(20.0)
    v = jax.random.normal(jax.random.key(0), v.shape)
    keys, values = jnp.concatenate([star, k]), jnp.concatenate([jnp.zeros_like(v[:1]), v])
    slot, first = masks.sinks(1), masks.from_function(lambda b, n, t, s: s == 1)
    stats = [statistics.mass_on(slot, name="slot"), statistics.mass_on(first, name="first")]
    output, found = attend(q, keys, values, mask=masks.causal(1), stats=stats)
    assert sink_rate(mean_received(found["slot"])) == 1.0
    assert sink_rate(mean_received(found["first"], key=1, offset=1)) == 0.0
    assert rate(q, k, v) == 0.5  # without the bias
    # The queries' score of k* is the same here, so that k* with value 0 is softmax's sink logit.
    as_sink = attend(q, k, v, mask=masks.causal(), normalizer=normalizers.softmax(sink=20.0))
    assert_close(output, as_sink)


def similarity(function, normalized: bool) -> normalizers.Normalizer:
    """Section 7's variants, ``w_ts = sim(s_ts)``, over their sum where normalized, as a monoid."""

    def lift(score, visible, v):
        w = jnp.where(visible, function(score), 0)
        return w.sum(1), w @ v

    def finalize(state):
        total = jnp.where(state[0] > 0, state[0], 1)[:, None]
        return jnp.where((state[0] > 0)[:, None], state[1] / total, 0) if normalized else state[1]

    return normalizers.from_monoid(
        init=lambda rows, width, dtype: (jnp.zeros(rows, dtype), jnp.zeros((rows, width), dtype)),
        lift=lift,
        combine=lambda a, b: (a[0] + b[0], a[1] + b[1]),
        finalize=finalize,
    )


ELU_PLUS_ONE = lambda s: jnp.where(s > 0, s, jnp.expm1(jnp.minimum(s, 0))) + 1
VARIANTS = {
    "sigmoid": (jax.nn.sigmoid, False),
    "normalized sigmoid": (jax.nn.sigmoid, True),
    "elu plus one": (ELU_PLUS_ONE, False),
    "normalized elu plus one": (ELU_PLUS_ONE, True),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("form", ["dense", "blocks"])
def test_variants_of_the_similarity(getkey, name, form):
    q, k, v = projections(getkey, length=19)
    function, normalized = VARIANTS[name]
    weights = jnp.tril(function(jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(8)))
    weights = row_shares(weights) if normalized else weights
    normalizer = similarity(function, normalized)
    got = attend(q, k, v, mask=masks.causal(), normalizer=normalizer, implementation=form)
    assert_close(got, jnp.einsum("bnts,bsnh->btnh", weights, v))
    assert_close(attention_weights(q, k, mask=masks.causal(), normalizer=normalizer), weights)
    if name == "sigmoid":
        own = attend(q, k, v, mask=masks.causal(), normalizer=normalizers.sigmoid(bias=0.0), implementation=form)
        assert_close(own, got)


@pytest.mark.parametrize(
    "normalizer", [normalizers.sigmoid(bias=0.0), normalizers.signed_softmax()], ids=["sigmoid", "signed"]
)
def test_weights_that_do_not_sum_to_one_are_taken_as_shares(getkey, normalizer):
    q, k, _ = projections(getkey, batch=())
    shares = row_shares(attention_weights(q, k, mask=masks.causal(), normalizer=normalizer))
    assert_close(shares.sum(-1), jnp.ones(shares.shape[:-1]))
    assert not row_shares(jnp.zeros((1, 2, 3))).any()


def test_a_sink_of_sigmoid_attention_needs_a_much_larger_score():
    """The same scores: softmax has a sink in half of the heads, sigmoid in none (1 against 1/2 each)."""
    q, k, v = biased(8.0, heads=8)
    assert rate(q, k, v) == 0.5
    assert rate(q, k, v, normalizer=normalizers.sigmoid(bias=0.0)) == 0.0


def test_mistakes_are_named():
    with pytest.raises(
        ValueError, match=r"key=4: no query at or after it among 4 queries \(offset=0\); want a key from 0 to 3"
    ):
        mean_received(jnp.zeros((4, 1)), key=4)
    with pytest.raises(ValueError, match=r"key=-1: no query"):
        received(jnp.zeros((4, 1)), queries=4, key=-1)
    with pytest.raises(ValueError, match=r"key=5: got 5 keys, want one of them"):
        received(jnp.zeros((5, 1)), queries=9, key=5)
