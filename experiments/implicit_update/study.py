"""Settings of `implicit_update`, and the run."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attnjax.dynamics import implicit_update as block
from attnjax.tasks import Prompts, linear_regression, prompt_tokens
from experiments.framework.context import Context, UsageError
from experiments.framework.training import advance_to, evenly

PIECES = 10  # of a run, between which both losses are measured


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are small, since the identity holds at any size."""

    dimension: int = 2
    """D, of the inputs."""
    length: int = 50
    """N, examples in a prompt."""
    width: int = 32
    """E, of the residual stream."""
    noise: float = 0.0
    """Standard deviation of the label noise."""
    steps: int = 2000
    """Steps of Adam."""
    learning_rate: float = 1e-3
    """Of Adam."""
    batch: int = 128
    """Fresh prompts per step and seed."""
    seeds: int = 4
    """Independent runs, in one vmap; at least 2."""
    test_prompts: int = 512
    """Fresh prompts of every test."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """Small sizes for continuous integration: the same claims in seconds."""
        return cls(length=20, steps=400, batch=64, test_prompts=256)

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        least = {"dimension": 1, "length": 4, "width": 2, "steps": PIECES, "batch": 1, "seeds": 2, "test_prompts": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {bound}, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"--learning-rate must be positive, got {self.learning_rate}.")
        if not 0 <= self.noise < math.inf:
            raise UsageError(f"--noise must not be negative, got {self.noise}.")


class Identity(NamedTuple):
    """Predictions in context and with the update, in float64, the worst seed.

    Attributes:
        difference: Largest difference over the largest prediction.
        rank: Second singular value of the update over the first, the largest.
        descent: Largest difference between the update and the sum of the steps, over the largest entry.
    """

    difference: float
    rank: float
    descent: float


class Result(NamedTuple):
    """What the claims and figures are made of.

    Attributes:
        config: The settings.
        steps: At which losses were measured `[PIECES]`.
        in_context: Test loss in context `[R, PIECES]`.
        by_update: Test loss without the context, with the update `[R, PIECES]`.
        alone: Test loss without the context or the update, at the end `[R]`.
        untrained: The identity at the start.
        trained: The identity at the end.
        gradients: Mean norm of the implicit gradients by context token, at the end `[R, N]`.
    """

    config: Config
    steps: np.ndarray
    in_context: np.ndarray
    by_update: np.ndarray
    alone: np.ndarray
    untrained: Identity
    trained: Identity
    gradients: np.ndarray


def run(config: Config, context: Context) -> Result:
    """Train, seeds in one vmap, and compare the update with the context as training goes on.

    Args:
        config: Settings.
        context: Surroundings.

    Returns:
        The result.

    Raises:
        UsageError: An impossible setting.
    """
    config.check()
    init_key, train_key, test_key = jax.random.split(context.key, 3)
    optimizer = optax.adam(config.learning_rate)
    start = functools.partial(block.init, dimension=config.dimension, width=config.width, optimizer=optimizer)
    states = starts = jax.vmap(start)(jax.random.split(init_key, config.seeds))
    keys = jax.random.split(train_key, config.seeds)
    untrained = identity(starts.params, test_key, config)[0]

    def step(state, key):
        return block.step(state, draw(key, config, config.batch), optimizer)

    ends, losses = evenly(config.steps, PIECES), []
    for end, states in advance_to(step, starts, keys, context.track(ends, f"Adam, {config.steps} steps")):
        losses.append(test(states.params, jax.random.fold_in(test_key, end), config))
    in_context, by_update, alone = np.stack(losses, axis=-1)
    trained, gradients = identity(states.params, test_key, config)
    return Result(config, np.array(ends), in_context, by_update, alone[:, -1], untrained, trained, gradients)


def draw(key: jax.Array, config: Config, batch: int) -> Prompts:
    """Fresh prompts."""
    ones = jnp.ones(config.dimension, float)
    return linear_regression(key, batch=batch, length=config.length, covariance=ones, noise=config.noise)


def test(params: block.Params, key: jax.Array, config: Config) -> np.ndarray:
    """Loss in context, with the update, and alone, for every seed `[3, R]`."""
    return np.asarray(_test(params, key, config), np.float64)


@functools.partial(jax.jit, static_argnums=2)
def _test(params, key, config: Config):
    prompts = draw(key, config, config.test_prompts)
    tokens = prompt_tokens(prompts)

    def one(params):
        def guesses(tokens):
            a, alone = block.contextual(params, tokens), block.contextual(params, tokens, 0)
            replaced = block.perceptron(block.updated(params, a, alone), alone)
            return jnp.stack([block.perceptron(params, a), replaced, block.perceptron(params, alone)])

        return jnp.mean((jax.vmap(guesses)(tokens) - prompts.y_query[:, None]) ** 2, axis=0)

    return jax.vmap(one)(params).T


def identity(params: block.Params, key: jax.Array, config: Config) -> tuple[Identity, np.ndarray]:
    """The identity in float64, and the mean norm of the implicit gradients `[R, N]`."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        tokens = prompt_tokens(draw(key, config, 32))
        found = jax.jit(jax.vmap(lambda params: _identity(params, tokens)))(wide)
    *errors, gradients = (np.asarray(part) for part in found)
    return Identity(*(float(error.max()) for error in errors)), gradients


def _identity(params: block.Params, tokens: jax.Array):
    n = tokens.shape[1] - 1

    def one(tokens):
        by_prefix = jax.vmap(lambda count: block.contextual(params, tokens, count))(jnp.arange(n + 1))
        alone, whole = by_prefix[0], by_prefix[-1]
        guess = block.perceptron(params, whole)
        replaced = block.perceptron(block.updated(params, whole, alone), alone)
        read = jax.vmap(block.normalized)(by_prefix)
        update = block.implicit_update(params.w, read[-1], read[0])
        values = jnp.linalg.svd(update, compute_uv=False)
        gradients = block.implicit_gradients(params.w, read)
        descended = -gradients.sum(axis=0) / (read[0] @ read[0])
        norms = jnp.sqrt(jnp.sum(gradients**2, axis=(1, 2)))
        descent = jnp.abs(update - descended).max() / jnp.abs(update).max()
        return guess, jnp.abs(guess - replaced), values[1] / values[0], descent, norms

    guess, difference, rank, descent, norms = jax.lax.map(one, tokens)
    return difference.max() / jnp.abs(guess).max(), rank.max(), descent.max(), norms.mean(axis=0)
