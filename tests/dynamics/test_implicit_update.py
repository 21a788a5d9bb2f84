"""The implicit update is exact for any block: whatever the attention, the norm, the skip connection."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attnjax import attend, masks, normalizers
from attnjax.dynamics import implicit_update as block


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def params():
    params = block.init(jax.random.key(0), dimension=3, width=6, optimizer=optax.sgd(1.0)).params
    return params._replace(w_bias=params.w_bias + 0.3, output_bias=params.output_bias - 0.2)


def test_the_updated_weights_do_without_the_context(params):
    tokens = jax.random.normal(jax.random.key(1), (7, 4))
    a, alone = block.contextual(params, tokens), block.contextual(params, tokens[-1:])
    moved = block.updated(params, a, alone)
    in_context = block.perceptron(params, a)
    np.testing.assert_allclose(block.perceptron(moved, alone), in_context, rtol=1e-12)
    assert abs(float(block.perceptron(params, alone) - in_context)) > 1e-2
    values = jnp.linalg.svd(moved.w - params.w, compute_uv=False)
    assert float(values[1] / values[0]) < 1e-12


@pytest.mark.parametrize(
    "knobs",
    [{}, {"normalizer": normalizers.sigmoid()}, {"normalizer": normalizers.sparsemax()}, {"mask": masks.window(3)}],
)
def test_any_attention_will_do(knobs):
    """Without norm and skip connection, as the theorem states it: T(C, x) = f(W A(C, x))."""
    tokens, rng = jax.random.normal(jax.random.key(1), (7, 4)), np.random.default_rng(0)
    w = jnp.asarray(rng.standard_normal((5, 4)))

    def contextual(tokens):
        heads = tokens[None, :, None]
        return attend(heads[:, -1:] if not knobs.get("mask") else heads, heads, heads, **knobs)[0, -1, 0]

    a, alone = contextual(tokens), contextual(tokens[-1:])
    change = block.implicit_update(w, a, alone)
    np.testing.assert_allclose(jnp.tanh((w + change) @ alone), jnp.tanh(w @ a), rtol=1e-11)


def test_token_by_token_it_is_gradient_descent(params):
    """Each Delta is the gradient of tr(Delta^T W), and the steps add up at every prefix."""
    tokens = jax.random.normal(jax.random.key(1), (7, 4))
    a = jnp.stack([block.contextual(params, jnp.concatenate([tokens[:n], tokens[-1:]])) for n in range(7)])
    deltas = block.implicit_gradients(params.w, a)
    rate = 1 / (a[0] @ a[0])
    for prefix in (1, 4, 6):
        descended = params.w - rate * deltas[:prefix].sum(0)
        np.testing.assert_allclose(descended @ a[0], params.w @ a[prefix], rtol=1e-11)
