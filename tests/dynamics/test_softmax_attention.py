"""Softmax heads against loops, and what they can reach against sampling and against the debiased step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.dynamics import softmax_attention as layer
from attnjax.dynamics import softmax_attention_theory as theory
from attnjax.dynamics.linear_attention_theory import Task, risk
from attnjax.tasks import linear_regression, several_regressions


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def strengths(omega, mu, d):
    """Circuits that have a strength and read the label, and nothing else."""
    kq = np.zeros((len(omega), d + 1, d + 1))
    kq[:, :d, :d] = np.asarray(omega)[:, None, None] * np.eye(d)
    ov = np.zeros((len(mu), d + 1))
    ov[:, -1] = mu
    return layer.Circuits(jnp.asarray(kq), jnp.asarray(ov))


def test_heads_follow_the_definition():
    rng = np.random.default_rng(0)
    params = layer.Params(*(jnp.asarray(rng.standard_normal((2, 4, 4))) for _ in range(3)), jnp.ones((2, 4)))
    prompts = linear_regression(jax.random.key(0), batch=3, length=5, covariance=jnp.ones(3), noise=0.2)
    found = layer.predict(layer.circuits(params), prompts)
    for index in range(3):
        z = np.concatenate([prompts.x[index], prompts.y[index][:, None]], axis=1)
        query, total = np.append(prompts.x_query[index], 0.0), 0.0
        for q, k, v, o in zip(*params, strict=True):
            scores = (z @ k.T) @ (q @ query) / 2  # sqrt(4)
            weights = np.exp(scores) / np.exp(scores).sum()
            total += o @ (v @ (weights @ z))
        np.testing.assert_allclose(found[index], total, rtol=1e-10)


@pytest.mark.parametrize(("omega", "mu"), [((0.5,), (1.4,)), ((0.3, -0.2), (1.5, -1.0))])
def test_moments_give_the_risk_of_heads(omega, mu):
    """By sampling tasks, noise and inputs, where the closed form samples inputs alone."""
    d, length, noise = 3, 12, 0.5
    of = theory.moments(jax.random.key(0), jnp.asarray(omega), dimension=d, length=length, noise=noise)
    draw = lambda key: linear_regression(
        key, batch=4096, length=length, covariance=jnp.ones(d), prior=jnp.ones(d) / d, noise=noise
    )
    error = lambda key: (lambda p: jnp.mean((layer.predict(strengths(omega, mu, d), p) - p.y_query) ** 2))(draw(key))
    errors = np.asarray(jax.lax.map(error, jax.random.split(jax.random.key(1), 20)))
    assert abs(errors.mean() - float(theory.risk(jnp.asarray(mu), of))) < 4 * errors.std() / 20**0.5 + 0.01


def test_a_weak_opposite_pair_is_one_debiased_step():
    """Centered examples, which plain gradient descent does not have; the error falls as omega squared."""
    d, rate = 3, 0.8
    prompts = linear_regression(jax.random.key(0), batch=50, length=9, covariance=jnp.ones(d), noise=0.3)
    x, y = (part - part.mean(1, keepdims=True) for part in (prompts.x, prompts.y))
    step = rate * jnp.einsum("bi,bid,bd->b", y, x, prompts.x_query) / 9
    errors = []
    for omega in (0.1, 0.01):
        of = strengths((omega, -omega), (rate / (2 * omega), -rate / (2 * omega)), d)
        errors.append(float(jnp.abs(layer.predict(of, prompts) - step).max()))
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.1)


def test_the_debiased_optimum_is_the_best_of_its_kind():
    """Its risk by sampling, and no multiple of its step has less."""
    task = Task(jnp.diag(jnp.array([1.5, 0.5])), 8, prior=jnp.eye(2) / 2, noise=0.4)
    step = theory.debiased_step(task)
    prompts = linear_regression(
        jax.random.key(0), batch=200_000, length=8, covariance=task.covariance, prior=task.prior, noise=task.noise
    )
    x, y = (part - part.mean(1, keepdims=True) for part in (prompts.x, prompts.y))
    guess = jnp.einsum("bi,bid,de,be->b", y, x, step, prompts.x_query) / 8
    of = lambda factor: float(jnp.mean((factor * guess - prompts.y_query) ** 2))
    assert of(1.0) == pytest.approx(float(theory.debiased_risk(task)), rel=0.01)
    assert of(1.0) < min(of(0.9), of(1.1))
    with pytest.raises(ValueError, match="length must be at least 2"):
        theory.debiased(task._replace(length=1))


def test_ridge_is_better_than_any_step_and_has_its_sampled_risk():
    d, length, noise = 3, 12, 0.5
    task = Task(jnp.eye(d), length, prior=jnp.eye(d) / d, noise=noise)
    prompts = linear_regression(
        jax.random.key(0), batch=50_000, length=length, covariance=jnp.ones(d), prior=jnp.ones(d) / d, noise=noise
    )
    x, y = prompts.x, prompts.y
    gram = jnp.einsum("bid,bie->bde", x, x) + noise**2 * d * jnp.eye(d)[None]
    w = jnp.linalg.solve(gram, jnp.einsum("bid,bi->bd", x, y)[..., None])[..., 0]
    measured = float(jnp.mean((jnp.sum(w * prompts.x_query, axis=1) - prompts.y_query) ** 2))
    least = float(theory.ridge_risk(jax.random.key(1), task))
    assert measured == pytest.approx(least, rel=0.03)
    assert least < float(theory.debiased_risk(task))


def test_risk_of_a_query_of_another_law():
    """`linear_attention_theory.risk` with the query's own covariance, by sampling."""
    covariance, query = jnp.diag(jnp.array([1.5, 0.5])), jnp.array([[1.0, 0.6], [0.6, 2.0]])
    prior, product = jnp.diag(jnp.array([2.0, 0.7])), jnp.array([[0.4, 0.1], [0.0, 0.7]])
    task = Task(covariance, 6, prior=prior, noise=0.3)
    prompts = linear_regression(
        jax.random.key(0),
        batch=400_000,
        length=6,
        covariance=covariance,
        prior=prior,
        noise=0.3,
        query_covariance=query,
    )
    guess = jnp.einsum("bi,bid,de,be->b", prompts.y, prompts.x, product, prompts.x_query) / 6
    measured = float(jnp.mean((guess - prompts.y_query) ** 2))
    assert measured == pytest.approx(float(risk(product, task, query)), rel=0.01)


PRIORS = np.array([[0.7, 0.3, 0.0], [0.0, 0.5, 0.2]])


def test_rates_of_several_labels_have_their_sampled_risk():
    """Any rates, by sampling."""
    a, length, noise = np.array([[0.8, 0.1, 0.3], [-0.2, 0.9, 0.5]]), 7, 0.4
    prompts = several_regressions(
        jax.random.key(0), batch=400_000, length=length, priors=jnp.asarray(PRIORS), noise=noise
    )
    x, y = (part - part.mean(1, keepdims=True) for part in (prompts.x, prompts.y))
    guess = jnp.einsum("bik,bid,kd,bd->bk", y, x, a, prompts.x_query) / length
    measured = jnp.mean((guess - prompts.y_query) ** 2, axis=0)
    of = theory.rates(jnp.asarray(PRIORS), length=length, noise=noise)
    np.testing.assert_allclose(measured, theory.rates_risk(jnp.asarray(a), of), rtol=0.01)


def test_no_rates_of_the_rank_do_better():
    """Against random ones of rank one, each scaled as well as can be; with more heads each label has its own."""
    of = theory.rates(jnp.asarray(PRIORS), length=20, noise=0.2)
    total = lambda a: float(theory.rates_risk(a, of).sum())
    best = theory.best_rates(of, 2)
    assert np.linalg.matrix_rank(best, tol=1e-8) == 1
    mu, omega = jax.random.normal(jax.random.key(0), (20_000, 2)), jax.random.normal(jax.random.key(1), (20_000, 3))
    a = mu[:, :, None] * omega[:, None]
    gains, curvatures = jnp.sum(of.gain[None] * a, (1, 2)), jnp.sum(of.curvature[None] * a**2, (1, 2))
    random = float(of.power.sum() - jnp.max(gains**2 / curvatures))
    assert total(best) < random < total(best) + 0.02
    assert total(best) > total(theory.best_rates(of, 3)) + 0.05
    np.testing.assert_allclose(theory.best_rates(of, 3), of.gain / of.curvature)
    with pytest.raises(ValueError, match="one head cannot"):
        theory.best_rates(of, 1)


def test_weak_heads_take_the_rates():
    """Three heads, two labels: readings that sum to zero, and strengths that differ between inputs."""
    rng = np.random.default_rng(0)
    strengths_, mu = rng.standard_normal((3, 3)), rng.standard_normal((3, 2))
    mu -= mu.mean(0)
    prompts = several_regressions(jax.random.key(0), batch=50, length=9, priors=jnp.asarray(PRIORS), noise=0.3)
    x, y = (part - part.mean(1, keepdims=True) for part in (prompts.x, prompts.y))
    step = jnp.einsum("bik,bid,kd,bd->bk", y, x, mu.T @ strengths_, prompts.x_query) / 9
    weak = 1e-4
    kq, ov = np.zeros((3, 5, 5)), np.zeros((3, 2, 5))
    kq[:, range(3), range(3)] = weak * strengths_
    ov[:, range(2), range(3, 5)] = mu / weak
    found = layer.predict(layer.Circuits(jnp.asarray(kq), jnp.asarray(ov)), prompts)
    np.testing.assert_allclose(found, step, atol=2e-3)
