"""Closed forms against automatic differentiation, against the flow in float64, and against stored numbers."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.dynamics import linear_attention
from attnjax.dynamics import linear_attention_theory as theory
from attnjax.tasks import geometric_spectrum, random_rotation, rotated

gradient_flow = pytest.importorskip(
    "experiments.in_context_regression.flow", reason="diffrax is in the extra `experiments`"
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make_task(dimension, length, condition, *, noise=0.0, prior=None, seed=0):
    rotation = random_rotation(jax.random.key(seed), dimension)
    return theory.Task(rotated(geometric_spectrum(dimension, condition), rotation), length, prior, noise)


def start(dimension, scale, *, seed=0):
    theta = linear_attention.random_theta(jax.random.key(seed + 100), dimension)
    return theory.blocks(linear_attention.init(theta, scale).params)


CASES = [(3, 5, 30.0), (4, 10, 8.0), (5, 20, 1.0), (7, 50, 10.0), (10, 8, 3.0), (1, 4, 1.0)]


@pytest.mark.parametrize(("dimension", "length", "condition"), CASES)
def test_flow_is_minus_the_gradient(dimension, length, condition):
    prior = rotated(geometric_spectrum(dimension, 2.0), random_rotation(jax.random.key(9), dimension))
    task = make_task(dimension, length, condition, noise=0.4, prior=prior)
    at = theory.Blocks(jax.random.normal(jax.random.key(1), (dimension, dimension)), jnp.array(0.7))
    gradient = jax.grad(theory.population_loss)(at, task)
    jax.tree.map(
        lambda v, g: np.testing.assert_allclose(v, -g, rtol=1e-10, atol=1e-10), theory.flow(at, task), gradient
    )


@pytest.mark.parametrize("noise", [0.0, 0.8])
@pytest.mark.parametrize(("dimension", "length", "condition"), CASES[::2])
def test_flow_ends_at_the_global_minimum(dimension, length, condition, noise):
    task = make_task(dimension, length, condition, noise=noise, seed=dimension)
    begin, minimum = start(dimension, 0.1), theory.global_minimum(task)
    end = gradient_flow.time_to_converge(begin, task)
    path = gradient_flow.follow(begin, task, jnp.linspace(0.0, end, gradient_flow.POINTS))
    np.testing.assert_allclose(path.w[-1], minimum.w, rtol=1e-6)
    np.testing.assert_allclose(path.u[-1], minimum.u, rtol=1e-6, atol=1e-6 * float(minimum.w))
    losses = gradient_flow.losses_along(path, task)
    assert float(losses[-1]) == pytest.approx(float(theory.minimal_loss(task)), rel=1e-9)
    assert (np.diff(losses) <= 1e-10).all()
    balance = path.w**2 - jnp.sum(path.u**2, axis=(1, 2))
    np.testing.assert_allclose(balance, balance[0], atol=1e-8)


def test_the_noise_free_identity_prior_case_is_the_paper_formula():
    """Gamma written out, on a covariance that is no multiple of the identity."""
    task = make_task(4, 10, 8.0)
    s, n = np.asarray(task.covariance), 10
    gamma = (1 + 1 / n) * s + np.trace(s) / n * np.eye(4)
    inverse = np.linalg.inv(gamma)
    root = np.trace(inverse @ inverse) ** 0.25
    minimum = theory.global_minimum(task)
    np.testing.assert_allclose(theory.context_moment(task), gamma @ s, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(minimum.w, root, rtol=1e-9)
    np.testing.assert_allclose(minimum.u, inverse / root, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(theory.minimal_loss(task), 0.5 * (np.trace(s) - np.trace(s @ s @ inverse)), rtol=1e-9)
    np.testing.assert_allclose(theory.largest_init_scale(task) ** 2 * np.linalg.norm(gamma, 2) * 2, 2, rtol=1e-9)


@pytest.mark.parametrize(
    ("dimension", "length", "variance", "noise"), [(5, 20, 1.0, 0.0), (3, 7, 2.0, 0.5), (9, 40, 0.6, 0.0)]
)
def test_isotropic_time_course_is_the_flow(dimension, length, variance, noise):
    task = theory.Task(variance * jnp.eye(dimension), length, noise=noise)
    scale = 0.12
    begin = theory.blocks(linear_attention.init(jnp.eye(dimension), scale).params)
    times = jnp.linspace(0.0, 8 / (math.sqrt(dimension) * variance**2), gradient_flow.POINTS)
    path = gradient_flow.follow(begin, task, times)
    course: dict[str, Any] = dict(
        dimension=dimension, length=length, start=scale**2 / math.sqrt(dimension), variance=variance, noise=noise
    )
    np.testing.assert_allclose(path.w * path.u[:, 0, 0], theory.isotropic_product(times, **course), rtol=1e-6)
    half = theory.isotropic_half_time(**course)
    limit = theory.isotropic_product(jnp.array(jnp.inf), **course)
    np.testing.assert_allclose(theory.isotropic_product(half, **course), limit / 2, rtol=1e-9)


def test_stored_numbers():
    course = theory.isotropic_product(jnp.array([0.5, 1.0, 1.5, 2.0, jnp.inf]), dimension=5, length=20, start=0.01)
    np.testing.assert_allclose(course, [0.084396, 0.411957, 0.703978, 0.761685, 0.769231], atol=1e-6)
    task = theory.Task(jnp.diag(jnp.array([2.0, 1.0, 0.5, 0.25])), 10)
    assert float(theory.global_minimum(task).w) == pytest.approx(1.42694991, abs=1e-8)
    assert float(theory.minimal_loss(task)) == pytest.approx(0.5761058618, abs=1e-10)
    trained = theory.best_product(task)
    assert float(theory.risk(trained, task)) == pytest.approx(1.1522, abs=1e-4)
    assert float(theory.risk(trained, task._replace(length=40))) == pytest.approx(0.5908, abs=1e-4)


def test_no_product_has_less_risk_than_the_best():
    task = make_task(4, 9, 12.0, noise=0.3)
    best = theory.best_product(task)
    for seed in range(5):
        other = best + 0.05 * jax.random.normal(jax.random.key(seed), (4, 4))
        assert float(theory.risk(other, task)) > float(theory.risk(best, task))
    assert float(theory.risk(best, task)) == pytest.approx(2 * float(theory.minimal_loss(task)), rel=1e-12)


def test_the_theorems_bound_has_no_prior():
    with pytest.raises(ValueError, match="task.prior must be None"):
        theory.largest_init_scale(theory.Task(jnp.eye(2), 3, prior=jnp.eye(2)))
