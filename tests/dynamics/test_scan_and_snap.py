"""The layer of Scan and Snap: its own gradient, its batches, and how its loss falls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.dynamics import scan_and_snap as layer
from attnjax.tasks import Sequences, sequences, token_classes

CLASSES = [
    {},
    {"last": 1, "next_per_last": 2, "common": 1, "distinct": 3},
    {"last": 3, "next_per_last": 2, "common": 0, "common_per_last": 2, "distinct_weights": (0.5, 3.0)},
]


def on_tokens(params: layer.Params, drawn: Sequences) -> jax.Array:
    """The layer as the paper has it, token by token: softmax over positions, one-hot values."""
    m = params.y.shape[0]
    tokens = jax.nn.one_hot(drawn.context, m, dtype=params.y.dtype)  # [B, L, M]
    b = jax.nn.softmax(jnp.take_along_axis(params.z[drawn.last], drawn.context, axis=1))
    bag = jnp.einsum("bl,blm->bm", b, tokens)
    logits = bag / jnp.linalg.norm(bag, axis=1, keepdims=True) @ params.y
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), drawn.next[:, None], axis=1).mean()


@pytest.mark.parametrize("of", CLASSES)
def test_the_closed_form_gradient_is_that_of_the_layer_on_tokens(of):
    with jax.enable_x64(True):
        classes = token_classes(**of)
        m = classes.contextual.shape[1]

        @jax.jit
        def both():
            drawn = sequences(jax.random.key(1), classes, batch=5, length=20)
            params = layer.Params(*jax.random.normal(jax.random.key(2), (2, m, m)))
            batch = layer.count(drawn, m)
            by_tokens = jax.value_and_grad(on_tokens)(params, drawn)
            return layer.loss(params, batch), layer.ascent(params, batch), by_tokens

        loss, by_hand, (loss_on_tokens, gradient) = both()
        np.testing.assert_allclose(loss, loss_on_tokens, rtol=1e-12)
        np.testing.assert_allclose(by_hand.y, -gradient.y, atol=1e-12)
        np.testing.assert_allclose(by_hand.z, -gradient.z, atol=1e-12)
        assert jnp.abs(by_hand.z).max() > 1e-3


@pytest.mark.parametrize("of", CLASSES)
def test_contexts_follow_the_law_of_their_class(of):
    classes = token_classes(**of)
    m = classes.contextual.shape[1]
    np.testing.assert_allclose(classes.contextual.sum(1), 1, rtol=1e-6)
    draw = jax.jit(lambda key: layer.count(sequences(key, classes, batch=600, length=401), m))
    classes, batch = jax.device_get((classes, draw(jax.random.key(0))))
    assert (batch.counts.sum(1) == 400).all()
    for index, law in enumerate(classes.contextual):
        chosen = batch.next == classes.next[index]
        assert (batch.last[chosen] == classes.last[index]).all()
        share = batch.counts[chosen].mean(0) / 400
        spread = np.sqrt(law * (1 - law) / (400 * chosen.sum()))
        assert (np.abs(share - law) <= 5 * spread).all()


def test_a_class_has_its_own_tokens_and_shares_the_common_ones():
    classes = token_classes(last=2, next_per_last=2, common=3, common_per_last=1, distinct=2)
    holders = (classes.contextual > 0).sum(0)
    assert holders.tolist() == [4, 4, 4, 2, 2, *[1] * 8, *[0] * 6]
    assert classes.last.tolist() == [13, 13, 14, 14]
    assert classes.next.tolist() == [15, 16, 17, 18]


def test_step_is_heavy_ball():
    classes = token_classes()
    batch = layer.population(classes)
    first, info = layer.step(layer.init(34), batch, rate_y=0.5, rate_z=2.0, momentum=0.9)
    np.testing.assert_allclose(info.loss, np.log(34), rtol=1e-6)
    second, _ = layer.step(first, batch, rate_y=0.5, rate_z=2.0, momentum=0.9)
    velocity = jax.tree.map(lambda v, d: 0.9 * v + d, first.velocity, layer.ascent(first.params, batch))
    np.testing.assert_allclose(second.params.y, first.params.y + 0.5 * velocity.y, rtol=1e-6)
    np.testing.assert_allclose(second.params.z, first.params.z + 2.0 * velocity.z, rtol=1e-6)
    assert second.step == 2


def test_bad_input_names_itself():
    for wrong in (
        {"last": 0},
        {"distinct": 0},
        {"common": -1},
        {"common_weight": 0.0},
        {"distinct_weights": (-1.0, 1.0)},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            token_classes(**wrong)
    for wrong in ({"batch": 0, "length": 5}, {"batch": 1, "length": 1}):
        with pytest.raises(ValueError, match="at least"):
            sequences(jax.random.key(0), token_classes(), **wrong)
