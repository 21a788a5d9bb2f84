"""The generator's moments, and that it is a pure function of its key."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.tasks import geometric_spectrum, linear_regression, prompt_tokens, random_rotation, rotated

BATCH, LENGTH = 40_000, 3


@pytest.fixture(scope="module")
def drawn():
    covariance = rotated(jnp.array([2.0, 0.5]), random_rotation(jax.random.key(1), 2))
    prior = jnp.array([[1.0, 0.3], [0.3, 0.7]])
    prompts = linear_regression(
        jax.random.key(0), batch=BATCH, length=LENGTH, covariance=covariance, prior=prior, noise=0.5
    )
    return jax.tree.map(np.asarray, (covariance, prior, prompts))


def test_inputs_have_the_covariance(drawn):
    covariance, _, prompts = drawn
    x = prompts.x.reshape(-1, 2)
    np.testing.assert_allclose(x.T @ x / len(x), covariance, atol=0.03)
    np.testing.assert_allclose(prompts.x_query.T @ prompts.x_query / BATCH, covariance, atol=0.05)


def test_examples_are_independent_of_each_other_and_of_the_query(drawn):
    prompts = drawn[2]
    np.testing.assert_allclose(prompts.x[:, 0].T @ prompts.x[:, 1] / BATCH, 0, atol=0.05)
    np.testing.assert_allclose(prompts.x[:, 0].T @ prompts.x_query / BATCH, 0, atol=0.05)


def test_labels_have_the_moments_of_prior_and_noise(drawn):
    covariance, prior, prompts = drawn
    signal = np.trace(covariance @ prior)
    assert np.var(prompts.y) == pytest.approx(signal + 0.25, rel=0.03)
    assert np.var(prompts.y_query) == pytest.approx(signal, rel=0.05)
    moment = np.einsum("bnd,bn,b,be->de", prompts.x, prompts.y, prompts.y_query, prompts.x_query) / (BATCH * LENGTH)
    np.testing.assert_allclose(moment, covariance @ prior @ covariance, atol=0.1)


def test_without_noise_the_labels_are_linear():
    prompts = linear_regression(jax.random.key(3), batch=5, length=9, covariance=jnp.ones(4))
    w = np.stack([np.linalg.lstsq(x, y)[0] for x, y in zip(prompts.x, prompts.y, strict=True)])
    np.testing.assert_allclose(np.sum(w * prompts.x_query, axis=1), prompts.y_query, rtol=1e-4, atol=1e-4)


def test_a_spectrum_is_the_diagonal_matrix():
    spectrum = jnp.array([3.0, 1.0, 0.2])
    draw = lambda covariance: linear_regression(jax.random.key(0), batch=4, length=5, covariance=covariance)
    for by_vector, by_matrix in zip(draw(spectrum), draw(jnp.diag(spectrum)), strict=True):
        np.testing.assert_allclose(by_vector, by_matrix, rtol=1e-5, atol=1e-6)


def test_same_key_same_prompts_also_under_jit_and_vmap():
    draw = lambda key: linear_regression(key, batch=2, length=3, covariance=jnp.eye(2))
    keys = jax.random.split(jax.random.key(0), 3)
    mapped = jax.jit(jax.vmap(draw))(keys)
    for place, key in enumerate(keys):
        for many, one in zip(mapped, draw(key), strict=True):
            np.testing.assert_allclose(many[place], one, atol=1e-6)
    assert not np.array_equal(draw(keys[0]).x, draw(keys[1]).x)


def test_tokens_hold_the_examples_and_the_unlabeled_query():
    prompts = linear_regression(jax.random.key(0), batch=2, length=3, covariance=jnp.ones(4))
    tokens = prompt_tokens(prompts)
    assert tokens.shape == (2, 4, 5)
    np.testing.assert_array_equal(tokens[:, :-1, -1], prompts.y)
    np.testing.assert_array_equal(tokens[:, -1, :-1], prompts.x_query)
    assert not tokens[:, -1, -1].any()


@pytest.mark.parametrize(("dimension", "condition"), [(1, 1.0), (3, 30.0), (10, 7.0), (4, 1.0)])
def test_geometric_spectrum(dimension, condition):
    spectrum = geometric_spectrum(dimension, condition)
    assert float(spectrum.sum()) == pytest.approx(dimension, rel=1e-5)
    if dimension > 1:
        assert float(spectrum[0] / spectrum[-1]) == pytest.approx(condition, rel=1e-5)


as_users_have_it = inspect.unwrap(linear_regression)  # without the annotations' checks, which the tests turn on


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"covariance": jnp.ones((2, 3))}, r"covariance must be a spectrum \[D\] or a matrix"),
        ({"covariance": jnp.array(1.0)}, "covariance must be a spectrum"),
        ({"prior": jnp.ones(5)}, "prior must be a spectrum"),
        ({"covariance": jnp.array([[1.0, 2.0], [2.0, 1.0]])}, "covariance must be symmetric and positive definite"),
        ({"covariance": jnp.array([[1.0, 0.5], [0.0, 1.0]])}, "covariance must be symmetric and positive definite"),
        ({"covariance": jnp.array([1.0, -1.0])}, "covariance must have no negative entry"),
        ({"noise": -0.1}, "noise is a standard deviation and must not be negative, got -0.1"),
        ({"inputs": "cauchy"}, "inputs must be gaussian, uniform, sphere or gamma, got 'cauchy'"),
    ],
)
def test_mistakes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        as_users_have_it(jax.random.key(0), **{"batch": 2, "length": 2, "covariance": jnp.ones(3), **change})


def test_spectrum_mistakes_are_named():
    with pytest.raises(ValueError, match="condition_number must be at least 1"):
        geometric_spectrum(3, 0.5)
    with pytest.raises(ValueError, match="dimension must be at least 1"):
        geometric_spectrum(0, 2.0)
