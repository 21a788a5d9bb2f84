"""The three settings of `in_context_regression`: their tasks, their theory, and how long SGD trains."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.dynamics import linear_attention
from attnjax.dynamics import linear_attention_theory as theory
from attnjax.tasks import geometric_spectrum, random_rotation, rotated
from experiments.framework.flows import decay, flow_time
from experiments.in_context_regression.flow import (
    POINTS,
    curvatures,
    descend,
    follow,
    losses_along,
    time_to_converge,
    time_to_risk,
)
from experiments.in_context_regression.sgd import Shift, Trained

SETTINGS = ("isotropic", "anisotropic", "noisy")
ISOTROPIC, ANISOTROPIC, NOISY = range(3)
NOISE = 0.01  # of a step over its drift
EXCESS = 0.005  # SGD covers the flow time after which the risk is within this fraction of the least


class Setting(NamedTuple):
    """One setting and its theory, in float64; curves are over `times`.

    Attributes:
        task: Distribution of the training prompts.
        theta: Shape of the start.
        limit: Gradient flow once nothing moves.
        drift: Largest change of the conserved w^2 - |u|_F^2 along the whole flow.
        times: Flow time, from 0 to where SGD ends `[T]`.
        risks: Risk along gradient flow, on the training distribution.
        products: tr(w u) / D along gradient flow.
        product: w u of gradient flow where SGD ends `[D, D]`.
        descent: tr(w u) / D of gradient descent after every step, with SGD's learning rates `[steps]`.
    """

    task: theory.Task
    theta: jax.Array
    limit: theory.Blocks
    drift: float
    times: np.ndarray
    risks: np.ndarray
    products: np.ndarray
    product: jax.Array
    descent: np.ndarray


class Result(NamedTuple):
    """What the claims and figures are made of; `settings` and the first axis in `sgd` are as in `SETTINGS`.

    `config` is the experiment's `Config`.
    """

    config: Any
    settings: tuple[Setting, ...]
    sgd: Trained


def shifts(covariance: Any) -> dict[str, Shift]:
    """Test prompts that differ from the noise-free training ones in one respect each; traces stay the same."""
    d = len(covariance)
    eye = jnp.eye(d, dtype=covariance.dtype) * jnp.trace(covariance) / d
    unit = jnp.eye(d, dtype=covariance.dtype)
    return {
        "task": Shift(covariance, covariance * d / jnp.trace(covariance), covariance),
        "query": Shift(covariance, unit, eye),
        "covariate": Shift(eye, unit, eye),
    }


def problem(name: str, config: Any, key: jax.Array) -> tuple[theory.Task, jax.Array]:
    """The task and the shape of the start of one setting; the rotated two share both."""
    d = config.dimension
    if name == "isotropic":
        return theory.Task(jnp.eye(d), config.length), jnp.eye(d)
    rotation_key, theta_key = jax.random.split(key)
    spectrum = geometric_spectrum(d, config.condition_number) if config.spectrum is None else jnp.array(config.spectrum)
    covariance = rotated(spectrum, random_rotation(rotation_key, d))
    theta = linear_attention.random_theta(theta_key, d) if config.theta == "random" else jnp.eye(d)
    return theory.Task(covariance, config.length, noise=config.noise if name == "noisy" else 0.0), theta


def start_of(theta: jax.Array, config: Any) -> theory.Blocks:
    """The balanced start's two blocks."""
    return theory.blocks(linear_attention.init(theta, config.init_scale).params)


def schedule(config: Any, problems: list[tuple[theory.Task, jax.Array]]) -> tuple[int, list[float]]:
    """Number of SGD steps, common to all settings, and the first learning rate of each.

    The learning rate covers the flow time that is needed to come within `EXCESS` of the least risk; where that would
    take more than `max_steps` at the largest rate allowed, SGD ends earlier, and so does the flow beside it.
    """
    needed = [time_to_risk(start_of(theta, config), task, excess=EXCESS) for task, theta in problems]
    largest = [config.learning_rate or config.stiffness / curvatures(task)[1] for task, _ in problems]
    pairs = list(zip(needed, largest, strict=True))
    steps = config.steps or min(config.max_steps, max(math.ceil(2 * time / rate) for time, rate in pairs))
    steps = config.checkpoints * math.ceil(steps / config.checkpoints)
    return steps, [config.learning_rate or min(time / flow_time(steps), rate) for time, rate in pairs]


def batch_size(config: Any) -> int:
    """Prompts in a step that keep its noise near `NOISE`.

    The layer is linear in its D^2 features z = x_q g^T. A step of rate r turns an error of curvature c = E z^2 into
    noise r^2 E|z|^2 c / batch, which is r c D^2 / batch of what it takes away where all curvatures are alike;
    `stiffness` bounds r c.
    """
    return max(128, 32 * math.ceil(config.stiffness * config.dimension**2 / NOISE / 32))


def solve(given: tuple[theory.Task, jax.Array], learning_rate: float, config: Any, steps: int) -> Setting:
    """Integrate one setting's gradient flow, to its limit and over the time that SGD covers."""
    task, theta = given
    start = start_of(theta, config)
    whole = follow(start, task, jnp.linspace(0.0, time_to_converge(start, task), POINTS))
    times = jnp.linspace(0.0, learning_rate * flow_time(steps), POINTS)
    path = follow(start, task, times)
    products = path.w[:, None, None] * path.u
    rates = learning_rate * decay(jnp.arange(steps), steps)
    invariant = whole.w**2 - jnp.sum(whole.u**2, axis=(1, 2))
    return Setting(
        task=task,
        theta=theta,
        limit=jax.tree.map(lambda block: block[-1], whole),
        drift=float(jnp.max(jnp.abs(invariant - invariant[0]))),
        times=np.asarray(times),
        risks=np.asarray(2 * losses_along(path, task)),
        products=np.asarray(jnp.trace(products, axis1=1, axis2=2) / config.dimension),
        product=products[-1],
        descent=np.asarray(descend(start, task, rates)),
    )


def closed_form(config: Any, times: np.ndarray | float) -> np.ndarray:
    """The logistic time course of w u in the isotropic setting."""
    start = config.init_scale**2 / math.sqrt(config.dimension)
    return np.asarray(
        theory.isotropic_product(jnp.asarray(times), dimension=config.dimension, length=config.length, start=start)
    )
