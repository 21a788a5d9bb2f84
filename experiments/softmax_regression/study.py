"""Settings of `softmax_regression`, and the run."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import minimize_scalar

from attnjax.dynamics import linear_attention_theory
from attnjax.dynamics import softmax_attention as layer
from attnjax.dynamics import softmax_attention_theory as theory
from attnjax.dynamics.linear_attention_theory import Task
from attnjax.tasks import Prompts, geometric_spectrum, linear_regression
from experiments.framework.context import Context, UsageError
from experiments.framework.training import advance_to, cooling, evenly
from experiments.softmax_regression import several

CHUNK = 1024  # test prompts in memory at a time, per seed
WEAK = 0.01  # strength of the pair of heads that is as good as one debiased step
PIECES = 10  # of a run, between which the loss is measured


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are the paper's but for the number of steps."""

    dimension: int = 5
    """D, of the inputs."""
    length: int = 40
    """L, labeled examples in a training prompt."""
    noise_variance: float = 0.1
    """s^2, of the label noise."""
    heads: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of heads."""
    condition_number: float = 4.0
    """Largest over smallest eigenvalue of the anisotropic covariance, whose spectrum is geometric with mean one; 1
    leaves that setting out."""
    anisotropic_heads: int = 4
    """Number of heads there, at least 2."""
    several_heads: tuple[int, ...] = (2, 3, 4)
    """Numbers of heads, each at least 2, trained on two tasks at once; none leaves that out."""
    several_dimension: int = 6
    """D there."""
    task_inputs: int = 4
    """Inputs that each of the two tasks depends on: the first so many, and the last."""
    several_length: int = 48
    """L there."""
    steps: int = 6000
    """Steps of Adam."""
    learning_rate: float = 2e-3
    """Of Adam's first step; it falls linearly to zero over the last half."""
    batch: int = 256
    """Fresh prompts per step and seed."""
    seeds: int = 4
    """Independent runs, in one vmap; at least 2."""
    test_lengths: tuple[int, ...] = (10, 20, 100)
    """Prompt lengths at which the trained layer is tested, besides its own."""
    test_prompts: int = 131072
    """Fresh prompts per seed and risk, rounded up to a multiple of 1024."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """Small sizes for continuous integration: the same claims in under a minute on two cores."""
        return cls(
            heads=(1, 4),
            condition_number=1.0,
            several_heads=(3,),
            steps=2500,
            learning_rate=5e-3,
            batch=128,
            seeds=3,
            test_lengths=(100,),
            test_prompts=16384,
        )

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        sizes = {"dimension": 1, "length": 2, "steps": PIECES, "batch": 1, "seeds": 2, "test_prompts": 1}
        for name, least in (sizes | {"anisotropic_heads": 2}).items():
            if getattr(self, name) < least:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}.")
        for name in ("noise_variance", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}.")
        if not 1 <= self.condition_number < math.inf:
            raise UsageError(f"--condition-number must be at least 1 (the identity), got {self.condition_number}.")
        if min(self.several_heads, default=2) < 2 or len(set(self.several_heads)) != len(self.several_heads):
            raise UsageError(f"--several-heads must be different numbers of at least 2, got {self.several_heads}.")
        if self.several_length < 2:
            raise UsageError(f"--several-length must be at least 2, got {self.several_length}.")
        if not 1 <= self.task_inputs <= self.several_dimension:
            raise UsageError(
                f"--task-inputs must be at least 1 and at most --several-dimension = {self.several_dimension}, "
                f"got {self.task_inputs}."
            )
        for name, least in {"heads": 1, "test_lengths": 2}.items():
            values = getattr(self, name)
            if not values or min(values) < least or len(set(values)) != len(values):
                raise UsageError(
                    f"--{name.replace('_', '-')} must be one or more different numbers of at least {least}, "
                    f"got {values}."
                )


class Setting(NamedTuple):
    """One number of heads and covariance, trained. R is the number of seeds, H that of heads.

    Attributes:
        heads: H.
        task: Distribution of the training prompts.
        risks: Test risk as training goes on `[R, PIECES]`.
        kq: KQ circuits at the end `[R, H, E, E]`.
        ov: OV circuits at the end `[R, H, E]`.
        lengths: Prompt lengths of what follows, that of training first `[K]`.
        risks_by_length: Measured `[R, K]`.
        predicted_by_length: Of heads of the measured strengths and nothing else, isotropic inputs only `[R, K]`.
    """

    heads: int
    task: Task
    risks: np.ndarray
    kq: np.ndarray
    ov: np.ndarray
    lengths: tuple[int, ...]
    risks_by_length: np.ndarray
    predicted_by_length: np.ndarray

    @property
    def omega(self) -> np.ndarray:
        """Strength of each head's KQ circuit, its mean diagonal entry on the inputs `[R, H]`."""
        d = self.kq.shape[-1] - 1
        return np.trace(self.kq[..., :d, :d], axis1=-2, axis2=-1) / d

    def select(self, seeds: np.ndarray) -> "Setting":
        """The same of some of the seeds."""
        names = ("risks", "kq", "ov", "risks_by_length", "predicted_by_length")
        return self._replace(**{name: getattr(self, name)[seeds] for name in names})

    @property
    def mu(self) -> np.ndarray:
        """What each head's average label counts `[R, H]`."""
        return self.ov[..., -1]


class Optimum(NamedTuple):
    """Least risk of heads with one strength, and where it is."""

    omega: float
    mu: float
    risk: float


class Result(NamedTuple):
    """What the claims and figures are made of.

    Attributes:
        config: The settings.
        single: The best of one head.
        pair: The best of two heads of opposite strengths.
        ridge: The least risk of any predictor.
        isotropic: By number of heads.
        anisotropic: Inputs with unequal variances; None where the condition number is 1.
        shared: Two tasks at once, by number of heads.
    """

    config: Config
    single: Optimum
    pair: Optimum
    ridge: float
    isotropic: dict[int, Setting]
    anisotropic: Setting | None
    shared: dict[int, several.Shared]

    def reached(self, setting: Setting) -> np.ndarray:
        """Seeds that have left the saddles, judged by which of two risks theirs is nearer to, by ratio `[R]`.

        Several heads whose strengths have one sign are no better than one head; a head of strength zero predicts
        nothing, at a risk of one. Training may take very long to leave either.
        """
        better, worse = (self.single.risk, 1.0) if setting.heads == 1 else (self.pair.risk, self.single.risk)
        return setting.risks_by_length[:, 0] < math.sqrt(better * worse)


def run(config: Config, context: Context) -> Result:
    """Find the least risks in float64, then train every number of heads, seeds in one vmap.

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
    optimum_key, train_key, other_key, shared_key = jax.random.split(context.key, 4)
    with jax.enable_x64(True):
        exact = {length: known(config, length, optimum_key) for length in {config.length, *config.test_lengths}}
        single, pair = (best(config, signs, optimum_key, exact[config.length]) for signs in ((1.0,), (1.0, -1.0)))
        ridge = float(theory.ridge_risk(optimum_key, task_of(config, jnp.eye(d))))
    isotropic = {
        heads: with_expected(
            study(
                heads,
                task_of(config, jnp.eye(d)),
                config,
                jax.random.fold_in(train_key, heads),
                context,
                config.test_lengths,
            ),
            config,
            optimum_key,
            exact,
        )
        for heads in config.heads
    }
    anisotropic = None
    if config.condition_number > 1:
        spectrum = jnp.diag(geometric_spectrum(d, config.condition_number))
        anisotropic = study(config.anisotropic_heads, task_of(config, spectrum), config, other_key, context)
    shared = {
        heads: several.study(heads, config, jax.random.fold_in(shared_key, heads), context)
        for heads in config.several_heads
    }
    return Result(config, single, pair, ridge, isotropic, anisotropic, shared)


def task_of(config: Config, covariance: jax.Array) -> Task:
    """The training task: a task vector of variance 1 / D in every direction."""
    d = config.dimension
    prior = jnp.eye(d, dtype=covariance.dtype) / d
    return Task(covariance, config.length, prior=prior, noise=math.sqrt(config.noise_variance))


def best(config: Config, signs: tuple[float, ...], key: jax.Array, exact: float) -> Optimum:
    """The least risk over one strength, each head with its sign, and over all mu; same inputs for every strength."""

    def at(omega):
        of = sampled_moments(key, omega * jnp.array(signs), config, config.length)
        mu = theory.best_mu(of)
        return theory.risk(mu, of), mu[0]

    search = {"bounds": (0.01, 2.0), "method": "bounded", "options": {"xatol": 1e-3}}  # risk is flat: 1e-7 of it
    found: Any = minimize_scalar(lambda omega: float(at(omega)[0]), **search)
    risk, mu = at(found.x)
    return Optimum(float(found.x), float(mu), float(risk) + exact)


def sampled_moments(key: jax.Array, omega: jax.Array, config: Config, length: int) -> theory.Moments:
    """Coefficients of the risk on sampled inputs, isotropic."""
    noise = jnp.asarray(math.sqrt(config.noise_variance), omega.dtype)
    return _moments(key, omega, noise, dimension=config.dimension, length=length)


@functools.partial(jax.jit, static_argnames=("dimension", "length"))
def _moments(key, omega, noise, *, dimension: int, length: int):
    return theory.moments(key, omega, dimension=dimension, length=length, noise=noise)


def known(config: Config, length: int, key: jax.Array) -> float:
    """A control variate: the exact risk of a weak opposite pair, one debiased step, less that on the same inputs."""
    task = task_of(config, jnp.eye(config.dimension))._replace(length=length)
    of = sampled_moments(key, WEAK * jnp.array([1.0, -1.0]), config, length)
    return float(theory.debiased_risk(task)) - float(theory.risk(theory.best_mu(of), of))


def study(
    heads: int, task: Task, config: Config, key: jax.Array, context: Context, others: tuple[int, ...] = ()
) -> Setting:
    """Train one number of heads, and test it at its own length and others."""
    train_key, init_key, test_key = jax.random.split(key, 3)
    optimizer = optax.adam(cooling(config.learning_rate, config.steps))
    start = functools.partial(layer.init, dimension=config.dimension, heads=heads, optimizer=optimizer)
    state = starts = jax.vmap(start)(jax.random.split(init_key, config.seeds))
    keys = jax.random.split(train_key, config.seeds)
    ends = context.track(evenly(config.steps, PIECES), f"Adam, {config.steps} steps of {heads} heads")
    risks = []
    step = lambda state, key: layer.step(state, draw(key, task, config.batch, config.length), optimizer)
    for end, state in advance_to(step, starts, keys, ends):
        circuits, fresh = jax.vmap(layer.circuits)(state.params), jax.random.fold_in(test_key, end)
        risks.append(test(circuits, task, fresh, config.test_prompts // 8))
    circuits = jax.vmap(layer.circuits)(state.params)
    lengths = (config.length, *(length for length in others if length != config.length))
    tasks = [task._replace(length=length) for length in lengths]
    by_length = [test(circuits, other, jax.random.fold_in(key, other.length), config.test_prompts) for other in tasks]
    return Setting(
        heads,
        jax.tree.map(np.asarray, task),
        np.stack(risks, axis=-1),
        np.asarray(circuits.kq, np.float64),
        np.asarray(circuits.ov, np.float64),
        lengths,
        np.stack(by_length, axis=-1),
        np.empty((config.seeds, 0)),
    )


def with_expected(setting: Setting, config: Config, key: jax.Array, exact: dict[int, float]) -> Setting:
    """The same with the risk that heads of its strengths, and nothing else, have at every length it was tested at.

    Args:
        setting: Isotropic inputs.
        config: Settings.
        key: Of the sampled inputs.
        exact: From `known`, by length.
    """

    def risk(omega, mu, length):
        of = sampled_moments(key, jnp.asarray(omega), config, length)
        return float(theory.risk(jnp.asarray(mu), of)) + exact[length]

    with jax.enable_x64(True):
        seeds = list(zip(setting.omega, setting.mu, strict=True))
        expected = [[risk(omega, mu, length) for length in setting.lengths] for omega, mu in seeds]
    return setting._replace(predicted_by_length=np.array(expected))


def draw(key: jax.Array, task: Task, batch: int, length: int) -> Prompts:
    """Prompts of a task, whose covariances are diagonal; `length` is given apart because it is part of the shape."""
    assert task.prior is not None
    variances, prior = jnp.diagonal(task.covariance), jnp.diagonal(task.prior)
    return linear_regression(key, batch=batch, length=length, covariance=variances, prior=prior, noise=task.noise)


def test(circuits: layer.Circuits, task: Task, key: jax.Array, prompts: int) -> np.ndarray:
    """Risk of every seed on fresh prompts `[R]`.

    The known risk of one debiased gradient step, whose errors are nearly those of a trained pair of heads, is a control
    variate: what is averaged is the difference of the two squared errors.
    """
    step = theory.debiased_step(task)
    known = float(linear_attention_theory.risk(step * (task.length - 1) / task.length, theory.debiased(task)))
    length = int(task.length)
    differences = _differences(circuits, task, step, key, -(-prompts // CHUNK), length)
    return known + np.asarray(differences, np.float64)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _differences(circuits, task, step, key, chunks: int, length: int):
    """Mean squared error less that of one debiased gradient step."""

    def one(circuits, key):
        def chunk(key):
            prompts = draw(key, task, CHUNK, length)
            x, y = (part - part.mean(1, keepdims=True) for part in (prompts.x, prompts.y))
            reference = jnp.einsum("bi,bid,de,be->b", y, x, step, prompts.x_query) / length
            squares = [(guess - prompts.y_query) ** 2 for guess in (layer.predict(circuits, prompts), reference)]
            return (squares[0] - squares[1]).mean()

        return jax.lax.map(chunk, jax.random.split(key, chunks)).mean()

    return jax.vmap(one)(circuits, jax.random.split(key, len(circuits.ov)))
