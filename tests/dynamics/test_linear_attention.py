"""The layer, its loss and its gradients against loops and against the closed forms' expectations."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.dynamics import linear_attention
from attnjax.dynamics import linear_attention_theory as theory
from attnjax.tasks import geometric_spectrum, linear_regression, prompt_tokens, random_rotation, rotated


@pytest.fixture(scope="module")
def task():
    covariance = rotated(geometric_spectrum(3, 6.0), random_rotation(jax.random.key(5), 3))
    return theory.Task(covariance, 6, prior=jnp.array([[1.0, 0.2, 0], [0.2, 0.5, 0], [0, 0, 1.5]]), noise=0.7)


def random_params(key, size):
    pv_key, kq_key = jax.random.split(key)
    return linear_attention.Params(jax.random.normal(pv_key, (size, size)), jax.random.normal(kq_key, (size, size)))


def test_layer_is_the_paper_formula_with_tokens_as_columns():
    params, n = random_params(jax.random.key(0), 3), 4
    tokens = jax.random.normal(jax.random.key(1), (n + 1, 3))
    e, w_pv, w_kq = (np.asarray(a, np.float64) for a in (tokens.T, *params))
    expected = e + w_pv @ e @ (e.T @ w_kq @ e) / n
    np.testing.assert_allclose(linear_attention.layer(params, tokens), expected.T, rtol=1e-4, atol=1e-4)


def test_predict_is_the_last_entry_of_the_layer(task):
    prompts = linear_regression(jax.random.key(0), batch=5, length=7, covariance=task.covariance, noise=0.3)
    params = random_params(jax.random.key(1), 4)
    expected = linear_attention.layer(params, prompt_tokens(prompts))[:, -1, -1]
    np.testing.assert_allclose(linear_attention.predict(params, prompts), expected, rtol=1e-4, atol=1e-4)


def test_init_is_balanced():
    theta = linear_attention.random_theta(jax.random.key(0), 4)
    params = linear_attention.init(theta, 0.3).params
    u, w = theory.blocks(params)
    assert float(w) == pytest.approx(0.3)
    assert float(jnp.linalg.norm(u)) == pytest.approx(0.3)
    np.testing.assert_allclose(u, u.T, atol=1e-7)
    assert int(jnp.count_nonzero(params.w_pv)) == 1
    assert int(jnp.count_nonzero(params.w_kq)) == 16
    with pytest.raises(ValueError, match="theta must be a square matrix"):
        inspect.unwrap(linear_attention.init)(jnp.ones((2, 3)), 0.1)


def test_sampled_loss_and_gradients_have_the_population_values(task):
    """Mean of loss and gradient over many batches: the two blocks follow the flow, every other entry stays put."""
    theta = linear_attention.random_theta(jax.random.key(2), 3)
    params = linear_attention.init(theta, 0.8).params
    draw = lambda key: linear_regression(
        key, batch=4096, length=task.length, covariance=task.covariance, prior=task.prior, noise=task.noise
    )
    batches = jax.random.split(jax.random.key(3), 100)
    values, gradients = jax.lax.map(lambda key: jax.value_and_grad(linear_attention.loss)(params, draw(key)), batches)
    velocity = theory.flow(theory.blocks(params), task)
    expected = linear_attention.Params(
        jnp.zeros((4, 4)).at[-1, -1].set(-velocity.w), jnp.zeros((4, 4)).at[:-1, :-1].set(-velocity.u)
    )
    within_five_errors(values, theory.population_loss(theory.blocks(params), task))
    jax.tree.map(within_five_errors, gradients, expected)


def within_five_errors(samples, expected):
    samples = np.asarray(samples, np.float64)
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert (np.abs(samples.mean(axis=0) - np.asarray(expected)) <= 5 * error + 1e-9).all()


@pytest.mark.parametrize("length", [2, 6, 25])
def test_risk_at_any_length_by_sampling(task, length):
    """A predictor that does not commute with the covariance, on prompts of other lengths, with prior and noise."""
    u = 0.3 * jax.random.normal(jax.random.key(7), (3, 3))
    params = linear_attention.Params(jnp.zeros((4, 4)).at[-1, -1].set(1.0), jnp.zeros((4, 4)).at[:-1, :-1].set(u))
    draw = lambda key: linear_regression(
        key, batch=4096, length=length, covariance=task.covariance, prior=task.prior, noise=task.noise
    )
    keys = jax.random.split(jax.random.key(8), 60)
    risks = jax.lax.map(lambda key: 2 * linear_attention.loss(params, draw(key)), keys)
    within_five_errors(risks, theory.risk(u, task._replace(length=length)))


def test_step_descends_and_counts():
    prompts = linear_regression(jax.random.key(0), batch=256, length=10, covariance=jnp.ones(3))
    state = linear_attention.init(jnp.eye(3), 0.5)
    after, info = jax.jit(linear_attention.step)(state, prompts, 0.05)
    gradient = jax.grad(linear_attention.loss)(state.params, prompts)
    np.testing.assert_allclose(after.params.w_kq, state.params.w_kq - 0.05 * gradient.w_kq, atol=1e-6)
    assert float(linear_attention.loss(after.params, prompts)) < float(info.loss)
    assert float(info.gradient_norm) == pytest.approx(float(jnp.sqrt(sum(jnp.sum(g**2) for g in gradient))), rel=1e-5)
    assert int(after.step) == 1
