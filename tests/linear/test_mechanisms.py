"""Named mechanisms against what they are said to be."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, linear, masks
from tests.references import linear as reference

pytestmark = pytest.mark.usefixtures("x64")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_near(got, want, bound=1e-10):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * max(1.0, float(np.max(np.abs(want)))))


# --- features


@pytest.mark.parametrize("causal", [True, False])
def test_features_against_their_weights(causal):
    """Written out as matrices over all pairs of tokens."""
    q, k, v = draw(3, 2, 20, 2, 5)
    seen = np.tril(np.ones((20, 20))) if causal else np.ones((20, 20))
    products = np.einsum("btnh,bsnh->bnts", q, k)
    fast = 1 + products / np.sqrt(5) + products**2 / 10
    elu = lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))
    exponential = np.einsum("btnh,bsnh->bnts", np.exp(1.5 * q), np.exp(0.7 * k))
    arrays = [jnp.asarray(x) for x in (q, k, v)]
    for got, matrix in (
        (linear.fastmax(*arrays, causal=causal), fast),
        (linear.linear_attention(*arrays, causal=causal), np.einsum("btnh,bsnh->bnts", elu(q), elu(k))),
        (linear.log_normal(*arrays, 1.5, 0.7, causal=causal), exponential),
    ):
        matrix = matrix * seen
        assert_near(got, np.einsum("bnts,bsnv->btnv", matrix / matrix.sum(-1, keepdims=True), v))
    one = linear.fastmax(*arrays, order=1, causal=causal)
    matrix = (1 + products / np.sqrt(5)) * seen
    assert_near(one, np.einsum("bnts,bsnv->btnv", matrix / matrix.sum(-1, keepdims=True), v), 1e-8)


def test_how_near_to_softmax_cut_off_exponentials_are():
    """Mean L1 distance of rows, standardized queries and keys of 64 features: .46 of order 1, .20 of order 2."""
    q, k = draw(2, 256, 1, 64)
    standard = lambda x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    q, k = standard(q), standard(k)
    softmax = jax.nn.softmax(jnp.asarray(np.einsum("tnh,snh->nts", q, k)) / 8, -1)
    distance = {}
    for order in (1, 2):
        found = linear.weights(jnp.asarray(q), jnp.asarray(k), linear.fastmax, order=order, causal=False)
        distance[order] = float(jnp.mean(jnp.sum(jnp.abs(found - softmax), -1)))
    print(distance)
    assert distance[1] == pytest.approx(0.46, abs=0.02)
    assert distance[2] == pytest.approx(0.20, abs=0.02)


def test_log_normal_weights_vary_as_softmax_does():
    """Variance of the logs of the weights at unit variance of queries and keys: within a factor of 1.5 of softmax's for
    16 to 128 features, as elu + 1 is not within a factor of 20."""
    alpha, beta = linear.log_normal_scales(jnp.ones(()), jnp.ones(()))
    knobs: dict = {"causal": False, "form": "parallel"}
    for width in (16, 128):
        q, k = (jnp.asarray(x) for x in draw(2, 256, 1, width))
        logs = {
            "softmax": jax.nn.log_softmax(jnp.einsum("tnh,snh->nts", q, k) / np.sqrt(width), -1),
            "log normal": jnp.log(linear.weights(q, k, linear.log_normal, alpha=alpha, beta=beta, **knobs)),
            "elu": jnp.log(linear.weights(q, k, linear.linear_attention, **knobs)),
        }
        variance = {name: float(jnp.mean(jnp.var(x, -1))) for name, x in logs.items()}
        print(width, variance)
        assert 1 / 1.55 < variance["log normal"] / variance["softmax"] < 1.55
        assert variance["elu"] < 0.05 * variance["softmax"]


# --- sums of powers


def test_retention_is_attention_with_weights_that_decay():
    q, k, v = draw(3, 2, 30, 4, 6)
    gamma = 1 - 2.0 ** (-5 - np.arange(4))
    np.testing.assert_allclose(np.exp(linear.retention_decay(4)), gamma, rtol=1e-6)
    distance = np.arange(30)[:, None] - np.arange(30)[None, :]
    weights = np.where(distance >= 0, gamma[:, None, None] ** np.maximum(distance, 0), 0)
    want = np.einsum("btnh,bsnh,nts,bsnv->btnv", q, k, weights, v) / np.sqrt(6)
    got = linear.retention(*map(jnp.asarray, (q, k, v)), log_decay=jnp.log(jnp.asarray(gamma)))
    assert_near(got, want)


def test_slopes_of_lightning_attention():
    """Of a number of heads that is no power of two, as the authors print them."""
    np.testing.assert_allclose(-linear.lightning_decay(8, 0, 2), (1 + 1e-5) * 2.0 ** -np.arange(1, 9), rtol=1e-6)
    slopes = -linear.lightning_decay(6, 0, 2) / (1 + 1e-5)
    np.testing.assert_allclose(slopes, [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125], rtol=1e-6)
    assert float(linear.lightning_decay(8, 11, 12)[0]) == pytest.approx(-0.5e-5)


def test_a_constant_gate_is_retention_and_an_open_one_plain_attention():
    q, k, v = map(jnp.asarray, draw(3, 2, 20, 2, 5))
    gated = linear.gated_linear_attention(q, k, v, jnp.full(k.shape, -0.3))
    assert_near(gated, linear.retention(q, k, v, log_decay=jnp.full(2, -0.3)))
    assert_near(linear.gated_linear_attention(q, k, v, jnp.zeros(k.shape)), linear.attend(q, k, v) / np.sqrt(5))


def test_a_state_space_is_its_recurrence():
    c, b, x = draw(3, 2, 20, 2, 5)
    step, rate, skip = np.exp(draw(2, 20, 2, seed=1) - 2), -np.array([1.0, 4.0]), np.array([0.5, -1.0])
    want, _ = reference.attend(c, b * step[..., None], x, log_decay=step * rate)
    got = linear.state_space(*map(jnp.asarray, (c, b, x, step, rate, skip)))
    assert_near(got, want + skip[:, None] * x)


# --- softmax by feature


@pytest.mark.parametrize("size", [1.0, 80.0])
@pytest.mark.parametrize("causal", [True, False])
def test_light_net_and_latte_are_softmax_over_keys_for_each_feature(size, causal):
    q, k, v = draw(3, 2, 20, 2, 5)
    k = size * k
    seen = np.tril(np.ones((20, 20), bool)) if causal else np.ones((20, 20), bool)
    logits = np.where(seen[None, :, :, None, None], k[:, None], -np.inf)  # [B, T, S, N, H]
    weights = np.asarray(jax.nn.softmax(logits, axis=2))
    readers = np.asarray(jax.nn.softmax(q, -1))
    arrays = [jnp.asarray(x) for x in (q, k, v)]
    for form in ("chunked", "scan", "recurrent", "parallel"):
        of = lambda mechanism, form=form: mechanism(*arrays, form=form, chunk_size=7, causal=causal)
        assert_near(of(linear.light_net), np.einsum("btnh,btsnh,bsnv->btnv", q, weights, v) / np.sqrt(5))
        assert_near(of(linear.latte), np.einsum("btnh,btsnh,bsnv->btnv", readers, weights, v))


def test_the_rank_of_latent_attention():
    """Bidirectional weights have as many ranks as there are latents, causal ones all; their rows sum to one."""
    q, k = (jnp.asarray(x) for x in draw(2, 60, 1, 8))
    weights = lambda causal: linear.latte(q, k, jnp.eye(60)[:, None], causal=causal)[:, 0]
    assert np.linalg.matrix_rank(weights(False)) == 8
    assert np.linalg.matrix_rank(weights(True)) == 60
    assert_near(weights(True).sum(-1), np.ones(60))


def test_the_last_state_of_light_net_does_not_know_the_order_of_tokens():
    q, k, v = (jnp.asarray(x) for x in draw(3, 40, 1, 5))
    order = np.random.default_rng(1).permutation(40)
    last = lambda k, v: linear.light_net(q, k, v, return_state=True)[1]
    sums = lambda state: state.value[..., :-1] / state.value[..., -1:]
    assert_near(sums(last(k[order], v[order])), sums(last(k, v)))
    decays = -jnp.abs(k)
    gated = lambda k, v, a: linear.gated_linear_attention(q, k, v, a, return_state=True)[1].value
    assert float(jnp.max(jnp.abs(gated(k[order], v[order], decays[order]) - gated(k, v, decays)))) > 0.1


@pytest.mark.parametrize("form", ["chunked", "recurrent", "scan"])
def test_causal_softmax_attention_of_one_query_is_a_state_of_one_feature(form):
    """The two halves of the library meet: softmax over keys so far is a sum of writes at the scales of their logits."""
    query, k, v = draw(2, 5), 40 * draw(30, 2, 5), draw(30, 2, 4)
    arrays = [jnp.asarray(x) for x in (query, k, v)]
    got = linear.aaren(*arrays, form=form)
    assert_near(got, attend(jnp.broadcast_to(arrays[0], k.shape), *arrays[1:], mask=masks.causal()))


# --- exclusive reads


@pytest.mark.parametrize("form", ["recurrent", "chunked", "parallel", "scan"])
@pytest.mark.parametrize("causal", [True, False])
def test_wkv_weighs_distance_and_the_own_key_apart(form, causal):
    """Against the sum over all pairs, with logits of up to a hundred."""
    k, v = 40 * draw(2, 23, 3), draw(2, 23, 3, seed=1)
    rate, own = np.array([0.02, 0.5, 3.0]), draw(3, seed=2)
    distance = np.abs(np.arange(23)[:, None] - np.arange(23)[None, :])
    logits = k[:, None] - np.where(distance > 0, distance - 1, 0)[:, :, None] * rate
    logits = np.where((distance == 0)[:, :, None], k[:, None] + own, logits)
    if causal:
        logits = np.where(np.tril(np.ones((23, 23), bool))[:, :, None], logits, -np.inf)
    want = np.einsum("btsc,bsc->btc", np.asarray(jax.nn.softmax(logits, axis=2)), v)
    got = linear.wkv(*(jnp.asarray(x) for x in (k, v, rate, own)), causal=causal, form=form, chunk_size=7)
    assert_near(got, want)


@pytest.mark.parametrize("form", ["recurrent", "chunked", "parallel", "scan"])
def test_an_exclusive_read_sees_its_own_write_by_the_bonus(form):
    """RWKV-6: a decay for each feature, and a bonus that may be negative."""
    q, k, v = draw(3, 2, 20, 2, 5)
    decay, bonus = -np.abs(draw(2, 20, 2, 5, seed=1)), draw(2, 5, seed=2)
    want, _ = reference.attend(q, k, v, log_decay=decay, exclusive=True)
    want = want + np.sum(q * bonus * k, -1, keepdims=True) * v
    arrays = [jnp.asarray(x) for x in (q, k, v)]
    knobs = {"log_decay": jnp.asarray(decay), "exclusive": True, "bonus": jnp.asarray(bonus)}
    assert_near(linear.attend(*arrays, **knobs, form=form, chunk_size=6), want)


# --- corrections


@pytest.mark.parametrize("form", ["recurrent", "chunked", "parallel", "scan"])
def test_titans_is_gradient_descent_with_momentum(form):
    q, k, v = draw(2, 40, 4, 6), draw(2, 40, 2, 6, seed=1), draw(2, 40, 2, 3, seed=2)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    rng = np.random.default_rng(3)
    rate, momentum, forget = (rng.uniform(0, high, (2, 40, 2)) for high in (1.0, 0.9, 0.3))
    momentum[0, 5], forget[1, 7] = 0, 1  # both are allowed
    want = reference.titans(q, k, v, rate, momentum, forget)
    arrays = [jnp.asarray(x) for x in (q, k, v, rate, momentum, forget)]
    for size in (1, 7, 16):
        assert_near(linear.titans(*arrays, form=form, chunk_size=size), want)
    first, state = linear.titans(*(x[:, :13] for x in arrays), form=form, return_state=True)
    rest = linear.titans(*(x[:, 13:] for x in arrays), form=form, state=state, chunk_size=7)
    assert_near(jnp.concatenate([first, rest], 1), want)


def test_titans_without_momentum_is_a_delta_rule():
    """With weight decay it is the gated one only at another strength and other values: not at the same."""
    q, k, v = (jnp.asarray(x) for x in draw(3, 1, 30, 1, 4))
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    q = q / 2  # what the delta rule divides by
    rate, alpha = jnp.full((1, 30, 1), 0.7), jnp.full((1, 30, 1), 0.1)
    assert_near(linear.titans(q, k, v, rate), linear.delta_rule(2 * q, k, v, rate))
    got, decay = linear.titans(q, k, v, rate, forget=alpha), jnp.log1p(-alpha)
    mapped = linear.delta_rule(2 * q, k, v * (1 - alpha)[..., None], rate / (1 - alpha), log_decay=decay)
    assert_near(got, mapped)
    naive = linear.delta_rule(2 * q, k, v, rate, log_decay=decay)
    assert float(jnp.max(jnp.abs(got - naive))) > 1e-2


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_where_a_memory_with_momentum_diverges(momentum):
    """Heavy ball: one key, written over and over, converges while theta |k|^2 < 2 (1 + eta)."""
    ones = jnp.ones((2000, 1, 1))
    memory = lambda theta: linear.titans(ones, ones, ones, ones[..., 0] * theta, ones[..., 0] * momentum)[-1, 0, 0]
    bound = 2 * (1 + momentum)
    assert abs(float(memory(0.97 * bound)) - 1) < 1e-6
    assert not abs(float(memory(1.03 * bound)) - 1) < 1e6


def test_the_delta_rule_forgets_only_what_it_must():
    """Orthogonal keys are all read exactly; a key written again holds its last value."""
    keys = jnp.asarray(np.linalg.qr(draw(6, 6))[0])[:, None]
    values = jnp.asarray(draw(6, 1, 3, seed=1))
    strength = jnp.ones((7, 1))
    k, v = jnp.concatenate([keys, keys[:1]]), jnp.concatenate([values, values[-1:]])
    _, state = linear.delta_rule(k, k, v, strength, return_state=True)
    read = jnp.einsum("nh,hv->nv", keys[:, 0], state.value[0, 0])
    assert_near(read, jnp.concatenate([values[-1:], values[1:]])[:, 0])


# --- what a state holds


@pytest.mark.parametrize(("features", "pairs"), [(64, 33), (64, 129), (256, 65)])
def test_the_noise_of_a_sum_of_products(features, pairs):
    """Reading one of n pairs with random unit keys: squared error (n - 1) / d of unit values."""
    rng = np.random.default_rng(0)
    unit = lambda *shape: (x := rng.standard_normal(shape)) / np.linalg.norm(x, axis=-1, keepdims=True)
    k, v = unit(200, pairs, 1, features), unit(200, pairs, 1, 16)
    arrays = [jnp.asarray(x) for x in (k, k, v)]
    _, state = linear.attend(*arrays, return_state=True)
    read = jnp.einsum("btnh,bnhv->btnv", arrays[0], state.value[:, :, 0])
    errors = np.asarray(jnp.sum((read - arrays[2]) ** 2, -1)).mean(1)
    predicted, measured = (pairs - 1) / features, errors.mean()
    half = 2.6 * errors.std() / np.sqrt(len(errors))
    print(f"predicted {predicted:.4f}, measured {measured:.4f} +- {half:.4f}")
    assert abs(measured - predicted) < half + 1e-3


def test_corrected_writes_leave_less_noise_than_sums_and_the_last_one_none():
    """Squared error of all pairs in the middle of the delta rule's range, and of the one written last."""
    rng = np.random.default_rng(1)
    unit = lambda *shape: (x := rng.standard_normal(shape)) / np.linalg.norm(x, axis=-1, keepdims=True)
    k, v = (jnp.asarray(unit(100, 32, 1, width)) for width in (64, 16))

    def errors(state):
        read = jnp.einsum("btnh,bnhv->btnv", k, state.value[:, :, 0])
        return np.asarray(jnp.mean(jnp.sum((read - v) ** 2, -1)[..., 0], 0))

    summed = errors(linear.attend(k, k, v, return_state=True)[1])
    corrected = errors(linear.delta_rule(k, k, v, jnp.ones((100, 32, 1)), return_state=True)[1])
    print(summed.mean(), corrected.mean(), corrected[-1])
    assert corrected.mean() < 0.75 * summed.mean()
    assert corrected[-1] < 1e-20


def test_gradients_of_the_delta_rule_on_a_machine_as_it_is():
    """Without this suite's simulated devices, whose threads hide it: XLA's solver of triangles waited here forever."""
    program = """
import jax, jax.numpy as jnp
from attnjax import linear
keys = jax.random.split(jax.random.key(0), 5)
q, k, v = (jax.random.normal(key, (512, 8, 64)) / 8 for key in keys[:3])
beta, decay = (jax.random.uniform(key, (512, 8)) for key in keys[3:])
loss = jax.jit(jax.grad(lambda *x: (linear.delta_rule(*x) ** 2).sum(), (0, 1, 2, 3, 4)))
for _ in range(3):
    jax.block_until_ready(loss(q, k, v, beta, -decay))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
