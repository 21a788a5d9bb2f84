"""Causal linear attention on x_{t+1} = W x_t: the layer against its definition, theory against exact averages."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.dynamics import autoregressive_attention as layer
from attnjax.dynamics import autoregressive_attention_theory as theory
from attnjax.tasks import initial_states, linear_sequences


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def random_params(d: int) -> layer.Params:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    return layer.Params(draw(d, 2 * d), draw(2 * d, 2 * d))


def test_predictions_follow_the_definition():
    params, (b, t, d) = random_params(3), (2, 6, 3)
    x = linear_sequences(jax.random.key(1), jax.random.normal(jax.random.key(2), (b, d)), length=t)
    found = layer.predict(params, x)
    for n in range(b):
        states = np.asarray(x[n])
        tokens = np.concatenate([states, np.concatenate([np.zeros((1, d)), states[:-1]])], axis=1)
        for now in range(2, t):
            seen = tokens[:now].T
            want = params.w_pv @ seen @ (seen.conj().T @ params.w_kq @ seen[:, -1]) / (now - 1)
            np.testing.assert_allclose(found[n, now - 2], want, rtol=1e-10)


def test_descent_goes_down_in_real_and_imaginary_parts():
    start = layer.State(random_params(2), jnp.zeros((), jnp.int32))
    x = linear_sequences(jax.random.key(1), jnp.ones((4, 2)), length=5)
    leaves, tree = jax.tree.flatten(start.params)

    def of_parts(parts):
        return layer.loss(tree.unflatten([re + 1j * im for re, im in parts]), x)

    gradient = jax.grad(of_parts)([(leaf.real, leaf.imag) for leaf in leaves])
    after, info = layer.step(start, x, 0.1)
    for new, old, (re, im) in zip(after.params, leaves, gradient, strict=True):
        np.testing.assert_allclose(new, old - 0.1 * (re + 1j * im), rtol=1e-10)
    np.testing.assert_allclose(info.gradient_norm**2, sum(float((re**2 + im**2).sum()) for re, im in gradient))


def exact_ensemble(law: str, length: int, modulus: float, scale: float):
    """Every sequence of a quadrature that averages exactly, D = 2, and its weight."""
    grid = np.arange(2 * length + 1) / (2 * length + 1) * 2 * np.pi  # exact for frequencies up to 2 T
    if law == "gaussian":  # exact up to degree 7
        nodes, weights = np.polynomial.hermite_e.hermegauss(4)
        pairs = list(itertools.product(range(4), repeat=2))
        starts = [(nodes[i], nodes[j]) for i, j in pairs]
        of_starts = [weights[i] * weights[j] / (2 * np.pi) for i, j in pairs]
    else:
        starts = [(1, 0), (-1, 0), (0, 1), (0, -1)]
        of_starts = [0.25] * 4
    x, weight = [], []
    for start, w in zip(starts, of_starts, strict=True):
        for phases in itertools.product(grid, repeat=2):
            powers = modulus ** np.arange(length)[:, None] * np.exp(1j * np.outer(np.arange(length), phases))
            x.append(scale * np.array(start) * powers)
            weight.append(w / len(grid) ** 2)
    return jnp.asarray(np.array(x)), jnp.asarray(weight)


@pytest.mark.parametrize(
    ("law", "modulus", "scale"), [("gaussian", 1.0, 1.0), ("sparse", 1.0, 0.7), ("gaussian", 0.8, 1.3)]
)
def test_loss_and_flow_are_exact_averages(law, modulus, scale):
    """The population loss, and its gradient with respect to every entry of both matrices."""
    length, a, b = 5, 0.3, 0.8
    x, weight = exact_ensemble(law, length, modulus, scale)
    moments = theory.moments(law, dimension=2, scale=scale)
    params = layer.init(2, a, b).params
    params = jax.tree.map(lambda w: w.astype(complex), params)
    average = lambda params: weight @ jax.vmap(lambda one: layer.loss(params, one[None]))(x)
    np.testing.assert_allclose(average(params), theory.population_loss(a * b, moments, length, 2, modulus), rtol=1e-10)
    velocity = jax.tree.map(lambda g: -g.conj(), jax.grad(average)(params))
    da, db = theory.flow(jnp.array(a), jnp.array(b), theory.rates(moments, length, modulus))
    want = layer.init(2, da, db).params
    for got, expected in zip(velocity, want, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-10)


@pytest.mark.parametrize(
    ("d", "length", "limit"), [(5, 100, 0.1919), (5, 20, 0.1731), (10, 20, 0.1482), (2, 6, 0.1811), (5, 60, 0.1880)]
)
def test_limits_of_gaussian_starts(d, length, limit):
    """1 / (5 + (D - 1) H_{T-2} / (T - 2)) at unit variance, with H the harmonic number."""
    harmonic = (1 / np.arange(1, length - 1)).sum()
    found = theory.limit(theory.moments("gaussian", dimension=d), length)
    np.testing.assert_allclose(found, 1 / (5 + (d - 1) * harmonic / (length - 2)), rtol=1e-12)
    np.testing.assert_allclose(found, limit, atol=5e-5)
    np.testing.assert_allclose(theory.limit(theory.moments("sparse", dimension=d, scale=0.5), length), 4, rtol=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.1, 0.1), (0.5, 1.5), (2.0, 2.0), (1.5, 0.0)])
def test_the_closed_form_solves_the_flow(a, b):
    by = theory.rates(theory.moments("gaussian", dimension=5), 20)
    times = jnp.linspace(0.0, 8 / by.g, 50)
    product = lambda t: theory.product_at(t, a, b, by)
    s = product(times)
    np.testing.assert_allclose(s[0], a * b, atol=1e-12)
    size = jnp.sqrt((a**2 - b**2) ** 2 + 4 * s**2)  # a^2 + b^2, for a^2 - b^2 is conserved
    np.testing.assert_allclose(
        jax.vmap(jax.grad(product))(times), size * (by.g - by.k * s), rtol=1e-8, atol=1e-8 * by.g
    )


def test_moments_are_those_of_the_samples():
    for law in ("gaussian", "sparse", "full-one"):
        x = np.asarray(initial_states(jax.random.key(0), law, batch=200_000, dimension=3, scale=0.8))
        moments = theory.moments(law, dimension=3, scale=0.8)
        mixed = sum((x[:, 0] ** 2 * x[:, r] ** 4).mean() for r in (1, 2))
        got = [(x[:, 0] ** n).mean() for n in (2, 4, 6)] + [mixed]
        np.testing.assert_allclose(got, np.array(moments), rtol=0.08, atol=1e-12)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="law must be one of gaussian, sparse, full-one, got 'uniform'"):
        initial_states(jax.random.key(0), "uniform", batch=2, dimension=2)
    with pytest.raises(ValueError, match="law must be one of"):
        theory.moments("uniform", dimension=2)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        linear_sequences(jax.random.key(0), jnp.ones((2, 2)), length=0)
    with pytest.raises(ValueError, match="dimension must be at least 1, got 0"):
        layer.init(0, 1.0, 1.0)
    with pytest.raises(ValueError, match="at least three states"):
        layer.predict(layer.init(2, 1.0, 1.0).params, jnp.ones((1, 2, 2), complex))
    with pytest.raises(ValueError, match="length must be at least 3, got 2"):
        theory.limit(theory.moments("sparse", dimension=2), 2)
