"""Settings of `scan_and_snap`, and the run."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.dynamics import scan_and_snap as layer
from attnjax.tasks import TokenClasses, sequences, token_classes
from experiments.framework.context import Context, UsageError
from experiments.scan_and_snap.flow import Decoder, Path, attention_path, decoder_path, scanned_by_integration

SNAP_TIMES = 200


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are the paper's Syn-Small and its Figures 3, 4 and 6."""

    last: int = 2
    """Last tokens, which query the context."""
    next_per_last: int = 1
    """Next tokens, and so classes, of each last token."""
    common: int = 10
    """Tokens that all classes share."""
    distinct: int = 10
    """Tokens of each class alone."""
    length: int = 128
    """Tokens of a sequence, T."""
    batch: int = 128
    """Sequences in a step."""
    steps: int = 100
    """Steps of SGD."""
    momentum: float = 0.9
    """Of SGD."""
    rate_z: float = 1.0
    """Learning rate of the attention logits."""
    ratio: float = 1.0
    """Learning rate of the decoder over that of the attention logits."""
    seeds: int = 10
    """Independent runs, all in one vmap."""
    table_last: tuple[int, ...] = (1, 3, 5, 10)
    """Numbers of last tokens in the table of entropies, with two next tokens each."""
    table_rates: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)
    """Learning rates of the attention logits in the table."""
    table_ratios: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0)
    """Ratios of the learning rates in the table, increasing."""
    flow_time: float = 400.0
    """Samples over which the theorems are integrated."""
    snap_vocabulary: int = 1000
    """M of the snapping curves."""
    snap_classes: int = 10
    """K of the snapping curves."""
    snap_rate_z: float = 0.5
    """Learning rate of the attention logits of the snapping curves."""
    snap_rates_y: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0)
    """Learning rates of the decoder of the snapping curves, increasing."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """Small sizes for continuous integration: the same claims in under a minute on two cores."""
        return cls(table_last=(1,), table_rates=(1.0, 2.0), seeds=6)

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        least = {"last": 1, "next_per_last": 1, "common": 1, "distinct": 2, "length": 2, "batch": 1, "steps": 1}
        least |= {"seeds": 2, "snap_vocabulary": 2, "snap_classes": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {bound}, got {getattr(self, name)}.")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"--momentum must be in [0, 1), got {self.momentum}.")
        for name in ("rate_z", "ratio", "flow_time", "snap_rate_z"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}.")
        for name in ("table_last", "table_rates", "table_ratios", "snap_rates_y"):
            values = getattr(self, name)
            if not values or not min(values) > 0 or list(values) != sorted(set(values)):
                raise UsageError(
                    f"--{name.replace('_', '-')} must be one or more positive numbers, increasing, got {values}."
                )


class Result(NamedTuple):
    """What the claims and figures are made of.

    Attributes:
        config: The settings.
        gradient_error: Largest difference of the closed-form gradient from autodiff's over the largest entry.
        decoder: The decoder alone, sample by sample.
        path: Attention in the limit of long contexts, with one common token.
        snap_times: `[T]` in samples.
        snap: B of each learning rate of the decoder, by integration `[R, T]`.
        losses: Of SGD before each step `[seeds, steps]`.
        attention: At checkpoints, c of the first class `[K, seeds, M]`.
        checkpoints: Steps done at them `[K]`.
        law: P(l | class) of the first class `[M]`.
        entropies: Of the distinct tokens' share, averaged over classes `[last, rates, ratios, seeds]`.
    """

    config: Config
    gradient_error: float
    decoder: Decoder
    path: Path
    snap_times: np.ndarray
    snap: np.ndarray
    losses: np.ndarray
    attention: np.ndarray
    checkpoints: np.ndarray
    law: np.ndarray
    entropies: np.ndarray


def run(config: Config, context: Context) -> Result:
    """Integrate the theorems in float64, then train all seeds and settings, each group in one vmap.

    Args:
        config: Settings.
        context: Surroundings.

    Returns:
        The result.

    Raises:
        UsageError: An impossible setting.
    """
    config.check()
    shape: dict[str, Any] = {"last": config.last, "next_per_last": config.next_per_last, "distinct": config.distinct}
    rate_y = config.ratio * config.rate_z
    gradient_key, trace_key, table_key = jax.random.split(context.key, 3)
    with jax.enable_x64(True):
        error = gradient_error(gradient_key, token_classes(**shape, common=config.common))
        count = config.last * config.next_per_last
        decoder = decoder_path(classes=count, distinct=config.distinct, rate=rate_y, passes=100)
        times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(config.flow_time / 1000, config.flow_time, 100)])
        path = attention_path(token_classes(**shape, common=1), times, rate_y=rate_y, rate_z=config.rate_z)
        longest = 20 * config.snap_classes * np.log(config.snap_vocabulary) / config.snap_rates_y[0]
        snap_times = jnp.concatenate([jnp.zeros(1), jnp.geomspace(longest / 1e4, longest, SNAP_TIMES)])
        snap = [
            scanned_by_integration(snap_times, rate_y=rate, **snap_knobs(config))
            for rate in context.track(config.snap_rates_y, "snapping")
        ]
    classes = token_classes(**shape, common=config.common)
    checkpoints = np.unique([0, 2, 4, 6, 8, 10, config.steps // 2, config.steps])
    checkpoints = checkpoints[checkpoints <= config.steps]
    losses, attention = trace(trace_key, classes, config, checkpoints)
    entropies = [
        table(jax.random.fold_in(table_key, last), last, config)
        for last in context.track(config.table_last, "table of entropies")
    ]
    return Result(
        config,
        error,
        decoder,
        path,
        np.asarray(snap_times),
        np.stack(snap),
        np.asarray(losses, np.float64),
        np.asarray(attention, np.float64),
        checkpoints,
        np.asarray(classes.contextual[0], np.float64),
        np.stack(entropies),
    )


def snap_knobs(config: Config) -> dict[str, Any]:
    """What the snapping curves share: one common token that starts with all attention, C_0 = 1 / K."""
    k = config.snap_classes
    return {"vocabulary": config.snap_vocabulary, "classes": k, "rate_z": config.snap_rate_z, "common": 1 / k}


def gradient_error(key: jax.Array, classes: TokenClasses) -> float:
    """Largest difference of the closed-form gradient from autodiff's, at random weights, over the largest entry."""
    m = classes.contextual.shape[1]
    weights_key, batch_key = jax.random.split(key)

    @jax.jit
    def error():
        params = layer.Params(*jax.random.normal(weights_key, (2, m, m)))
        batch = layer.count(sequences(batch_key, classes, batch=64, length=50), m)
        pairs = zip(layer.ascent(params, batch), jax.grad(layer.loss)(params, batch), strict=True)
        return jnp.stack([jnp.abs(ours + theirs).max() / jnp.abs(theirs).max() for ours, theirs in pairs]).max()

    return float(error())


def train(key, classes: TokenClasses, start: layer.State, *, rate_y, rate_z, config: Config, watch=lambda state: None):
    """One run of SGD: the last state, the loss before each step `[steps]`, and what `watch` makes of each state."""
    m = classes.contextual.shape[1]

    def step(state, key):
        batch = layer.count(sequences(key, classes, batch=config.batch, length=config.length), m)
        state, info = layer.step(state, batch, rate_y=rate_y, rate_z=rate_z, momentum=config.momentum)
        return state, (info.loss, watch(state))

    state, (losses, watched) = jax.lax.scan(step, start, jax.random.split(key, config.steps))
    return state, losses, watched


def trace(key, classes: TokenClasses, config: Config, checkpoints: np.ndarray):
    """SGD from zero over all seeds: losses `[seeds, steps]`, c of the first class `[checkpoints, seeds, M]`."""
    batch, rates = layer.population(classes), {"rate_y": config.ratio * config.rate_z, "rate_z": config.rate_z}

    def first(state):
        return layer.attention(state.params.z, batch)[0]

    def one(key):
        start = layer.init(classes.contextual.shape[1])
        _, losses, attention = train(key, classes, start, **rates, config=config, watch=first)
        return losses, jnp.concatenate([first(start)[None], attention])[checkpoints]

    losses, attention = jax.jit(jax.vmap(one))(jax.random.split(key, config.seeds))
    return losses, jnp.swapaxes(attention, 0, 1)


def table(key, last: int, config: Config) -> np.ndarray:
    """Entropies of Figure 6 for one number of last tokens `[rates, ratios, seeds]`, from random weights."""
    classes = token_classes(last=last, next_per_last=2, common=config.common, distinct=config.distinct)
    held = classes.contextual > 0
    distinct = held & (held.sum(0, keepdims=True) == 1)

    def one(key, rate_z, ratio):
        start_key, train_key = jax.random.split(key)
        start = layer.init(classes.contextual.shape[1], start_key)
        state, _, _ = train(train_key, classes, start, rate_y=ratio * rate_z, rate_z=rate_z, config=config)
        c = jnp.where(distinct, layer.attention(state.params.z, layer.population(classes)), 0)
        c = c / c.sum(1, keepdims=True)
        return -jnp.sum(jax.scipy.special.xlogy(c, c), axis=1).mean()

    over = jax.vmap(jax.vmap(jax.vmap(one, (0, None, None)), (None, None, 0)), (None, 0, None))
    keys = jax.random.split(key, config.seeds)
    rates, ratios = jnp.array(config.table_rates), jnp.array(config.table_ratios)
    return np.asarray(jax.jit(over)(keys, rates, ratios), np.float64)
