"""Several regression tasks on the same inputs: heads are split between the tasks, or shared where there are too few."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attnjax.dynamics import softmax_attention as layer
from attnjax.dynamics import softmax_attention_theory as theory
from attnjax.tasks import Prompts, several_regressions
from experiments.framework.context import Context
from experiments.framework.training import advance_to, cooling, evenly

CHUNK = 1024  # test prompts in memory at a time, per seed


class Shared(NamedTuple):
    """One number of heads, trained on all tasks at once. R is the number of seeds, K that of tasks.

    Attributes:
        heads: H.
        best: Rates of least total risk that so many heads can take `[K, D]`.
        least: Their risks `[K]`.
        alone: Risks with rates of each task's own `[K]`.
        risks: Measured at the end `[R, K]`.
        kq: KQ circuits at the end `[R, H, E, E]`.
        ov: OV circuits at the end `[R, H, K, E]`.
    """

    heads: int
    best: np.ndarray
    least: np.ndarray
    alone: np.ndarray
    risks: np.ndarray
    kq: np.ndarray
    ov: np.ndarray

    @property
    def omega(self) -> np.ndarray:
        """Diagonal of each head's KQ circuit on the inputs `[R, H, D]`."""
        return np.diagonal(self.kq, axis1=-2, axis2=-1)[..., : self.best.shape[1]]

    @property
    def mu(self) -> np.ndarray:
        """What each head's average labels count for the same label's prediction `[R, H, K]`."""
        return np.diagonal(self.ov[..., self.best.shape[1] :], axis1=-2, axis2=-1)

    @property
    def taken(self) -> np.ndarray:
        """Rates that the heads take together, to first order `[R, K, D]`."""
        return np.einsum("rhk,rhd->rkd", self.mu, self.omega)

    @property
    def both_signs(self) -> np.ndarray:
        """Seeds off the saddle on which all heads have one sign, where no debiased step can be taken `[R]`."""
        return np.ptp(np.sign(self.omega.mean(-1)), axis=1) > 0


def priors_of(config: Any) -> jax.Array:
    """Two tasks: one on the first `task_inputs` inputs and one on the last, of power one each `[2, D]`."""
    index, size = np.arange(config.several_dimension), config.task_inputs
    of = np.stack([index < size, index >= config.several_dimension - size])
    return jnp.asarray(of / size, float)


def study(heads: int, config: Any, key: jax.Array, context: Context) -> Shared:
    """Train one number of heads on both tasks, seeds in one vmap.

    Args:
        heads: H, at least 2.
        config: Of the experiment.
        key: Random key.
        context: Surroundings.

    Returns:
        What was measured, and the theory beside it.
    """
    length, noise = config.several_length, math.sqrt(config.noise_variance)
    with jax.enable_x64(True):
        of = theory.rates(priors_of(config), length=length, noise=noise)
        best, own = theory.best_rates(of, heads), of.gain / of.curvature
        expected = [np.asarray(part) for part in (best, theory.rates_risk(best, of), theory.rates_risk(own, of))]
    priors = priors_of(config)
    train_key, init_key, test_key = jax.random.split(key, 3)
    optimizer = optax.adam(cooling(config.learning_rate, config.steps))
    start = functools.partial(
        layer.init, dimension=config.several_dimension, heads=heads, optimizer=optimizer, labels=len(priors)
    )
    starts = jax.vmap(start)(jax.random.split(init_key, config.seeds))
    draw = lambda key: several_regressions(key, batch=config.batch, length=length, priors=priors, noise=noise)
    step = lambda state, key: layer.step(state, draw(key), optimizer)
    keys = jax.random.split(train_key, config.seeds)
    ends = context.track(evenly(config.steps, 10), f"Adam, {config.steps} steps of {heads} heads, {len(priors)} tasks")
    *_, (_, state) = advance_to(step, starts, keys, ends)  # stops for the progress bar only
    circuits = jax.vmap(layer.circuits)(state.params)
    keys = jax.random.split(test_key, config.seeds)
    risks = _risks(circuits, keys, priors, jnp.asarray(noise), -(-config.test_prompts // CHUNK), length)
    return Shared(heads, *expected, *(np.asarray(part, np.float64) for part in (risks, circuits.kq, circuits.ov)))


@functools.partial(jax.jit, static_argnums=(4, 5))
def _risks(circuits, keys, priors, noise, chunks: int, length: int):
    """Mean squared error of every seed and label on fresh prompts `[R, K]`."""

    def one(circuits, key):
        def chunk(key):
            prompts: Prompts = several_regressions(key, batch=CHUNK, length=length, priors=priors, noise=noise)
            return jnp.mean((layer.predict(circuits, prompts) - prompts.y_query) ** 2, axis=0)

        return jax.lax.map(chunk, jax.random.split(key, chunks)).mean(axis=0)

    return jax.vmap(one)(circuits, keys)
