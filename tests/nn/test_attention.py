"""The attention layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import attend, masks, normalizers, scores
from attnjax.nn import Attention
from attnjax.positions import rotary

X = jax.random.normal(jax.random.key(0), (2, 11, 24))


def layer(*arguments, **options):
    return Attention(*(arguments or (24, 4)), **{"rngs": nnx.Rngs(0), **options})


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_is_projections_around_attend(kv_heads):
    module = layer(kv_heads=kv_heads, mask=masks.causal())
    q, k = (rotary(f(X), jnp.arange(11)) for f in (module.query, module.key))
    expected = module.out(attend(q, k, module.value(X), mask=masks.causal()))
    np.testing.assert_allclose(module(X), expected, atol=1e-6)
    assert module.key(X).shape == (2, 11, kv_heads, 6)


def test_rotary_makes_order_matter_and_without_it_does_not():
    order = jnp.arange(11)[::-1]
    plain, turned = layer(rotary_base=None), layer()
    np.testing.assert_allclose(plain(X[:, order]), plain(X)[:, order], atol=1e-5)
    assert not np.allclose(turned(X[:, order]), turned(X)[:, order], atol=1e-3)


def test_only_relative_positions_count():
    module = layer(mask=masks.causal())
    np.testing.assert_allclose(module(X, positions=jnp.arange(11) + 40), module(X), atol=1e-4)


def test_statistics_come_beside_the_output():
    y, found = layer(mask=masks.causal())(X, stats=("entropy", "key_mass"))
    np.testing.assert_allclose(y, layer(mask=masks.causal())(X), atol=1e-6)
    assert {name: value.shape for name, value in found.items()} == {"entropy": (2, 11, 4), "key_mass": (2, 11, 4)}
    np.testing.assert_allclose(found["key_mass"].sum(1), 11.0, rtol=1e-5)


def test_knobs_at_the_call_replace_the_layers():
    at_call = layer(mask=masks.causal())(X, mask=masks.window(2), normalizer=normalizers.sigmoid())
    np.testing.assert_array_equal(at_call, layer(mask=masks.window(2), normalizer=normalizers.sigmoid())(X))


@pytest.mark.parametrize(
    ("name", "knob", "size"),
    [
        ("normalizer", normalizers.softmax(sink=jnp.zeros(4)), 4),
        ("normalizer", normalizers.sigmoid(jnp.full(4, -2.0)), 4),
        ("score", scores.relative_bias(jnp.zeros((4, 9))), 36),
        ("score", scores.dot_product() >> scores.alibi(jnp.ones(4)), 4),
    ],
)
def test_arrays_of_a_knob_are_trained_when_asked(name, knob, size):
    def parts(**options):
        return nnx.split(layer(mask=masks.causal(), **{name: knob}, **options), nnx.Param, ...)

    def count(params):
        return sum(leaf.size for leaf in jax.tree.leaves(params))

    graph, params, rest = parts(trainable=(name,))
    assert count(params) == count(parts()[1]) + size
    gradient = jax.grad(lambda p: (nnx.merge(graph, p, rest)(X) ** 2).sum())(params)
    (learned,) = jax.tree.leaves(gradient[name])
    assert np.abs(learned).max() > 0


@pytest.mark.parametrize("graph_mode", [True, False])
def test_split_jit_merge_in_graph_and_tree_mode(graph_mode):
    module = layer(mask=masks.causal(), normalizer=normalizers.softmax(sink=jnp.zeros(4)), trainable=("normalizer",))
    with nnx.set_graph_mode(graph_mode):
        graph, state = nnx.split(module)
        output = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, X)
    np.testing.assert_allclose(output, module(X), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(kv_heads=3), "kv_heads: got 3, wanted a divisor of heads = 4"),
        (dict(trainable=("normaliser",)), "trainable: got"),
        (dict(trainable="score"), "trainable: got 'score'"),
        (dict(trainable=("normalizer",), normalizer=normalizers.softmax()), "carries no floating array"),
    ],
)
def test_mistakes_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        layer(**options)
    with pytest.raises(ValueError, match="heads: got 5, wanted a divisor of model_dim = 24"):
        layer(24, 5)
