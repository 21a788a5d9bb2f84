"""The small language model."""

import jax
import numpy as np
import pytest
from flax import nnx

from attnjax import masks, normalizers, statistics
from attnjax.nn import TransformerLM

TOKENS = jax.random.randint(jax.random.key(0), (2, 12), 0, 50)


def model(**options):
    defaults = dict(layers=2, heads=4, mask=masks.causal(), rngs=nnx.Rngs(0))
    return TransformerLM(50, 32, **{**defaults, **options})


@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_parameters(tied):
    lm = model(tied=tied)
    assert lm(TOKENS).shape == (2, 12, 50)
    size = sum(leaf.size for leaf in jax.tree.leaves(nnx.split(lm, nnx.Param, ...)[1]))
    assert size == 50 * 32 * (1 if tied else 2) + 2 * (12 * 32**2 + 2 * 32) + 32


def test_the_future_is_invisible():
    lm = model()
    changed = TOKENS.at[:, 8:].set((TOKENS[:, 8:] + 1) % 50)
    np.testing.assert_allclose(lm(changed)[:, :8], lm(TOKENS)[:, :8], atol=1e-5)
    assert not np.allclose(lm(changed)[:, 8:], lm(TOKENS)[:, 8:], atol=1e-3)


def test_statistics_have_a_row_for_each_layer():
    first, everything = (statistics.mass_on(masks.sinks(n), name=str(n)) for n in (1, 12))
    _, found = model()(TOKENS, stats=("entropy", "key_mass", first, everything))
    assert all(value.shape == (2, 2, 12, 4) for value in found.values())
    np.testing.assert_allclose(found["12"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(found["1"].sum(2), found["key_mass"][:, :, 0], rtol=1e-4)


def test_learns_to_copy_one_step():
    from optax import adam, apply_updates, softmax_cross_entropy_with_integer_labels

    graph, params, rest = nnx.split(model(normalizer=normalizers.softmax_plus_one()), nnx.Param, ...)
    optimizer = adam(1e-2)

    def loss(params, tokens):
        logits = nnx.merge(graph, params, rest)(tokens)
        return softmax_cross_entropy_with_integer_labels(logits[:, 1:], tokens[:, :-1]).mean()

    @jax.jit
    def step(params, state, key):
        value, gradient = jax.value_and_grad(loss)(params, jax.random.randint(key, (8, 12), 0, 50))
        update, state = optimizer.update(gradient, state)
        return apply_updates(params, update), state, value

    state, losses = optimizer.init(params), []
    for number in range(150):
        params, state, value = step(params, state, jax.random.key(number))
        losses.append(float(value))
    assert losses[0] > 3
    assert np.mean(losses[-10:]) < 0.5


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="vocab, layers: got 50, 0"):
        model(layers=0)
