"""The products of small matrices are einsum's, under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.dynamics._products import LONGEST, product


def einsum(a, b):
    return jnp.einsum("ijb,jkb->ikb", a, b)


@pytest.fixture
def pair(getkey, x64):
    return jax.random.normal(getkey(), (2, 3, 5)), jax.random.normal(getkey(), (3, 4, 5))


def test_derivatives_of_any_order(pair):
    square = lambda f: lambda a, b: jnp.sum(f(a, b) ** 2)
    tangents = jax.tree.map(jnp.cos, pair)
    for of in (
        lambda f: jax.jit(f)(*pair),
        lambda f: jax.jvp(f, pair, tangents),
        lambda f: jax.grad(square(f), (0, 1))(*pair),
        lambda f: jax.jvp(jax.grad(square(f), (0, 1)), pair, tangents),
        lambda f: jax.hessian(square(f))(*pair),
    ):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12), of(product), of(einsum))


@pytest.mark.parametrize("in_axes", [(0, 0), (1, 0), (None, 2), (0, None)])
def test_mapped_twice(in_axes, getkey):
    shapes = [(2, 3, 5), (3, 4, 5)]
    a, b = (
        jax.random.normal(getkey(), (6, *(shape if axis is None else (*shape[:axis], 7, *shape[axis:]))))
        for shape, axis in zip(shapes, in_axes, strict=True)
    )
    of = lambda f: jax.vmap(jax.vmap(f, in_axes))(a, b)
    np.testing.assert_allclose(of(product), of(einsum), rtol=1e-5, atol=1e-5)


def test_long_sums_are_einsum(getkey):
    a, b = jax.random.normal(getkey(), (2, LONGEST + 1, 2)), jax.random.normal(getkey(), (LONGEST + 1, 1, 2))
    assert "while" not in jax.jit(product).lower(a, b).as_text()
    np.testing.assert_allclose(product(a, b), einsum(a, b), rtol=1e-4)
