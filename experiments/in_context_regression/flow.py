"""Gradient flow and descent of linear self-attention in float64: what the closed forms and SGD are held against."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from attnjax.dynamics import linear_attention_theory as theory
from experiments.framework.flows import integrate

POINTS = 401  # along every path: one shape, one compilation


@jax.jit
def follow(start: theory.Blocks, task: theory.Task, times: jax.Array) -> theory.Blocks:
    """The blocks along gradient flow; call it under `jax.enable_x64(True)`.

    Args:
        start: Blocks at time 0.
        task: Distribution of the training prompts.
        times: Increasing, from 0 `[K]`.

    Returns:
        Blocks with a leading axis K.
    """
    return integrate(lambda t, at: theory.flow(at, task), start, times)


@jax.jit
def descend(start: theory.Blocks, task: theory.Task, learning_rates: jax.Array) -> jax.Array:
    """The product along gradient descent on the population loss: `follow` by explicit Euler steps of finite size.

    Args:
        start: Blocks before the first step.
        task: Distribution of the training prompts.
        learning_rates: Of every step `[K]`.

    Returns:
        tr(w u) / D after every step `[K]`.
    """

    def step(at, learning_rate):
        at = jax.tree.map(lambda value, velocity: value + learning_rate * velocity, at, theory.flow(at, task))
        return at, at.w * jnp.trace(at.u) / task.covariance.shape[0]

    return jax.lax.scan(step, start, learning_rates)[1]


def curvatures(task: theory.Task) -> tuple[float, float]:
    """Smallest and largest curvature of the loss at its balanced minimum.

    The Hessian has one eigenvalue zero, for u -> c u, w -> w / c leaves the loss as it is; it is left out.

    Args:
        task: Distribution of the training prompts.

    Returns:
        Rate of the slowest direction, and of the stiffest one, per unit of flow time.
    """
    flat, unflatten = ravel_pytree(theory.global_minimum(task))
    hessian = jax.jit(jax.hessian(lambda point: theory.population_loss(unflatten(point), task)))(flat)
    rates = np.linalg.eigvalsh(np.asarray(hessian))
    return float(rates[1]), float(rates[-1])


def time_to_converge(start: theory.Blocks, task: theory.Task) -> float:
    """A flow time after which nothing moves to about ten digits: the plateau at the start, then the slowest direction.

    Near zero the product grows like exp(2 |S P S|_F t); near the minimum the slowest rate is the smallest curvature.

    Args:
        start: Blocks at time 0.
        task: Distribution of the training prompts.

    Returns:
        The time.
    """
    growth = float(jnp.linalg.norm(task.covariance @ task.covariance))
    plateau = (5 + max(0.0, -2 * math.log(float(start.w)))) / growth
    return plateau + 25 / curvatures(task)[0]


def time_to_risk(start: theory.Blocks, task: theory.Task, *, excess: float) -> float:
    """The first time at which the risk is within the fraction `excess` of the least.

    Args:
        start: Blocks at time 0.
        task: Distribution of the training prompts.
        excess: Positive fraction.

    Returns:
        The time, to within 3%.
    """
    end = time_to_converge(start, task)
    times = np.concatenate([[0.0], np.geomspace(end * 1e-4, end, POINTS - 1)])
    losses = np.asarray(losses_along(follow(start, task, jnp.asarray(times)), task))
    return float(times[np.argmax(losses <= (1 + excess) * float(theory.minimal_loss(task)))])


def losses_along(path: theory.Blocks, task: theory.Task) -> jax.Array:
    """Population loss at each of the leading axis of `path`."""
    return jax.vmap(lambda at: theory.population_loss(at, task))(path)
