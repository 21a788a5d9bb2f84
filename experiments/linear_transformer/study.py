"""Settings of `linear_transformer`, and the run."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from attnjax.dynamics import linear_attention_theory
from attnjax.dynamics import linear_transformer as layer
from attnjax.dynamics import linear_transformer_theory as theory
from attnjax.tasks import Prompts, geometric_spectrum, linear_regression
from experiments.framework.context import Context, UsageError
from experiments.framework.training import advance_to, cooling, evenly

CHUNK = 1024  # test prompts in memory at a time, per seed
PIECES = 10  # of a run, between which loss and curvature are measured
SPECTRA = 32768  # sampled prompts in the prediction for several layers
NOISE_SAMPLES = 1024  # stochastic gradients in the histogram of their noise


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are the authors' but for fewer steps and a smaller batch."""

    dimension: int = 5
    """D, of the inputs."""
    length: int = 20
    """N, examples in a prompt."""
    layers: tuple[int, ...] = (1, 2, 3)
    """Numbers of layers trained to the end with Adam."""
    compared_layers: int = 3
    """Number of layers in the comparison of optimizers."""
    condition_number: float = 10.0
    """Largest over smallest variance of the unequal inputs, in geometric progression with mean one."""
    heavy: bool = True
    """Whether the optimizers are compared on heavy-tailed inputs too."""
    tail: float = 0.1
    """Shape of the gamma law of the heavy-tailed inputs' squared norm."""
    steps: int = 4000
    """Steps of training to the end."""
    adam_rate: float = 0.02
    """Learning rate of Adam."""
    sgd_rate: float = 0.02
    """Learning rate of SGD with momentum 0.9."""
    clip: float = 1.0
    """Largest norm of a gradient, for both."""
    scale: float = 0.05
    """Standard deviation of the initial weights."""
    batch: int = 512
    """Fresh prompts per step and seed."""
    seeds: int = 4
    """Independent runs, in one vmap; at least 2."""
    compared_steps: int = 1500
    """Steps of training in the comparison of optimizers; their curvatures are compared half-way."""
    test_prompts: int = 65536
    """Fresh prompts per seed and risk, rounded up to a multiple of 1024."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """Small sizes for continuous integration: the same claims in about a minute on two cores."""
        return cls(layers=(1,), heavy=False, steps=300, compared_steps=300, batch=256)

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        least = {"dimension": 1, "length": 1, "steps": PIECES, "batch": 1, "seeds": 2, "test_prompts": 1}
        least |= {"compared_layers": 1, "compared_steps": PIECES}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {bound}, got {getattr(self, name)}.")
        for name in ("tail", "adam_rate", "sgd_rate", "clip", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}.")
        if not 1 <= self.condition_number < math.inf:
            raise UsageError(f"--condition-number must be at least 1 (the identity), got {self.condition_number}.")
        if not self.layers or min(self.layers) < 1 or len(set(self.layers)) != len(self.layers):
            raise UsageError(f"--layers must be one or more different numbers of at least 1, got {self.layers}.")


class Law(NamedTuple):
    """A distribution of prompts: the inputs' law and their variances."""

    inputs: str
    spectrum: tuple[float, ...]
    tail: float = 1.0


def heavy_law(config: Config) -> Law:
    """The authors' heavy-tailed inputs: |x|^2 has the gamma law of the shape and of mean sqrt(10 shape)."""
    d = config.dimension
    return Law("gamma", (math.sqrt(10 * config.tail) / d,) * d, config.tail)


class Run(NamedTuple):
    """One number of layers trained with one optimizer on one law. R is the number of seeds.

    Attributes:
        layers: L.
        steps: At which the following were measured `[PIECES]`.
        losses: Test loss `[R, PIECES]`.
        final: At the end, on more prompts `[R]`.
        q: W_KQ's blocks at the end `[R, L, D, D]`.
        p: Minus W_PV's blocks at the end `[R, L, D, D]`.
    """

    layers: int
    steps: np.ndarray
    losses: np.ndarray
    final: np.ndarray
    q: np.ndarray
    p: np.ndarray


class Compared(NamedTuple):
    """Adam and SGD on one law.

    Attributes:
        adam: Trained.
        sgd: Trained.
        conditions: Robust condition number, max over median of |diagonal of the Hessian|, of Adam and SGD half-way
            `[2, R]`.
        noise: |stochastic gradient - mean gradient| at the start, over its median `[NOISE_SAMPLES]`, ascending.
    """

    adam: Run
    sgd: Run
    conditions: np.ndarray
    noise: np.ndarray


class Result(NamedTuple):
    """What the claims and figures are made of.

    Attributes:
        config: The settings.
        least: By number of layers: least risk of plain steps, and of steps that move the inputs too.
        deep: By number of layers, Adam on Gaussian inputs.
        unequal: One layer, Adam on inputs with unequal variances.
        preconditioner: Its prediction `[D, D]`.
        unequal_least: The least risk there.
        compared: By law of inputs, gaussian and perhaps gamma.
    """

    config: Config
    least: dict[int, tuple[float, float]]
    deep: dict[int, Run]
    unequal: Run
    preconditioner: np.ndarray
    unequal_least: float
    compared: dict[str, Compared]


def run(config: Config, context: Context) -> Result:
    """Find the least risks in float64, then train every setting, seeds in one vmap.

    Args:
        config: Settings.
        context: Surroundings.

    Returns:
        The result.

    Raises:
        UsageError: An impossible setting.
    """
    config.check()
    d = config.dimension
    spectra_key, deep_key, unequal_key, compare_key = jax.random.split(context.key, 4)
    gaussian = Law("gaussian", (1.0,) * d)
    heavy = {"gamma": heavy_law(config)} if config.heavy else {}
    with jax.enable_x64(True):
        spectrum = jax.jit(theory.spectra)(draw(spectra_key, gaussian, SPECTRA, config.length))
        of = lambda rates: float(theory.risk(spectrum, rates))
        least = {
            layers: (of(theory.best_rates(spectrum, layers)), of(theory.best_transforming_rates(spectrum, layers)))
            for layers in config.layers
        }
        variances = geometric_spectrum(d, config.condition_number)
        task = linear_attention_theory.Task(jnp.diag(variances), config.length)
        preconditioner = np.asarray(linear_attention_theory.best_product(task))
        unequal_least = 2 * float(linear_attention_theory.minimal_loss(task))
    cooled = optax.adam(cooling(config.adam_rate, config.steps), b2=0.9)
    deep = {
        layers: train(
            layers, gaussian, cooled, config.steps, config, jax.random.fold_in(deep_key, layers), context, "Adam"
        )[0]
        for layers in config.layers
    }
    law = Law("gaussian", tuple(float(variance) for variance in variances))
    unequal = train(1, law, cooled, config.steps, config, unequal_key, context, "Adam, unequal inputs")[0]
    compared = {
        name: compare(law, config, jax.random.fold_in(compare_key, index), context)
        for index, (name, law) in enumerate({"gaussian": gaussian, **heavy}.items())
    }
    return Result(config, least, deep, unequal, preconditioner, unequal_least, compared)


def draw(key: jax.Array, law: Law, batch: int, length: int) -> Prompts:
    """Noise-free prompts."""
    spectrum = jnp.array(law.spectrum, float)
    return linear_regression(key, batch=batch, length=length, covariance=spectrum, inputs=law.inputs, tail=law.tail)


def train(
    layers: int, law: Law, optimizer: Any, steps: int, config: Config, key: jax.Array, context: Context, name: str
) -> tuple[Run, layer.Free]:
    """Train one setting: what is kept of it, and the weights half-way."""
    init_key, train_key, test_key = jax.random.split(key, 3)
    clipped = optax.chain(optax.clip_by_global_norm(config.clip), optimizer)
    start = functools.partial(
        layer.init, dimension=config.dimension, layers=layers, scale=config.scale, optimizer=clipped
    )
    states = starts = jax.vmap(start)(jax.random.split(init_key, config.seeds))
    keys = jax.random.split(train_key, config.seeds)

    def step(state, key):
        return layer.step(state, draw(key, law, config.batch, config.length), clipped)

    ends = evenly(steps, PIECES)
    tracked = context.track(ends, f"{name}, {steps} steps of {layers} layers, {law.inputs} inputs")
    losses, way = [], []
    for _, states in advance_to(step, starts, keys, tracked):
        losses.append(test(states.trained, law, test_key, config.length, 4))
        way.append(states.trained)
    final = test(states.trained, law, jax.random.fold_in(test_key, 1), config.length, -(-config.test_prompts // CHUNK))
    kept = Run(layers, np.array(ends), np.stack(losses, axis=1), final, *map(np.asarray, states.trained[::-1]))
    return kept, way[PIECES // 2 - 1]


def test(trained: layer.Free, law: Law, key: jax.Array, length: int, chunks: int) -> np.ndarray:
    """Risk of every seed on fresh prompts of its own `[R]`."""
    return np.asarray(_test(trained, law, key, length, chunks), np.float64)


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def _test(trained, law: Law, key, length: int, chunks: int):
    def one(trained, key):
        chunk = lambda key: layer.loss(layer.descent(trained), draw(key, law, CHUNK, length))
        return jax.lax.map(chunk, jax.random.split(key, chunks)).mean()

    return jax.vmap(one)(trained, jax.random.split(key, len(trained.q)))


def compare(law: Law, config: Config, key: jax.Array, context: Context) -> Compared:
    """Both optimizers from the same starts on the same prompts, without cooling."""
    layers, steps = config.compared_layers, config.compared_steps
    adam = train(layers, law, optax.adam(config.adam_rate, b2=0.9), steps, config, key, context, "Adam")
    sgd = train(layers, law, optax.sgd(config.sgd_rate, momentum=0.9), steps, config, key, context, "SGD")
    curvature_key, noise_key = jax.random.split(jax.random.fold_in(key, 1))
    conditions = [np.asarray(_conditions(at, law, curvature_key, config), np.float64) for _, at in (adam, sgd)]
    noise = np.sort(np.asarray(_noise(law, noise_key, config, layers), np.float64))
    return Compared(adam[0], sgd[0], np.stack(conditions), noise / np.median(noise))


@functools.partial(jax.jit, static_argnums=(1, 3))
def _conditions(trained, law: Law, key, config: Config):
    """Robust condition number of every seed."""
    prompts = draw(key, law, 256, config.length)

    def one(trained):
        flat, build = ravel_pytree(trained)
        gradient = jax.grad(lambda flat: layer.loss(layer.descent(build(flat)), prompts))
        diagonal = jax.lax.map(lambda unit: jax.jvp(gradient, (flat,), (unit,))[1] @ unit, jnp.eye(len(flat)))
        return jnp.abs(diagonal).max() / jnp.median(jnp.abs(diagonal))

    return jax.vmap(one)(trained)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _noise(law: Law, key, config: Config, layers: int):
    """Norms of the gradient's noise at one start."""
    start_key, sample_key = jax.random.split(key)
    start = layer.init(
        start_key, dimension=config.dimension, layers=layers, scale=config.scale, optimizer=optax.sgd(0.0)
    ).trained

    def gradient(key):
        of = lambda trained: layer.loss(layer.descent(trained), draw(key, law, config.batch, config.length))
        return ravel_pytree(jax.grad(of)(start))[0]

    gradients = jax.lax.map(gradient, jax.random.split(sample_key, NOISE_SAMPLES))
    return jnp.linalg.norm(gradients - gradients.mean(axis=0, keepdims=True), axis=1)
