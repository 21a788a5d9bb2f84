"""Settings of `in_context_descent`, and the run."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from attnjax.dynamics import linear_transformer as layer
from attnjax.dynamics import linear_transformer_theory as theory
from attnjax.tasks import Prompts, linear_regression
from experiments.framework.context import Context, UsageError
from experiments.framework.training import advance_to, cooling, evenly

CHUNK = 1024  # test prompts in memory at a time, per seed
PIECES = 10  # of a run, between which the loss is measured
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of the best rate, in the scan
SPECTRA = 32768  # sampled prompts in the prediction for several layers
CONSTRUCTED = (1, 2, 5)  # layers of the weights made by hand


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are the paper's but for the number of steps and their schedule."""

    dimension: int = 10
    """D, of the inputs."""
    length: int = 10
    """N, examples in a prompt."""
    half_range: float = 0.5
    """Inputs are uniform between minus this and this."""
    layers: tuple[int, ...] = (1, 2)
    """Numbers of layers that are trained."""
    steps: int = 6000
    """Steps of Adam."""
    learning_rate: float = 3e-3
    """Of Adam; it falls linearly to zero over the second half."""
    clip: float = 10.0
    """Largest norm of a gradient."""
    scale: float = 0.002
    """Standard deviation of the initial weights, over the square root of the inputs' variance."""
    batch: int = 1024
    """Fresh prompts per step and seed."""
    seeds: int = 4
    """Independent runs, in one vmap; at least 2."""
    test_scales: tuple[float, ...] = (0.5, 1.5, 2.0)
    """Factors by which inputs are wider in further tests."""
    test_prompts: int = 32768
    """Fresh prompts per seed and risk, rounded up to a multiple of 1024."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """Small sizes for continuous integration: the same claims in under a minute on two cores."""
        return cls(dimension=5, layers=(1,), steps=2000, learning_rate=5e-3, batch=256, test_prompts=8192)

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        for name, least in {"dimension": 1, "length": 1, "steps": 2, "batch": 1, "seeds": 2, "test_prompts": 1}.items():
            if getattr(self, name) < least:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}.")
        for name in ("half_range", "learning_rate", "clip", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}.")
        for name, least in {"layers": 1, "test_scales": 0}.items():
            values = getattr(self, name)
            if not values or min(values) < least or len(set(values)) != len(values):
                raise UsageError(
                    f"--{name.replace('_', '-')} must be one or more different numbers of at least {least}, "
                    f"got {values}."
                )

    @property
    def variance(self) -> float:
        """Of an input's entry."""
        return self.half_range**2 / 3


class Scan(NamedTuple):
    """One step of gradient descent on sampled prompts. R is the number of seeds.

    Attributes:
        best: Rate of least risk, in closed form.
        measured: The same on samples `[R]`.
        rates: The scan's `[K]`.
        risks: On samples `[R, K]`.
        expected: In closed form `[K]`.
    """

    best: float
    measured: np.ndarray
    rates: np.ndarray
    risks: np.ndarray
    expected: np.ndarray


class Trained(NamedTuple):
    """One number of layers, trained.

    Attributes:
        layers: L.
        risks: Test risk as training goes on `[R, PIECES]`.
        final: Risk at the end, on more prompts `[R]`.
        plain: Least risk of L steps of gradient descent.
        moving: Least risk of L steps that also move the inputs.
        difference: RMS difference of predictions from the best such steps, over the RMS of theirs `[R]`.
        angle: Mean cosine between the gradients of both predictions with respect to the query `[R]`.
        scaled: Risk on inputs wider by each of the test scales `[R, scales]`.
        expected_scaled: That of one step with the best rate, one layer only `[scales]`.
    """

    layers: int
    risks: np.ndarray
    final: np.ndarray
    plain: float
    moving: float
    difference: np.ndarray
    angle: np.ndarray
    scaled: np.ndarray
    expected_scaled: np.ndarray


class Result(NamedTuple):
    """What the claims and figures are made of; `constructed` is the largest error by number of layers."""

    config: Config
    constructed: dict[int, float]
    scan: Scan
    trained: dict[int, Trained]


def run(config: Config, context: Context) -> Result:
    """Check the construction in float64, scan the rate, then train every number of layers, seeds in one vmap.

    Args:
        config: Settings.
        context: Surroundings.

    Returns:
        The result.

    Raises:
        UsageError: An impossible setting.
    """
    config.check()
    construct_key, scan_key, spectra_key, train_key = jax.random.split(context.key, 4)
    with jax.enable_x64(True):
        constructed = {layers: construct(layers, config, construct_key) for layers in CONSTRUCTED}
        unit = draw(spectra_key, config, SPECTRA, scale=config.variance**-0.5)
        spectrum = jax.jit(theory.spectra)(unit)
        best = {
            layers: [
                jax.tree.map(np.asarray, rates)
                for rates in (theory.best_rates(spectrum, layers), theory.best_transforming_rates(spectrum, layers))
            ]
            for layers in config.layers
        }
        spectrum = np.asarray(spectrum)
    scanned = scan(config, jax.random.split(scan_key, config.seeds))
    trained = {
        layers: train(
            layers, best[layers][0], best[layers][1], spectrum, config, jax.random.fold_in(train_key, layers), context
        )
        for layers in config.layers
    }
    return Result(config, constructed, scanned, trained)


def draw(key: jax.Array, config: Config, batch: int, scale: Any = 1.0) -> Prompts:
    """Noise-free prompts with uniform inputs, wider by a factor."""
    spectrum = config.variance * scale**2 * jnp.ones(config.dimension, float)
    return linear_regression(key, batch=batch, length=config.length, covariance=spectrum, inputs="uniform")


def construct(layers: int, config: Config, key: jax.Array) -> float:
    """Largest difference between the constructed weights' predictions and those of gradient descent itself.

    Preconditioners are random, inputs correlated, labels noisy: the construction asks for none of the prompts' law.
    """
    d = config.dimension
    data_key, key_q, key_root = jax.random.split(key, 3)
    root = jax.random.normal(key_root, (d, d))
    prompts = linear_regression(
        data_key, batch=256, length=config.length, covariance=root @ root.T / d + 0.1 * jnp.eye(d), noise=0.5
    )
    preconditioners = 0.3 * jax.random.normal(key_q, (layers, d, d)) / d**0.5
    weights = layer.descent(layer.Free(jnp.zeros((layers, d, d)), preconditioners))
    by_layers, by_descent = layer.predict(weights, prompts), theory.descend(prompts, preconditioners)
    return float(jnp.abs(by_layers - by_descent).max() / jnp.abs(by_descent).max())


def one_step_risk_at(rate, config: Config, scale: float = 1.0):
    """Risk of one step of any rate on inputs wider by a factor: D v (1 - 2 a v + a^2 v^2 E[(S^2)_11])."""
    variance = config.variance * scale**2
    spread = 1 / theory.best_rate(config.length, theory.fourth_moment("uniform", config.dimension))
    return config.dimension * variance * (1 - 2 * rate * variance + (rate * variance) ** 2 * spread)


def best_rate(config: Config) -> float:
    """The rate of least risk for one step."""
    return theory.best_rate(config.length, theory.fourth_moment("uniform", config.dimension)) / config.variance


def scan(config: Config, keys: jax.Array) -> Scan:
    """One step of gradient descent at several rates, on samples."""
    best = best_rate(config)
    rates = best * np.array(MULTIPLES)
    chunks = 8 * -(-config.test_prompts // CHUNK)  # cheap, and without a control variate

    @jax.jit
    @jax.vmap
    def moments(key):
        def chunk(key):
            prompts = draw(key, config, CHUNK)
            unit = theory.descend(prompts, jnp.eye(config.dimension)[None])
            return jnp.stack([(unit * prompts.y_query).mean(), (unit**2).mean(), (prompts.y_query**2).mean()])

        return jax.lax.map(chunk, jax.random.split(key, chunks)).mean(axis=0)

    cross, square, label = np.asarray(moments(keys), np.float64).T
    risks = label[:, None] - 2 * rates * cross[:, None] + rates**2 * square[:, None]
    return Scan(best, cross / square, rates, risks, one_step_risk_at(rates, config))


def train(
    layers: int, plain: theory.Rates, moving: theory.Rates, spectrum, config: Config, key: jax.Array, context: Context
) -> Trained:
    """Adam on all weights, and tests."""
    init_key, train_key, test_key = jax.random.split(key, 3)
    rate = cooling(config.learning_rate, config.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip), optax.adam(rate))
    sizes: dict[str, Any] = {"dimension": config.dimension, "layers": layers}
    scale = config.scale / config.variance**0.5
    start = functools.partial(layer.init, scale=scale, optimizer=optimizer, full=True, **sizes)
    states = starts = jax.vmap(start)(jax.random.split(init_key, config.seeds))
    keys = jax.random.split(train_key, config.seeds)

    def step(state, key):
        return layer.step(state, draw(key, config, config.batch), optimizer, build=lambda params: params)

    def known(rates, scale: float = 1.0) -> float:
        """Risk of such steps on inputs wider by a factor."""
        if layers == 1:
            return float(one_step_risk_at(best_rate(config), config, scale))
        with jax.enable_x64(True):
            rates = jax.tree.map(jnp.asarray, rates)
            return config.variance * scale**2 * float(theory.risk(jnp.asarray(scale**2 * spectrum), rates))

    # The steps that the layers are compared with act on inputs of this variance, those of `theory` on unit ones.
    in_units = lambda rates: jnp.asarray(rates, jnp.float32)[:, None, None] * jnp.eye(config.dimension)[None]
    labels = in_units(moving.labels) / config.variance
    inputs = in_units(moving.inputs / np.where(moving.labels == 0, 1, moving.labels))
    reference = layer.descent(layer.Free(inputs, labels))
    of_moving = known(moving)
    ends = context.track(evenly(config.steps, PIECES), f"Adam, {config.steps} steps of {layers} layers")
    risks = []
    for end, states in advance_to(step, starts, keys, ends):
        fresh = jax.random.fold_in(test_key, end)
        risks.append(of_moving + test(states.trained, reference, fresh, config, 4, 1.0)[0])
    chunks = -(-config.test_prompts // CHUNK)
    excess, difference, angle = test(states.trained, reference, test_key, config, chunks, 1.0)
    scaled = [
        known(moving, scale) + test(states.trained, reference, test_key, config, chunks, scale)[0]
        for scale in config.test_scales
    ]
    return Trained(
        layers,
        np.stack(risks, axis=1),
        of_moving + excess,
        known(plain),
        of_moving,
        difference,
        angle,
        np.stack(scaled, axis=1),
        np.array([one_step_risk_at(best_rate(config), config, scale) for scale in config.test_scales]),
    )


def test(params: layer.Params, reference: layer.Params, key: jax.Array, config: Config, chunks: int, scale: float):
    """Mean squared error less that of the steps compared with, difference and angle, for every seed `[3, R]`.

    The steps' own risk is known, and their errors are nearly the trained layers': the difference has little noise.
    """
    return np.asarray(_test(params, reference, key, config, chunks, scale), np.float64)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _test(params, reference, key, config: Config, chunks: int, scale):
    def sensitive(weights, prompts):
        of = lambda query: (lambda y: (y.sum(), y))(layer.predict(weights, prompts._replace(x_query=query)))
        return jax.grad(of, has_aux=True)(prompts.x_query)

    def one(params, key):
        def chunk(key):
            prompts = draw(key, config, CHUNK, scale)
            (slopes, guess), (known, exact) = (sensitive(weights, prompts) for weights in (params, reference))
            lengths = jnp.linalg.norm(slopes, axis=1) * jnp.linalg.norm(known, axis=1)
            cosine = jnp.sum(slopes * known, axis=1) / jnp.maximum(lengths, 1e-30)
            errors = [(y - prompts.y_query) ** 2 for y in (guess, exact)]
            squares = [errors[0] - errors[1], (guess - exact) ** 2, exact**2, cosine]
            return jnp.stack([square.mean() for square in squares])

        excess, difference, size, cosine = jax.lax.map(chunk, jax.random.split(key, chunks)).mean(axis=0)
        return jnp.stack([excess, jnp.sqrt(difference / size), cosine])

    seeds = len(params.w_pv)
    return jax.vmap(one)(params, jax.random.split(key, seeds)).T
