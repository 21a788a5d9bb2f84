"""Settings of `mesa_optimization`, and the run."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.dynamics import autoregressive_attention as layer
from attnjax.dynamics import autoregressive_attention_theory as theory
from attnjax.tasks import InitialLaw, initial_states, linear_sequences
from experiments.framework.context import Context, UsageError
from experiments.framework.flows import decay, integrate

POINTS = 201  # along every path
CHUNK = 512  # test sequences in memory at a time, per seed
ARRIVED = 1e-3  # descent covers the time in which the flow comes within this fraction of its limit
LAWS: dict[str, InitialLaw] = {
    "gaussian": "gaussian",
    "sparse": "sparse",
    "full-one": "full-one",
    "decaying": "gaussian",
}
EXPECTED = ("gaussian", "sparse")  # the laws that the theorem is about


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are the paper's but for the batch."""

    dimension: int = 5
    """D, of a state."""
    length: int = 100
    """T, states of a sequence."""
    scale: float = 1.0
    """Standard deviation of Gaussian first states; size of the others' coordinates."""
    modulus: float = 0.9
    """|W_jj| in the setting `decaying`; in the others it is 1."""
    a: float = 0.1
    """Diagonal of W_KQ's block at the start."""
    b: float = 0.1
    """Diagonal of W_PV's block at the start."""
    starts: tuple[tuple[float, float], ...] = ((0.1, 0.1), (0.5, 1.5), (2.0, 2.0))
    """Pairs (a, b) from which the flow is integrated, the paper's."""
    stiffness: float = 0.1
    """First learning rate times the largest curvature on the way; small is close to gradient flow."""
    batch: int = 256
    """Fresh sequences per step and seed; an eighth of that where first states are not Gaussian."""
    seeds: int = 8
    """Independent runs of gradient descent, in one vmap; at least 2."""
    test_sequences: int = 16384
    """Fresh sequences per seed in every test, rounded up to a multiple of 512."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """Small sizes for continuous integration: the same claims in under a minute on two cores."""
        return cls(length=12, stiffness=0.2)

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        for name, least in {"dimension": 1, "length": 3, "batch": 1, "seeds": 2, "test_sequences": 1}.items():
            if getattr(self, name) < least:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}.")
        for name in ("scale", "modulus", "a", "b", "stiffness"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"--{name} must be positive, got {getattr(self, name)}.")
        if not self.starts or any(not a + b > 0 or not a * b >= 0 for a, b in self.starts):
            raise UsageError(f"--starts must be pairs of numbers, not negative and not both zero, got {self.starts}.")


class Setting(NamedTuple):
    """One law of sequences: what theory says, and what gradient descent did. R is the number of seeds.

    Attributes:
        name: Key of `LAWS`.
        modulus: |W_jj|.
        limit: Of a b, by the general formula.
        published: Of a b, by the paper's formula, which is for modulus 1.
        times: Flow time `[POINTS]`, for each of the starts `[starts, POINTS]`.
        flows: a b by integration `[starts, POINTS]`.
        closed: a b in closed form `[starts, POINTS]`.
        drift: Largest change of a^2 - b^2 over the largest of a^2 + b^2.
        descent_times: Flow time after every step `[steps]`.
        descent: a b after every step of descent on the population loss, with the same learning rates `[steps]`.
        products: a b after every step of descent on samples `[R, steps]`.
        stray: What lies outside the two multiples of the identity at the end `[R]`.
        off_diagonal: Mean entry off the diagonals of both blocks at the end, over the mean entry on them; NaN in one
            dimension `[R]`.
        w_pv: Block of W_PV at the end, mean over seeds `[D, D]`.
        w_kq: Block of W_KQ at the end, mean over seeds `[D, D]`.
        losses: Loss of two diagonals with a b at half the limit, on samples `[R]`.
        expected: The same in closed form.
        slopes: Of the prediction over the truth at the last state, by least squares over all coordinates `[R]`.
        errors: Mean squared error at the last state over the mean square of a state `[R]`.
        departure: RMS difference of the trained layer's predictions from those of one step of gradient descent with the
            paper's rate, over the RMS of these `[R]`.
    """

    name: str
    modulus: float
    limit: float
    published: float
    times: np.ndarray
    flows: np.ndarray
    closed: np.ndarray
    drift: float
    descent_times: np.ndarray
    descent: np.ndarray
    products: np.ndarray
    stray: np.ndarray
    off_diagonal: np.ndarray
    w_pv: np.ndarray
    w_kq: np.ndarray
    losses: np.ndarray
    expected: float
    slopes: np.ndarray
    errors: np.ndarray
    departure: np.ndarray


class Result(NamedTuple):
    """What the claims and figures are made of."""

    config: Config
    settings: dict[str, Setting]


def run(config: Config, context: Context) -> Result:
    """Integrate the flows in float64, then train and test every law, its seeds in one vmap.

    Args:
        config: Settings.
        context: Surroundings.

    Returns:
        The result.

    Raises:
        UsageError: An impossible setting.
    """
    config.check()
    keys = dict(zip(LAWS, jax.random.split(context.key, len(LAWS)), strict=True))
    return Result(config, {name: study(name, config, keys[name]) for name in context.track(LAWS, "laws of sequences")})


def study(name: str, config: Config, key: jax.Array) -> Setting:
    """One law."""
    modulus = config.modulus if name == "decaying" else 1.0
    with jax.enable_x64(True):
        moments = theory.moments(LAWS[name], dimension=config.dimension, scale=config.scale)
        by = theory.rates(moments, config.length, modulus)
        limit = float(theory.limit(moments, config.length, modulus))
        published = float(theory.limit(moments, config.length))
        times = np.stack([np.linspace(0.0, arrival(a, b, by, 1e-12), POINTS) for a, b in config.starts])
        a, b = map(np.asarray, follow(jnp.array(config.starts, float), by, jnp.asarray(times)))
        flows, invariant = a * b, a**2 - b**2
        drift = np.max(np.abs(invariant - invariant[:, :1]).max(1) / (a**2 + b**2).max(1))
        closed = np.stack(
            [
                theory.product_at(jnp.asarray(path), a0, b0, by)
                for path, (a0, b0) in zip(times, config.starts, strict=True)
            ]
        )
        steps, rate = schedule(config, by)
        rates = rate * decay(jnp.arange(steps), steps)
        descent = np.asarray(descend(config.a, config.b, by, rates))
        expected = float(theory.population_loss(limit / 2, moments, config.length, config.dimension, modulus))
    train_key, test_key = jax.random.split(key)
    # Sixth moments of Gaussians have heavy tails, those of other starts have none: these need few samples.
    few = config if LAWS[name] == "gaussian" else dataclasses.replace(config, batch=max(1, config.batch // 8))
    draw = sampler(config, LAWS[name], modulus)
    state, products = train(jax.random.split(train_key, config.seeds), draw, few, np.asarray(rates, np.float32))
    tests = test(jax.random.split(test_key, config.seeds), draw, config, state.params, limit / 2, published)
    d = config.dimension
    blocks = np.stack([state.params.w_pv[:, :, :d].real, state.params.w_kq[:, d:, :d].real]).astype(np.float64)
    return Setting(
        name=name,
        modulus=modulus,
        limit=limit,
        published=published,
        times=times,
        flows=flows,
        closed=closed,
        drift=float(drift),
        descent_times=np.cumsum(np.asarray(rates)),
        descent=descent,
        products=products,
        stray=np.asarray(jax.vmap(layer.diagonal)(state.params).stray, np.float64),
        off_diagonal=off_diagonal(blocks),
        w_pv=blocks[0].mean(0),
        w_kq=blocks[1].mean(0),
        expected=expected,
        **tests,
    )


def off_diagonal(blocks: np.ndarray) -> np.ndarray:
    """Mean entry off the diagonals over the mean entry on them, for blocks `[2, R, D, D]`; NaN in one dimension."""
    d = blocks.shape[-1]
    diagonal = np.trace(blocks, axis1=-2, axis2=-1) / d
    if d == 1:
        return np.full(blocks.shape[1], np.nan)
    rest = (blocks.sum((-2, -1)) / d - diagonal) / (d - 1)
    return (rest / diagonal).mean(0)


@jax.jit
def follow(starts: jax.Array, by: theory.Rates, times: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a and b `[starts, POINTS]` by integration, from every start `[starts, 2]` at its times `[starts, POINTS]`."""
    one = lambda start, times: integrate(lambda t, at: theory.flow(at[0], at[1], by), (start[0], start[1]), times)
    return jax.vmap(one)(starts, times)


def arrival(a: float, b: float, by: theory.Rates, fraction: float) -> float:
    """The first time, to within a percent, from which a b is within a fraction of its limit."""
    slowest = 2 * float(by.g)  # D of the closed form is at least that
    times = jnp.linspace(0.0, (60 + 2 * abs(math.log(max(a * b, 1e-12)))) / slowest, 10_000)
    away = np.abs(np.asarray(theory.product_at(times, a, b, by)) * float(by.k / by.g) - 1) > fraction
    return float(times[min(np.flatnonzero(away).max(initial=0) + 1, len(times) - 1)])


def schedule(config: Config, by: theory.Rates) -> tuple[int, float]:
    """Steps of descent, and its first learning rate.

    The Hessian's largest eigenvalue is at most (a^2 + b^2) K + |G - K a b|; along the flow a^2 + b^2 is largest at the
    start or, since a^2 - b^2 is conserved, at the limit of a b.
    """
    g, k = float(by.g), float(by.k)
    invariant = config.a**2 - config.b**2
    size = max(config.a**2 + config.b**2, math.sqrt(invariant**2 + 4 * (g / k) ** 2))
    rate = config.stiffness / (size * k + max(abs(g - k * config.a * config.b), 0.0))
    steps = math.ceil(2 * arrival(config.a, config.b, by, ARRIVED) / rate)
    return steps, rate


def descend(a: float, b: float, by: theory.Rates, rates: jax.Array) -> jax.Array:
    """a b after every step of gradient descent on the population loss `[steps]`."""

    def step(at, rate):
        at = jax.tree.map(lambda value, velocity: value + rate * velocity, at, theory.flow(*at, by))
        return at, at[0] * at[1]

    return jax.lax.scan(step, (jnp.asarray(a, float), jnp.asarray(b, float)), rates)[1]


def sampler(config: Config, law: InitialLaw, modulus: float) -> Any:
    """`(key, batch) -> sequences`."""

    def draw(key: jax.Array, batch: int) -> jax.Array:
        start_key, map_key = jax.random.split(key)
        start = initial_states(start_key, law, batch=batch, dimension=config.dimension, scale=config.scale)
        return linear_sequences(map_key, start, length=config.length, modulus=modulus)

    return draw


def train(keys: jax.Array, draw: Any, config: Config, rates: np.ndarray) -> tuple[layer.State, np.ndarray]:
    """Descend on fresh samples, all seeds at once: the last states, and a b after every step `[R, steps]`."""

    def one(key):
        def step(state, given):
            key, rate = given
            state = layer.step(state, draw(key, config.batch), rate)[0]
            return state, layer.diagonal(state.params).product

        start = layer.init(config.dimension, config.a, config.b)
        return jax.lax.scan(step, start, (jax.random.split(key, len(rates)), jnp.asarray(rates)))

    state, products = jax.jit(jax.vmap(one))(keys)
    return state, np.asarray(products, np.float64)


def test(keys, draw: Any, config: Config, params: layer.Params, half: float, rate: float) -> dict[str, Any]:
    """What `Setting` says of fresh sequences: losses, slopes, errors, departure."""
    d = config.dimension

    def one(key, params):
        def chunk(key):
            x = draw(key, CHUNK)
            loss = layer.loss(layer.init(d, half, 1.0).params, x)
            predicted, truth = layer.predict(params, x), x[:, 2:]
            step = layer.predict(layer.init(d, rate, 1.0).params, x)  # of gradient descent, from zero
            last, true = predicted[:, -1], truth[:, -1]
            square = lambda z: jnp.mean(z.real**2 + z.imag**2)
            product = jnp.mean((jnp.conj(true) * last).real)
            return loss, product, square(last - true), square(true), square(predicted - step), square(step)

        found = jax.lax.map(chunk, jax.random.split(key, -(-config.test_sequences // CHUNK)))
        loss, product, error, size, difference, reference = (part.mean(0) for part in found)
        return {
            "losses": loss,
            "slopes": product / size,
            "errors": error / size,
            "departure": jnp.sqrt(difference / reference),
        }

    found = jax.jit(jax.vmap(one))(keys, params)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}
