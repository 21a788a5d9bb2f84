"""Writes of an associative memory against what they are said to be, and laws of their noise against draws.

The noise of Hebb's sum itself is measured in `test_mechanisms.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import linear
from attnjax.linear import hebbian
from attnjax.linear import memory_theory as theory

pytestmark = pytest.mark.usefixtures("x64")

once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pairs(draws, count, heads, features, width=16, seed=0):
    k, v = unit(draw(draws, count, heads, features, seed=seed)), unit(draw(draws, count, heads, width, seed=seed + 1))
    return jnp.asarray(k), jnp.asarray(v)


def assert_near(got, want, bound=1e-10):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * max(1.0, float(np.max(np.abs(want)))))


def assert_measured(samples, predicted):
    """Means over draws within their intervals, 2.6 standard errors or five thousandths."""
    samples = np.asarray(samples)
    half = 2.6 * samples.std(0) / np.sqrt(len(samples))
    print(f"predicted {predicted}, measured {samples.mean(0)} +- {half}")
    assert np.all(np.abs(samples.mean(0) - predicted) < np.maximum(half, 0.005 * np.abs(predicted) + 1e-12))


# --- writes


def test_writes_leave_what_linear_attention_holds():
    k, v = pairs(2, 20, 3, 5)
    decay = -jnp.abs(jnp.asarray(draw(2, 20, 3)))

    @once
    def both(k, v, decay):
        held = lambda run: run[1].value[..., 0, :, :]
        return (
            (hebbian.hebb(k, v), held(linear.attend(k, k, v, return_state=True))),
            (hebbian.hebb(k, v, decay), held(linear.attend(k, k, v, log_decay=decay, return_state=True))),
            (hebbian.delta(k, v, -decay), held(linear.attend(k, k, v, beta=-decay, return_state=True))),
        )

    for got, want in both(k, v, decay):
        assert_near(got, want)
    assert_near(hebbian.read(hebbian.delta(k, v), k)[:, -1], v[:, -1])
    queries = jnp.asarray(draw(2, 4, 6, 5))  # two of each head
    state = np.asarray(hebbian.hebb(k, v))
    want = np.einsum("bnhv,btnh->btnv", np.repeat(state, 2, axis=1), queries)
    assert_near(hebbian.read(hebbian.hebb(k, v), queries), want)
    memory = hebbian.covariance(k, v)
    centered = np.asarray(queries) - np.repeat(np.asarray(k).mean(1), 2, 1)[:, None]
    want = np.einsum("bnhv,btnh->btnv", np.repeat(np.asarray(memory.state), 2, axis=1), centered)
    assert_near(hebbian.read_centered(memory, queries), want + np.repeat(np.asarray(v).mean(1), 2, 1)[:, None])


def test_the_covariance_rule_does_not_see_what_all_pairs_share():
    k, v = pairs(1, 12, 2, 6)
    plain, moved = hebbian.covariance(k, v), hebbian.covariance(k + 3 * k[:, :1], v - 2)
    assert_near(moved.state, plain.state)
    assert_near(hebbian.read_centered(moved, k + 3 * k[:, :1]), hebbian.read_centered(plain, k) - 2)


def test_least_squares_are_what_writes_are_held_against():
    """Exact for as many independent keys as there are features; with a penalty, the normal equations."""
    k, v = pairs(1, 6, 2, 6)
    assert_near(hebbian.read(hebbian.ridge(k, v), k), v)
    own, values = np.asarray(k[0, :, 1]), np.asarray(v[0, :, 1])
    want = np.linalg.solve(own.T @ own + 0.3 * np.eye(6), own.T @ values)
    assert_near(hebbian.ridge(k, v, 0.3)[0, 1], want)
    with pytest.raises(ValueError, match="penalty: got -1, want at least 0"):
        hebbian.ridge(k, v, -1)


def test_values_of_one_size_never_outweigh_keys_with_little_interference():
    """The sign of every entry is right while ``interference`` is below 1, whatever the values; beyond it some are not."""
    k = jnp.asarray(unit(draw(400, 8, 1, 64)))
    worst = np.asarray(hebbian.interference(k)).max((1, 2))
    for i in (int(np.argmin(worst)), int(np.argmax(worst))):
        products = np.asarray(k[i, :, 0] @ k[i, :, 0].T)
        values = np.sign(products) * np.where(np.eye(8, dtype=bool), 1, -1)  # against each key, the worst there are
        read = hebbian.read(hebbian.hebb(k[i], jnp.asarray(values)[:, None]), k[i])[:, 0]
        assert bool(jnp.all(jnp.diagonal(read) > 0)) == (worst[i] < 1)
        assert_near(np.diagonal(read), 1 - np.asarray(hebbian.interference(k[i]))[:, 0])
    assert worst.min() < 1 < worst.max()


def test_oja_turns_to_the_first_components():
    """Settled, as far from the first as the law says; two columns span the first two, of unit length."""
    spectrum, rate, draws = np.array([2.0, 1.0, 0.5, 0.25]), 0.01, 200
    x, start = draw(draws, 3000, 4) * np.sqrt(spectrum), draw(draws, 4, 2, seed=1)
    run = once(hebbian.oja)
    one = np.asarray(run(*(jnp.asarray(a) for a in (start[..., :1], x)), rate))[..., 0]
    sines = 1 - one[:, 0] ** 2 / np.sum(one**2, 1)
    predicted = float(theory.oja_angle(jnp.asarray(spectrum), rate))
    print(f"squared sine: predicted {predicted:.4f}, measured {sines.mean():.4f}")
    assert abs(sines.mean() / predicted - 1) < 0.2
    two = np.asarray(run(*(jnp.asarray(a) for a in (0.3 * start[:2], x[:2])), rate))
    assert np.all(np.abs(np.swapaxes(two, 1, 2) @ two - np.eye(2)) < 0.25)
    assert np.all(np.sum(two[:, :2] ** 2, (1, 2)) > 0.9 * np.sum(two**2, (1, 2)))


# --- laws


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_the_noise_of_corrected_writes_by_age(beta):
    """Exactly, also where there are more pairs than features: the familiar ``1 - (1 - 1 / d)^s`` is half of it there."""
    k, v = pairs(400, 24, 1, 8)
    state = once(lambda k, v: hebbian.delta(k, v, jnp.full(k.shape[:-1], beta)))(k, v)
    found = np.asarray(jnp.sum((hebbian.read(state, k) - v) ** 2, -1))[:, ::-1, 0]
    law = theory.delta_noise(24, 8, beta)
    ages = np.array([0, 1, 8, 23])
    assert_measured(found[:, ages], law[ages])
    assert_measured(found.mean(1), law.mean())
    few, slow = theory.delta_noise(8, 10_000), 1 - (1 - 1e-4) ** np.arange(8)
    assert_near(few, slow, 1e-5)
    assert np.mean(1 - (1 - 1 / 32) ** np.arange(64)) < 0.6 * theory.delta_noise(64, 32).mean()


def test_the_noise_of_decaying_writes_by_age():
    k, v = pairs(400, 24, 1, 32)
    errors = lambda k, v: jnp.sum(
        (hebbian.read(hebbian.hebb(k, v, jnp.full(k.shape[:-1], jnp.log(0.9))), k) - v) ** 2, -1
    )
    ages = np.array([0, 3, 12, 23])
    assert_measured(np.asarray(errors(k, v))[:, ::-1, 0][:, ages], theory.decay_noise(24, 32, 0.9)[ages])


def test_the_noise_of_keys_with_a_common_part():
    k, v = pairs(600, 16, 1, 64)
    common = jnp.asarray(unit(draw(600, 1, 1, 64, seed=5)))
    shared = k + common
    error = lambda read: np.asarray(jnp.mean(jnp.sum((read - v) ** 2, -1), (1, 2)))
    assert_measured(error(hebbian.read(hebbian.hebb(shared, v), shared)), theory.common_noise(16, 64, 1.0))
    centered = hebbian.read_centered(hebbian.covariance(shared, v), shared)
    assert_measured(error(centered), theory.covariance_noise(16, 64))


@pytest.mark.parametrize("heads", [1, 4])
def test_the_noise_that_layers_add(heads):
    """Each layer's values are the keys of the next, of all its heads."""
    layers, count, features, draws = 3, 9, 16, 500
    keys = jnp.asarray(unit(draw(layers + 1, draws, count, heads, features)))
    words = jnp.asarray(unit(draw(draws, count, 1, 16, seed=3)))
    values = [*(x.reshape(draws, count, 1, -1) for x in keys[1:layers]), words]
    read = keys[0]
    for own, value in zip(keys[:layers], values, strict=True):
        state = hebbian.hebb(own, jnp.broadcast_to(value, (*own.shape[:-1], value.shape[-1])))
        read = jnp.mean(hebbian.read(state, read), -2).reshape(draws, count, -1, value.shape[-1])
        read = read.reshape(own.shape) if value is not words else read
    errors = np.asarray(jnp.mean(jnp.sum((read - words) ** 2, -1), (1, 2)))
    assert_measured(errors, theory.chain_noise(layers, count, features, heads))


def test_how_many_pairs_are_safe_grows_as_the_root_of_the_features():
    """Where the worst of the draws' sums of products reaches 1, in the mean, and the law's slope."""
    for features, most in ((16, 10), (256, 30)):
        k = jnp.asarray(unit(draw(200, most, features)))
        products = np.abs(np.asarray(jnp.einsum("bih,bjh->bij", k, k)))
        sums = np.cumsum(products, 2) - 1  # of the first n keys
        worst = np.stack([sums[:, : n + 1, n].max(1) for n in range(most)], 1)
        found = np.sum(worst < 1, 1).mean()
        print(features, found, theory.guaranteed_capacity(features))
        assert found == pytest.approx(theory.guaranteed_capacity(features), rel=0.15)
    slope = np.log(theory.guaranteed_capacity(2.0**20) / theory.guaranteed_capacity(2.0**16)) / np.log(16)
    assert slope == pytest.approx(0.5, abs=0.03)
    assert theory.capacity(256, heads=2) == 129


def test_how_many_words_are_found_is_a_matter_of_their_noise():
    """The nearest of 200 words to what is read of a sum, beside a word with normal noise of the same size."""
    counts = np.array([4, 16, 48])
    k, _ = pairs(200, 48, 1, 16)
    book = jnp.asarray(unit(draw(200, 200, 16, seed=4)))
    law = theory.recall(jax.random.key(0), jnp.asarray((counts - 1) / 16), jnp.ones(3), words=200, width=16)

    @once
    def share(stored):
        v = jnp.where(stored[..., None, None], book[:, :48, None], 0)
        read = hebbian.read(hebbian.hebb(k, v), k)[:, :, 0]
        right = jnp.argmax(jnp.einsum("bnv,bwv->bnw", read, book), -1) == jnp.arange(48)[None]
        return jnp.sum(right & stored, (0, 1)) / jnp.sum(stored * 200)

    found = np.array([share(jnp.arange(48)[None] < count) for count in counts])
    print(found, law)
    assert np.all(np.abs(found - law) < 0.05)
    assert found[0] > 0.9 > 0.5 > found[2]
