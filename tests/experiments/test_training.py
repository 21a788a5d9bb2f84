"""Many runs at once are the runs one by one, on one device, on eight, and under pmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from attnjax.dynamics import autoregressive_attention, linear_attention, softmax_attention
from attnjax.tasks import initial_states, linear_regression, linear_sequences
from experiments.framework.training import advance, on_one_device, one_run, spread

RUNS, STEPS = 8, 5
ADAM = optax.adam(1e-2)


def prompts(key):
    return linear_regression(key, batch=16, length=6, covariance=jnp.ones(3), noise=0.2)


def states_over_time(key):
    start = initial_states(key, "gaussian", batch=8, dimension=2)
    return linear_sequences(jax.random.fold_in(key, 1), start, length=6)


MODELS = {
    "linear attention": (
        lambda key: linear_attention.init(linear_attention.random_theta(key, 3), 0.3),
        lambda state, key: linear_attention.step(state, prompts(key), 0.05),
    ),
    "softmax heads": (
        lambda key: softmax_attention.init(key, dimension=3, heads=2, optimizer=ADAM),
        lambda state, key: softmax_attention.step(state, prompts(key), ADAM),
    ),
    "autoregressive": (
        lambda key: autoregressive_attention.init(2, 0.3, 0.3),
        lambda state, key: autoregressive_attention.step(state, states_over_time(key), 0.01),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_devices_do_not_matter(name):
    init, step = MODELS[name]
    keys = jax.random.split(jax.random.key(0), RUNS)
    states = jax.vmap(init)(keys)
    alone, reports = on_one_device(step, states, keys, STEPS)
    sharded, _ = advance(step, states, keys, STEPS)
    assert len(jax.tree.leaves(sharded)[0].devices()) == jax.device_count() == RUNS
    by_pmap, _ = jax.pmap(lambda state, key: one_run(step, state, key, STEPS))(states, keys)
    for other in (sharded, by_pmap):
        for got, want in zip(jax.tree.leaves(other), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    assert reports.loss.shape == (RUNS, STEPS)
    assert len({float(loss) for loss in reports.loss[:, 0]}) == RUNS, "every run has prompts of its own"


def test_a_number_of_runs_that_does_not_divide_stays():
    runs = jnp.zeros((RUNS + 1, 2))
    assert spread(runs) is runs
