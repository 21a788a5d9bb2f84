"""Two groups of tokens of the same total score: what attention reads, and what a readout of it can learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, linear, tasks

PEAK = 8


def read(task, how):
    """What attention with those scores reads, ``[B]``."""
    scores, values = task.scores[..., None, None], task.values[..., None, None]
    one = jnp.ones_like(scores)
    return how(one, scores, values)[:, 0, 0, 0]


proportional = functools.partial(linear.linear_attention, feature_map=lambda x: x, causal=False)
softmax = functools.partial(attend, scale=1.0)


def test_the_groups_have_the_same_score(getkey):
    task = tasks.separation(getkey(), batch=400, peak=PEAK)
    scores, values, labels = map(np.asarray, task)
    assert scores.shape == (400, PEAK + 1)
    assert (np.sort(scores, 1) == [1] * PEAK + [PEAK]).all()
    assert (values[np.arange(400), scores.argmax(1)] == labels).all()
    assert (values.sum(1) == -(PEAK - 1) * labels).all()
    assert set(scores.argmax(1)) == set(range(PEAK + 1))
    assert abs(labels.mean()) < 0.2


@pytest.mark.parametrize("peak", [2, 8, 20])
def test_what_attention_reads(getkey, peak):
    """Softmax the closed form, at 8 .98552 of either sign; weights in proportion to scores nothing at all."""
    task = tasks.separation(getkey(), batch=6, peak=peak)
    with jax.enable_x64(True):
        task = type(task)(*(jnp.asarray(x, jnp.float64) for x in task))
        found = np.asarray(read(task, softmax))
        np.testing.assert_allclose(found, tasks.separation_readout(peak) * np.asarray(task.labels), rtol=1e-12)
        assert (np.asarray(read(task, proportional)) == 0).all()
    if peak == 8:
        assert tasks.separation_readout(peak) == pytest.approx(0.98552, abs=1e-5)


def test_a_readout_learns_from_softmax_and_not_from_linear_scores(getkey):
    """A layer of ReLUs and a logistic loss: all of new sequences right, or as many as by chance. With elu + 1 the scores
    are one more than linear, the groups no longer tie, and it learns."""
    train, test = (tasks.separation(getkey(), batch=200, peak=PEAK) for _ in range(2))
    keys = jax.random.split(getkey(), 2)
    elu = functools.partial(linear.linear_attention, causal=False)

    def predict(parameters, x):
        first, bias, second = parameters
        return jax.nn.relu(x[:, None] * first[None] + bias[None]) @ second

    def loss(parameters, x, labels):
        return jnp.mean(jax.nn.softplus(-labels * predict(parameters, x)))

    @jax.jit
    def fit(x, labels, parameters):
        step = lambda p, _: (jax.tree.map(lambda a, g: a - 0.5 * g, p, jax.grad(loss)(p, x, labels)), None)
        return jax.lax.scan(step, parameters, length=300)[0]

    accuracy = {}
    for name, how in {"softmax": softmax, "linear": proportional, "elu": elu}.items():
        start = (jax.random.normal(keys[0], (16,)), jnp.zeros(16), jax.random.normal(keys[1], (16,)) / 4)
        fitted = fit(read(train, how), train.labels, start)
        accuracy[name] = float(jnp.mean((predict(fitted, read(test, how)) > 0) == (test.labels > 0)))
    print(accuracy)
    assert accuracy["softmax"] == 1
    assert accuracy["elu"] == 1
    assert 0.35 < accuracy["linear"] < 0.65


def test_messages():
    with pytest.raises(ValueError, match="peak=1: want at least"):
        tasks.separation(jax.random.key(0), batch=1, peak=1)
