"""Settings of `loss_plateau`, and the run."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attnjax.dynamics import abrupt_learning as layer
from attnjax.dynamics import abrupt_learning_theory as theory
from attnjax.tasks import window_sums
from experiments.framework.context import Context, UsageError
from experiments.framework.training import advance_to

TEST_BATCH = 64
LEARNED = 0.5  # accuracy at which the plateau is over


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are the authors' but for a smaller batch."""

    length: int = 16
    """L, numbers to sum over."""
    window: int = 2
    """Terms in a sum."""
    largest: int = 16
    """Of the numbers."""
    modulus: int = 17
    """Of the sums."""
    width: int = 256
    """Of the residual stream."""
    learning_rate: float = 1e-4
    """Of Adam."""
    batch: int = 128
    """Fresh sequences per step and seed."""
    steps: int = 500
    """Of training; the interventions that lengthen the plateau get twice as many."""
    factors: tuple[float, ...] = (10.0, 0.5)
    """What needed entries of attention are multiplied by while training, besides 1."""
    every: int = 10
    """Steps between measurements."""
    seeds: int = 3
    """Independent runs, in one vmap; at least 2."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """Small sizes for continuous integration: the same claims in about a minute on two cores."""
        return cls(length=6, width=128, learning_rate=1e-3, steps=160, factors=(2.0,))

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        least = {"length": 2, "window": 1, "largest": 1, "width": 1, "batch": 1, "steps": 1, "every": 1, "seeds": 2}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"--{name} must be at least {bound}, got {getattr(self, name)}.")
        if not self.window < self.length:
            raise UsageError(f"--window must be below --length = {self.length}, got {self.window}.")
        if self.modulus <= self.largest:
            raise UsageError(f"--modulus must be larger than --largest = {self.largest}, got {self.modulus}.")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"--learning-rate must be positive, got {self.learning_rate}.")
        if not self.factors or min(self.factors) <= 0 or 1 in self.factors:
            raise UsageError(f"--factors must be positive numbers other than 1, got {self.factors}.")


class Watched(NamedTuple):
    """What is measured along one training `[R, K]`, or `[K]` for the steps."""

    steps: np.ndarray
    losses: np.ndarray
    accuracies: np.ndarray
    repetitions: np.ndarray
    progress: np.ndarray
    collapse: np.ndarray

    def learned_at(self) -> np.ndarray:
        """Step at which the model first writes right, NaN where it never does `[R]`."""
        right = self.accuracies >= LEARNED
        return np.where(right.any(axis=1), self.steps[right.argmax(axis=1)].astype(float), np.nan)

    def plateau(self) -> np.ndarray:
        """Whether a measurement lies in the second half of the time before learning `[R, K]`.

        The first half lets the loss come down from its start; the last tenth, in which the drop begins, is left out.
        """
        end = self.learned_at()[:, None]
        return (self.steps >= 0.4 * end) & (self.steps <= 0.8 * end)


class Result(NamedTuple):
    """What the claims and figures are made of; `watched` by the factor of needed attention, 1 among them."""

    config: Config
    height: float
    repetition: float
    watched: dict[float, Watched]
    attention: np.ndarray


def run(config: Config, context: Context) -> Result:
    """Train with every factor, seeds in one vmap.

    Args:
        config: Settings.
        context: Surroundings.

    Returns:
        The result.

    Raises:
        UsageError: An impossible setting.
    """
    config.check()
    task = {name: getattr(config, name) for name in ("length", "window", "largest", "modulus")}
    watched, attention = {}, np.empty(0)
    for factor in (1.0, *config.factors):
        watched[factor], last = train(factor, config, context)
        attention = last if factor == 1 else attention
    return Result(config, theory.plateau_loss(**task), theory.repetition(**task), watched, attention)


def draw(key: jax.Array, config: Config, batch: int) -> jax.Array:
    """Fresh sequences."""
    return window_sums(
        key,
        batch=batch,
        length=config.length,
        window=config.window,
        largest=config.largest,
        modulus=config.modulus,
    )


def train(factor: float, config: Config, context: Context) -> tuple[Watched, np.ndarray]:
    """One factor: what was measured, and the first seed's mean attention at the end."""
    init_key, train_key, test_key = jax.random.split(context.key, 3)  # the same for every factor
    optimizer = optax.adam(config.learning_rate)
    start = functools.partial(
        layer.init,
        vocabulary=config.modulus + 1,
        length=2 * config.length + 1,
        width=config.width,
        optimizer=optimizer,
    )
    states = starts = jax.vmap(start)(jax.random.split(init_key, config.seeds))
    keys = jax.random.split(train_key, config.seeds)
    factors = jnp.where(layer.needed(config.length, config.window), factor, 1.0)

    def step(state, key):
        return layer.step(state, draw(key, config, config.batch), optimizer, factors)

    tests = [measure(starts.params, test_key, config)]
    last = config.steps * (2 if factor < 1 else 1)
    ends = range(config.every, last + 1, config.every)
    tracked = context.track(ends, f"Adam, {ends[-1]} steps, needed attention x {factor:g}")
    for _, states in advance_to(step, starts, keys, tracked):
        tests.append(measure(states.params, test_key, config))
    first = jax.tree.map(lambda leaf: leaf[0], states.params)
    attention = layer.forward(first, draw(test_key, config, TEST_BATCH)[:, :-1]).attention.mean(axis=0)
    return Watched(np.array([0, *ends]), *np.stack(tests, axis=-1)), np.asarray(attention)


def measure(params: layer.Params, key: jax.Array, config: Config) -> np.ndarray:
    """Loss over the sums, accuracy, repetition, progress of attention, collapse, for every seed `[5, R]`."""
    return np.asarray(_measure(params, key, config), np.float64)


@functools.partial(jax.jit, static_argnums=2)
def _measure(params, key, config: Config):
    tokens, n = draw(key, config, TEST_BATCH), config.length
    where = layer.needed(n, config.window)

    def one(params):
        seen = layer.forward(params, tokens[:, :-1])
        written = layer.write(params, tokens, n)
        return jnp.stack(
            [
                layer.loss(params, tokens, start=n),
                (written == tokens[:, n + 1 :]).mean(),
                (written[:, 1:] == written[:, :-1]).mean(),
                layer.attention_progress(seen.attention, where),
                layer.collapse(seen.hidden[:, n + 1 :]),
            ]
        )

    return jax.vmap(one)(params).T
