"""Sums over a moving window: the task, the model against loops, the measures, exact losses against enumeration."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attnjax.dynamics import abrupt_learning as layer
from attnjax.dynamics import abrupt_learning_theory as theory
from attnjax.tasks import window_sums


@pytest.mark.parametrize("window", [1, 2, 4])
def test_sums_are_those_of_the_window(window):
    tokens = np.asarray(window_sums(jax.random.key(0), batch=50, length=6, window=window, largest=9, modulus=11))
    x, separator, y = tokens[:, :6], tokens[:, 6], tokens[:, 7:]
    assert x.min() == 1
    assert x.max() == 9
    assert set(separator) == {11}
    for place in range(6):
        want = x[:, place] if place < window - 1 else x[:, place - window + 1 : place + 1].sum(1) % 11
        np.testing.assert_array_equal(y[:, place], want)


def test_impossible_tasks_are_named():
    draw = lambda **change: window_sums(jax.random.key(0), **(dict(batch=1, length=4) | change))
    for change, message in (
        ({"length": 0}, "length must be at least 1"),
        ({"window": 5}, "window must be at most length = 4, got 5"),
        ({"largest": 17}, "modulus must be larger than largest = 17, got 17"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(**change)


@pytest.fixture(scope="module")
def params():
    state = layer.init(jax.random.key(0), vocabulary=8, length=9, width=4, optimizer=optax.sgd(1.0))
    leaves, tree = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(
        tree, [leaf + 0.3 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    )


def test_forward_follows_the_definition(params):
    """Position by position, in NumPy."""
    tokens = np.array([3, 1, 7, 2])
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(x, which):
        scale, bias = w.norms[which]
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * scale + bias

    x = [w.tokens[token] + w.positions[place] for place, token in enumerate(tokens)]
    q, k, v = zip(*(np.split(norm(row, 0) @ w.qkv[0] + w.qkv[1], 3) for row in x), strict=True)
    seen = layer.forward(params, jnp.asarray(tokens)[None])
    for t in range(4):
        a = [q[t] @ k[s] / 2 for s in range(t + 1)]
        np.testing.assert_allclose(seen.attention[0, t, : t + 1], a, rtol=1e-4, atol=1e-5)
        after = x[t] + sum(a[s] * v[s] for s in range(t + 1)) @ w.projection[0] + w.projection[1]
        hidden = np.asarray(jax.nn.gelu(jnp.asarray(norm(after, 1) @ w.hidden[0] + w.hidden[1])))
        after = after + hidden @ w.output[0] + w.output[1]
        np.testing.assert_allclose(seen.logits[0, t], norm(after, 2) @ w.head, rtol=1e-3, atol=1e-4)


def test_factors_multiply_attention(params):
    tokens = jnp.array([[3, 1, 7, 2]])
    factors = jnp.ones((4, 4)).at[3, 1].set(5.0)
    plain, changed = (layer.forward(params, tokens, f).attention for f in (None, factors))
    np.testing.assert_allclose(changed[0, 3, 1], 5 * plain[0, 3, 1], rtol=1e-6)
    np.testing.assert_array_equal(changed[0, :3], plain[0, :3])


def test_writing_reads_its_own_tokens_and_never_the_right_ones(params):
    tokens = jnp.array([[1, 2, 3, 4, 7, 0, 0, 0, 0]])
    other = tokens.at[:, 5:].set(6)
    written = layer.write(params, tokens, 4)
    np.testing.assert_array_equal(written, layer.write(params, other, 4))
    whole = jnp.concatenate([tokens[:, :5], written], axis=1)
    logits = layer.forward(params, whole[:, :-1]).logits
    np.testing.assert_array_equal(jnp.argmax(logits[:, 4:], axis=-1), written)


def test_needed_entries_are_the_terms_of_each_sum():
    for length, window in ((4, 2), (5, 3), (3, 1)):
        expected = np.zeros((2 * length, 2 * length), bool)
        for i in range(length):
            terms = [i] if i < window - 1 else range(i - window + 1, i + 1)
            expected[length + i, list(terms)] = True
        np.testing.assert_array_equal(layer.needed(length, window), expected)


def test_collapse_is_the_mean_cosine_of_pairs():
    hidden = np.random.default_rng(0).standard_normal((2, 4, 3))
    unit = hidden / np.linalg.norm(hidden, axis=-1, keepdims=True)
    pairs = [unit[:, i] * unit[:, j] for i, j in itertools.combinations(range(4), 2)]
    np.testing.assert_allclose(layer.collapse(jnp.asarray(hidden)), np.mean([p.sum(-1) for p in pairs]), rtol=1e-5)


@pytest.mark.parametrize(("length", "window", "largest", "modulus"), [(4, 2, 3, 4), (4, 3, 3, 5), (4, 1, 4, 7)])
def test_exact_numbers_are_those_of_all_sequences(length, window, largest, modulus):
    entropies, repeats = np.zeros(length), 0.0
    sums = []
    for x in itertools.product(range(1, largest + 1), repeat=length):
        sums.append([x[i] if i < window - 1 else sum(x[i - window + 1 : i + 1]) % modulus for i in range(length)])
    y = np.array(sums)
    for place in range(window - 1, length):
        p = np.bincount(y[:, place], minlength=modulus) / len(y)
        entropies[place] = -sum(v * math.log(v) for v in p if v)
    repeats = (y[:, 1:] == y[:, :-1]).mean()
    knobs = dict(length=length, window=window, largest=largest, modulus=modulus)
    assert theory.plateau_loss(**knobs) == pytest.approx(entropies.mean(), abs=1e-12)
    assert theory.repetition(**knobs) == pytest.approx(repeats, abs=1e-12)
