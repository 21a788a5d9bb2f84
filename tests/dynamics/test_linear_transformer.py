"""Layers against gradient descent and against Monte-Carlo; rates against brute force."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from attnjax.dynamics import linear_attention_theory
from attnjax.dynamics import linear_transformer as layer
from attnjax.dynamics import linear_transformer_theory as theory
from attnjax.tasks import linear_regression


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def test_layers_follow_the_definition():
    rng = np.random.default_rng(0)
    params = layer.Params(*(jnp.asarray(rng.standard_normal((2, 4, 4))) for _ in range(2)))
    tokens = jnp.asarray(rng.standard_normal((3, 6, 4)))
    found = layer.transform(params, tokens)
    for one, want in zip(np.asarray(tokens), found, strict=True):
        z = one.T
        keys = np.diag([1.0] * 5 + [0.0])  # the query is not attended to
        for pv, kq in zip(*params, strict=True):
            z = z + pv @ z @ keys @ (z.T @ kq @ z) / 5
        np.testing.assert_allclose(want, z.T, rtol=1e-10)


@pytest.mark.parametrize("steps", [1, 3])
def test_constructed_layers_are_steps_of_gradient_descent(steps):
    prompts = linear_regression(jax.random.key(0), batch=5, length=7, covariance=jnp.array([2.0, 1.0, 0.5]), noise=0.3)
    preconditioners = 0.3 * jax.random.normal(jax.random.key(1), (steps, 3, 3))
    found = layer.predict(layer.descent(layer.Free(jnp.zeros((steps, 3, 3)), preconditioners)), prompts)
    for index in range(5):
        x, y = np.asarray(prompts.x[index]), np.asarray(prompts.y[index])
        w = np.zeros(3)
        for q in np.asarray(preconditioners):
            w = w + q.T @ x.T @ (y - x @ w) / 7
        np.testing.assert_allclose(found[index], w @ prompts.x_query[index], rtol=1e-10)
    np.testing.assert_allclose(theory.descend(prompts, preconditioners), found, rtol=1e-10)


@pytest.mark.parametrize(("inputs", "tail"), [("gaussian", 1.0), ("uniform", 1.0), ("sphere", 1.0), ("gamma", 0.5)])
def test_laws_have_their_moments_and_one_step_its_risk(inputs, tail):
    d, n = 3, 8
    prompts = linear_regression(
        jax.random.key(3), batch=60_000, length=n, covariance=jnp.ones(d), inputs=inputs, tail=tail
    )
    x = prompts.x
    np.testing.assert_allclose(jnp.einsum("bid,bie->de", x, x) / x[..., 0].size, jnp.eye(d), atol=0.02)
    fourth = theory.fourth_moment(inputs, d, tail)
    measured = jnp.mean(jnp.sum(x**2, axis=-1) * x[..., 0] ** 2)
    np.testing.assert_allclose(measured, fourth, rtol=0.05)
    rate = theory.best_rate(n, fourth)
    errors = (theory.descend(prompts, rate * jnp.eye(d)[None]) - prompts.y_query) ** 2
    np.testing.assert_allclose(errors.mean(), theory.one_step_risk(d, n, fourth), rtol=0.05)


def test_gaussian_inputs_agree_with_the_one_layer_theory():
    fourth = theory.fourth_moment("gaussian", 4)
    task = linear_attention_theory.Task(jnp.eye(4), length=9)
    np.testing.assert_allclose(
        linear_attention_theory.best_product(task)[0, 0], theory.best_rate(9, fourth), rtol=1e-12
    )
    least = 2 * linear_attention_theory.minimal_loss(task)
    np.testing.assert_allclose(least, theory.one_step_risk(4, 9, fourth), rtol=1e-12)


def sampled_spectrum():
    return theory.spectra(linear_regression(jax.random.key(0), batch=400, length=10, covariance=jnp.ones(3)))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_best_rates_are_the_best(steps):
    spectrum = sampled_spectrum()
    rates = theory.best_rates(spectrum, steps)
    of = lambda labels: float(theory.risk(spectrum, theory.Rates(jnp.asarray(labels), jnp.zeros(steps))))
    rng = np.random.default_rng(0)
    searched = min(
        minimize(of, rng.uniform(0.3, 1.5, steps), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).fun
        for _ in range(4)
    )
    np.testing.assert_allclose(of(rates.labels), searched, rtol=1e-6)


@pytest.mark.parametrize("inputs", [(0.0, 0.0), (0.4, 0.2)])
def test_residual_is_that_of_the_layers(inputs):
    """Predictions of layers with multiples of the identity, beside the residual of the prompt's own spectrum."""
    prompts = linear_regression(jax.random.key(1), batch=4, length=6, covariance=jnp.ones(3))
    labels = jnp.array([0.7, 1.1])
    eye = jnp.eye(3)[None]
    free = layer.Free(jnp.asarray(inputs)[:, None, None] / labels[:, None, None] * eye, labels[:, None, None] * eye)
    found = prompts.y_query - layer.predict(layer.descent(free), prompts)
    for index in range(4):
        x = prompts.x[index]
        values, vectors = jnp.linalg.eigh(x.T @ x / 6)
        left = vectors @ jnp.diag(theory.residual(values, theory.Rates(labels, jnp.asarray(inputs)))) @ vectors.T
        w = jnp.linalg.lstsq(x, prompts.y[index])[0]
        np.testing.assert_allclose(found[index], w @ left @ prompts.x_query[index], rtol=1e-8)


def test_moving_the_inputs_helps():
    spectrum = sampled_spectrum()
    for steps in (2, 3):
        plain = theory.risk(spectrum, theory.best_rates(spectrum, steps))
        moving = theory.risk(spectrum, theory.best_transforming_rates(spectrum, steps))
        assert float(moving) < 0.7 * float(plain)
    one = theory.best_transforming_rates(spectrum, 1)
    np.testing.assert_allclose(one.labels, theory.best_rates(spectrum, 1).labels)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="layers must be at least 1, got 0"):
        inspect.unwrap(layer.init)(jax.random.key(0), dimension=2, layers=0, scale=1.0, optimizer=None)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        theory.best_rates(jnp.ones((1, 2)), 0)
    with pytest.raises(ValueError, match="inputs must be one of gaussian, uniform, sphere, gamma, got 'cauchy'"):
        theory.fourth_moment("cauchy", 3)
    with pytest.raises(ValueError, match="inputs must be gaussian, uniform, sphere or gamma, got 'cauchy'"):
        linear_regression(jax.random.key(0), batch=1, length=2, covariance=jnp.ones(2), inputs="cauchy")
