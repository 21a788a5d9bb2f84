"""Rotary encoding: an isometry that makes dot products depend on distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.positions import rotary


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_norm_is_preserved():
    x = normal(0, 2, 7, 3, 8)
    y = rotary(x, jnp.arange(7) * 13)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)


def test_position_zero_is_left_alone():
    x = normal(0, 5, 2, 6)
    np.testing.assert_array_equal(rotary(x, jnp.zeros(5, int)), x)


@pytest.mark.parametrize("shift", [1, 17, -4])
def test_products_depend_on_differences_of_positions_only(shift):
    q, k, at = normal(0, 6, 1, 16), normal(1, 6, 1, 16), jnp.arange(6)

    def products(offset):
        rotated_q, rotated_k = rotary(q, at + offset), rotary(k, at + offset)
        return jnp.einsum("tnh,snh->ts", rotated_q, rotated_k)

    np.testing.assert_allclose(products(shift), products(0), atol=1e-4)


def test_matches_complex_multiplication():
    x, at = np.asarray(normal(0, 4, 2, 6)), np.array([0, 1, 5, 100])
    z = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * at[:, None, None] * 10000.0 ** (-np.arange(3) / 3))
    np.testing.assert_allclose(rotary(jnp.asarray(x), jnp.asarray(at)), np.concatenate([z.real, z.imag], -1), atol=1e-5)


def test_positions_may_differ_in_the_batch():
    x, at = normal(0, 2, 3, 1, 4), jnp.array([[0, 1, 2], [5, 6, 7]])
    np.testing.assert_array_equal(rotary(x, at)[1], rotary(x[1], at[1]))


def test_dtype_is_kept_and_gradient_flows():
    assert rotary(normal(0, 3, 1, 4).astype(jnp.bfloat16), jnp.arange(3)).dtype == jnp.bfloat16
    gradient = jax.grad(lambda x: (rotary(x, jnp.arange(3)) ** 2).sum())(normal(0, 3, 1, 4))
    np.testing.assert_allclose(gradient, 2 * normal(0, 3, 1, 4), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (dict(x=(3, 1, 5), positions=(3,)), "x: got head dimension 5"),
        (dict(x=(3, 1, 4), positions=(4,)), r"positions: got shape \(4,\)"),
        (dict(x=(3, 1, 4), positions=(3,), base=-1.0), "base: got -1.0"),
    ],
)
def test_mistakes_are_named(arguments, text):
    base = arguments.get("base", 10000.0)
    with pytest.raises(ValueError, match=text):
        rotary(jnp.zeros(arguments["x"]), jnp.zeros(arguments["positions"], int), base=base)
