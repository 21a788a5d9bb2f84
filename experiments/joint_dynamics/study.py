"""Settings of `joint_dynamics`, and the run."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.dynamics import joint_mlp_attention as layer
from attnjax.dynamics import joint_mlp_attention_theory as theory
from experiments.framework.context import Context, UsageError
from experiments.framework.flows import integrate

POINTS = 101  # along every flow
EXACT = ("linear", "exp")  # the kinds of attention whose invariant holds without an assumption
ARRIVED = 1e-3  # share of the way that every weight must have left for the clocks to be compared
BEFORE_BLOW_UP = 0.999  # how far towards it the linear flow is integrated


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are those of the paper's Figures 2, 3 and 4."""

    distinct: int = 10
    """Contextual tokens whose frequency differs smoothly between classes."""
    common: int = 10
    """Contextual tokens of random frequency."""
    classes: int = 20
    """Classes, and outputs of the perceptron."""
    temperature: float = 0.5
    """tau, of attention."""
    learning_rate: float = 0.1
    """Of gradient descent."""
    steps: int = 1000
    """Of gradient descent."""
    scale: float = 0.01
    """Standard deviation of the initial weights and logits."""
    seeds: int = 8
    """Independent draws, in one vmap; at least 2."""
    depths: tuple[int, ...] = (1, 2, 3)
    """Matrices of the perceptron whose flows are integrated, with tanh between them."""
    width: int = 16
    """Hidden units of those."""
    flow_scale: float = 0.5
    """Standard deviation of their initial weights."""
    flow_time: float = 20.0
    """Time over which they are integrated."""
    unit_tokens: int = 10
    """Weights of a single unit."""
    unit_range: tuple[float, float] = (1.0, 4.0)
    """Where those weights end, uniformly drawn from this range."""
    unit_start: float = 0.05
    """Where they start."""
    unit_temperature: float = 3.0
    """tau, of the unit's attention."""
    unit_time: float = 100.0
    """Time over which the unit is followed and drawn."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """The paper's own sizes, and flows of one depth: the same claims in under a minute on two cores."""
        return cls(depths=(2,))

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        least = {"distinct": 1, "common": 0, "classes": 2, "steps": 1, "seeds": 2, "width": 1, "unit_tokens": 2}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {bound}, got {getattr(self, name)}.")
        for name in (
            *("temperature", "learning_rate", "scale", "flow_scale", "flow_time"),
            *("unit_start", "unit_temperature", "unit_time"),
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}.")
        if not self.depths or min(self.depths) < 1 or len(set(self.depths)) != len(self.depths):
            raise UsageError(f"--depths must be one or more different numbers of at least 1, got {self.depths}.")
        low, high = self.unit_range
        if not self.unit_start < low < high < math.inf:
            raise UsageError(f"--unit-range must increase and lie above --unit-start, got {self.unit_range}.")


class Descent(NamedTuple):
    """Gradient descent on the authors' model, one matrix and softmax attention, for one law of frequencies.

    Attributes:
        frequencies: Of the first seed `[Y, M]`.
        correlations: Between z and what the matrix says of it, before every step `[seeds, steps]`.
        parts: The same with its first and second term alone `[2, seeds, steps]`.
        first: The first seed's weights from all contextual tokens to the first class `[steps, M]`.
    """

    frequencies: np.ndarray
    correlations: np.ndarray
    parts: np.ndarray
    first: np.ndarray


class Flow(NamedTuple):
    """Gradient flow of one kind of attention below a perceptron of one depth.

    Attributes:
        kind: Of attention.
        depth: Matrices.
        drift: Largest change of the invariant over the largest change of its part in z, the worst seed.
        moved: Largest change of z, the seed in which it is least.
    """

    kind: str
    depth: int
    drift: float
    moved: float


class Unit(NamedTuple):
    """One unit with a nonlinear activation, by integration.

    Attributes:
        times: `[POINTS]`.
        mu: Where its weights end, ascending `[seeds, M]`.
        weights: `[seeds, POINTS, M]`.
        entropies: Of its attention `[seeds, POINTS]`.
        clock_spread: Largest difference between the tokens' clocks over their mean, at any time, the worst seed.
        ends: Entropy after the slowest weight has arrived to 1e-9 `[seeds]`.
        limits: Entropy where every weight is at its end `[seeds]`.
    """

    times: np.ndarray
    mu: np.ndarray
    weights: np.ndarray
    entropies: np.ndarray
    clock_spread: float
    ends: np.ndarray
    limits: np.ndarray


class Winner(NamedTuple):
    """One unit without activation, by integration.

    Attributes:
        error: Largest difference from the closed form over the largest weight, the worst seed.
        drift: Largest change of erf(v_j / sqrt 2) / Delta_j - erf(v_k / sqrt 2) / Delta_k over the largest term.
        share: Attention of the winner at the end `[seeds]`.
        times: Share of the blow-up time `[POINTS]`.
        weights: Of the first seed `[POINTS, M]`.
    """

    error: float
    drift: float
    share: np.ndarray
    times: np.ndarray
    weights: np.ndarray


class Result(NamedTuple):
    """What the claims and figures are made of."""

    config: Config
    descents: dict[str, Descent]
    flows: tuple[Flow, ...]
    unit: Unit
    winner: Winner


def run(config: Config, context: Context) -> Result:
    """Descend as the authors do, then integrate every flow in float64.

    Args:
        config: Settings.
        context: Surroundings.

    Returns:
        The result.

    Raises:
        UsageError: An impossible setting.
    """
    config.check()
    descent_key, flow_key, unit_key, winner_key = jax.random.split(context.key, 4)
    descents = {
        name: descend(name, config, jax.random.split(descent_key, config.seeds)) for name in ("smooth", "random")
    }
    cases = [(kind, depth) for kind in layer.KINDS for depth in config.depths]
    with jax.enable_x64(True):
        keys = jax.random.split(flow_key, config.seeds)
        context.console.print(f"Integrating {len(cases)} flows of joint training, {config.seeds} seeds.")
        flows = follow(cases, config, keys)
        unit = follow_unit(config, jax.random.split(unit_key, config.seeds))
        winner = follow_winner(config, jax.random.split(winner_key, config.seeds))
    return Result(config, descents, tuple(flows), unit, winner)


def frequencies(name: str, config: Config, key: jax.Array) -> jax.Array:
    """The authors' frequencies, rows summing to one: uniform draws, with bells for the distinct tokens if smooth."""
    x = jax.random.uniform(key, (config.classes, config.distinct + config.common), maxval=0.5)
    if name == "smooth":
        centers = jnp.arange(config.classes)[:, None] / config.classes * config.distinct
        x = x.at[:, : config.distinct].set(jnp.exp(-((jnp.arange(config.distinct)[None] - centers) ** 2) / 30))
    return x / x.sum(axis=1, keepdims=True)


def correlation(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine of two vectors after centering."""
    a, b = a - a.mean(), b - b.mean()
    return a @ b / jnp.maximum(jnp.linalg.norm(a) * jnp.linalg.norm(b), 1e-30)


def descend(name: str, config: Config, keys: jax.Array) -> Descent:
    """Gradient descent, all seeds at once."""
    tokens = config.distinct + config.common

    def one(key):
        data_key, start_key = jax.random.split(key)
        x = frequencies(name, config, data_key)
        state = layer.init(start_key, tokens=tokens, widths=(config.classes,), scale=config.scale)
        terms = functools.partial(_terms, mean_attention=x.mean(axis=0), temperature=config.temperature)
        constant = state.params.z - sum(terms(state.params.layers[0][:, :-1]))

        def step(state, _):
            v = state.params.layers[0][:, :-1]
            first, second = terms(v)
            z = state.params.z
            whole = correlation(z, first + second + constant)
            reports = whole, jnp.stack([correlation(z, first), correlation(z, second)]), v[0]
            after = layer.step(state, x, config.learning_rate, kind="softmax", temperature=config.temperature)[0]
            return after, reports

        return x, jax.lax.scan(step, state, length=config.steps)[1]

    x, (whole, parts, first) = jax.jit(jax.vmap(one))(keys)
    return Descent(*(np.asarray(part, np.float64) for part in (x[0], whole, jnp.moveaxis(parts, -1, 0), first[0])))


def _terms(v: jax.Array, *, mean_attention: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """The two terms of `implied_logits` for softmax attention."""
    first = theory.implied_logits(v, "exp", temperature=temperature)
    whole = theory.implied_logits(v, "softmax", temperature=temperature, mean_attention=mean_attention)
    return first, whole - first


def follow(cases: list[tuple[str, int]], config: Config, keys: jax.Array) -> list[Flow]:
    """Gradient flows of joint training, all kinds, depths and seeds as one system, which compiles once."""
    tokens, tau = config.distinct + config.common, config.temperature

    def one(key):
        data_key, *start_keys = jax.random.split(key, 1 + len(cases))
        x = frequencies("random", config, data_key)
        mean_attention = x.mean(axis=0)

        def start(case, key):
            kind, depth = case
            widths = (*[config.width] * (depth - 1), config.classes)
            params = layer.init(key, tokens=tokens, widths=widths, scale=config.flow_scale).params
            return params._replace(z=1 + params.z) if kind == "linear" else params  # no attention at z = 0

        def loss(case, params):
            kind, depth = case
            activation = layer.identity if depth == 1 else jnp.tanh
            return layer.loss(params, x, kind=kind, temperature=tau, activation=activation)

        total = lambda state: sum(loss(*pair) for pair in zip(cases, state, strict=True))
        velocity = lambda t, state: jax.tree.map(jnp.negative, jax.grad(total)(state))
        starts = [start(*pair) for pair in zip(cases, start_keys, strict=True)]
        paths = integrate(velocity, starts, jnp.linspace(0.0, config.flow_time, POINTS))

        def departure(case, path):
            kind, _ = case
            moved = path.z**2 / 2 if kind == "linear" else path.z
            of = functools.partial(theory.implied_logits, kind=kind, temperature=tau, mean_attention=mean_attention)
            invariant = moved - jax.vmap(lambda first: of(first[:, :-1]))(path.layers[0])
            size = jnp.abs(moved - moved[:1]).max()
            return jnp.abs(invariant - invariant[:1]).max() / size, size

        return [departure(*pair) for pair in zip(cases, paths, strict=True)]

    found = [tuple(map(np.asarray, pair)) for pair in jax.jit(jax.vmap(one))(keys)]
    return [
        Flow(*case, float(drift.max()), float(size.min())) for case, (drift, size) in zip(cases, found, strict=True)
    ]


def follow_unit(config: Config, keys: jax.Array) -> Unit:
    """The flow with a nonlinear activation, and its entropy long after."""
    tau, (low, high) = config.unit_temperature, config.unit_range

    def one(key):
        mu = jnp.sort(jax.random.uniform(key, (config.unit_tokens,), minval=low, maxval=high))
        start = jnp.full_like(mu, config.unit_start)
        velocity = lambda t, v: theory.nonlinear_flow(v, mu, tau)
        times = jnp.linspace(0.0, config.unit_time, POINTS)
        path = integrate(velocity, start, times)
        # Attention on a token is at least this along the whole flow, so that no weight is further than 1e-9 from its
        # end after 1e-9 = exp(-t * attention).
        least = jnp.exp(-(mu.max() ** 2) / tau) / config.unit_tokens
        late = integrate(velocity, path[-1], jnp.array([0.0, 1.0]) * math.log(1e9) / least)[-1]
        clocks = jax.vmap(lambda v: theory.nonlinear_clock(v, start, mu, tau))(path[1:])
        readable = jnp.all(mu[None] - path[1:] > ARRIVED * mu[None], axis=1)  # a clock near its end loses digits
        spread = jnp.where(readable, (clocks.max(axis=1) - clocks.min(axis=1)) / clocks.mean(axis=1), 0).max()
        entropy = lambda v: theory.attention_entropy(v, tau)
        return mu, path, entropy(path), spread, entropy(late), entropy(mu)

    mu, path, entropies, spread, ends, limits = (np.asarray(part) for part in jax.jit(jax.vmap(one))(keys))
    times = np.linspace(0.0, config.unit_time, POINTS)
    return Unit(times, mu, path, entropies, float(spread.max()), ends, limits)


def follow_winner(config: Config, keys: jax.Array) -> Winner:
    """The flow without activation, to just before it blows up."""
    shares = jnp.linspace(0.0, BEFORE_BLOW_UP, POINTS)

    def one(key):
        delta_key, start_key = jax.random.split(key)
        delta = jax.random.normal(delta_key, (config.unit_tokens,))
        start = config.unit_start * jax.random.normal(start_key, (config.unit_tokens,))
        times = shares * theory.blow_up_time(start, delta)
        path = integrate(lambda t, v: theory.linear_flow(v, delta), start, times)
        closed = theory.linear_path(times, start, delta)
        conserved = jax.scipy.special.erf(path / jnp.sqrt(2.0)) / delta[None]
        conserved = conserved - conserved[:, :1]
        drift = jnp.abs(conserved - conserved[:1]).max() / jnp.abs(conserved).max()
        error = jnp.abs(path - closed).max() / jnp.abs(path).max()
        return error, drift, jax.nn.softmax(path[-1] ** 2 / 2).max(), path

    error, drift, share, path = jax.jit(jax.vmap(one))(keys)
    arrays: Any = (np.asarray(share), np.asarray(shares), np.asarray(path[0]))
    return Winner(float(error.max()), float(drift.max()), *arrays)
