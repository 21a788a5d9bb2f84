"""`as_attention_fn` inside Flax's own layers."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import attend, masks, normalizers
from attnjax.nn import as_attention_fn

X = jax.random.normal(jax.random.key(0), (2, 9, 16))
VISIBLE = jax.random.bernoulli(jax.random.key(1), 0.7, (2, 1, 9, 9)) | jnp.eye(9, dtype=bool)[None, None]


def nnx_layer(**options):
    return nnx.MultiHeadAttention(4, 16, decode=False, rngs=nnx.Rngs(0), **options)


def linen_output(**options):
    layer = flax.linen.MultiHeadDotProductAttention(4, **options)
    params = flax.linen.MultiHeadDotProductAttention(4).init(jax.random.key(3), X)
    return jnp.asarray(layer.apply(params, X, mask=VISIBLE))


@pytest.mark.parametrize("kv_heads", [None, 2])
def test_nnx_layer_gives_what_its_own_function_gives(kv_heads):
    ours, theirs = (
        nnx_layer(num_kv_heads=kv_heads, **options) for options in (dict(attention_fn=as_attention_fn()), {})
    )
    np.testing.assert_allclose(ours(X), theirs(X), atol=1e-5)
    if kv_heads is None:
        np.testing.assert_allclose(ours(X, mask=VISIBLE), theirs(X, mask=VISIBLE), atol=1e-5)


def test_linen_layer_gives_what_its_own_function_gives():
    np.testing.assert_allclose(linen_output(attention_fn=as_attention_fn()), linen_output(), atol=1e-5)


def test_gradients_agree():
    def gradient(layer):
        graph, params = nnx.split(layer)
        return jax.grad(lambda p: (nnx.merge(graph, p)(X, mask=VISIBLE) ** 2).sum())(params)

    ours, theirs = gradient(nnx_layer(attention_fn=as_attention_fn())), gradient(nnx_layer())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


def test_own_mask_and_the_layers_mask_are_intersected():
    layer = nnx_layer(attention_fn=as_attention_fn(mask=masks.window(2)))
    both = nnx_layer(attention_fn=as_attention_fn(mask=masks.window(2) & masks.from_array(VISIBLE)))
    np.testing.assert_allclose(layer(X, mask=VISIBLE), both(X), atol=1e-6)


def test_is_causal():
    layer = nnx_layer(attention_fn=as_attention_fn())
    causal = nnx_layer(attention_fn=as_attention_fn(mask=masks.causal()))
    np.testing.assert_allclose(layer(X, is_causal=True), causal(X), atol=1e-6)


def test_bias_is_added_to_the_scores():
    q, bias = jax.random.normal(jax.random.key(0), (5, 2, 4)), jnp.where(jnp.tri(5, dtype=bool), 0.0, -1e9)
    np.testing.assert_allclose(as_attention_fn()(q, q, q, bias), attend(q, q, q, mask=masks.causal()), atol=1e-6)


def test_normalizer_is_used():
    layer = nnx_layer(attention_fn=as_attention_fn(normalizer=normalizers.sigmoid()))
    assert not np.allclose(layer(X), nnx_layer()(X), atol=1e-3)


def test_dropout_is_refused_unless_deterministic():
    layer = nnx_layer(attention_fn=as_attention_fn(), dropout_rate=0.5, deterministic=False)
    with pytest.raises(NotImplementedError, match="dropout_rate: got 0.5"):
        layer(X)
    assert layer(X, deterministic=True).shape == X.shape


def test_what_cannot_reach_a_streamed_attention_is_refused():
    layer = nnx_layer(attention_fn=as_attention_fn())
    with pytest.raises(NotImplementedError, match="sow_weights"):
        layer(X, sow_weights=True)
    with pytest.raises(NotImplementedError, match="precision"):
        nnx_layer(attention_fn=as_attention_fn(), precision="highest")(X)
