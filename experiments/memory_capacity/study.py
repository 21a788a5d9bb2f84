"""Settings of `memory_capacity`, and the run."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.framework.context import Context, UsageError
from experiments.memory_capacity import learning, recall, storing
from experiments.memory_capacity.storing import each


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; every law is for any of them."""

    draws: int = 400
    """Independent memories of every measurement."""
    widths: tuple[int, ...] = (16, 64, 256, 1024)
    """d, entries of a key, of the capacity curves; increasing."""
    loads: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0)
    """(n - 1) / d of the capacity curves; from below 1/4 to above it."""
    width: int = 64
    """d of what is measured at one width."""
    heads: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of heads that are averaged, with 1 + d / 2 pairs."""
    layers: tuple[int, ...] = (1, 2, 4)
    """Numbers of layers, with 1 + d / 4 pairs."""
    delta_pairs: tuple[int, ...] = (8, 16, 32, 64, 128)
    """Pairs written by the delta rule; increasing."""
    decay: float = 0.9
    """Of a decaying memory, for each write."""
    common: float = 1.0
    """Length of the vector that all keys share, over that of their own part, with 1 + d / 4 pairs."""
    spectrum: tuple[float, ...] = (2.0, 1.0, 0.5, 0.25)
    """Variances of Oja's inputs, the greatest first."""
    oja_rate: float = 0.005
    """Of Oja's rule."""
    oja_steps: int = 4000
    """Inputs of Oja's rule."""
    recall_widths: tuple[int, ...] = (16, 64)
    """d of the recall table."""
    recall_pairs: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    """Pairs of the recall table; increasing."""
    recall_draws: int = 100
    """Independent memories of the recall table."""
    words: int = 512
    """Words in the code book."""
    learning_width: int = 16
    """d of the learning curves."""
    learning_steps: int = 64
    """Tokens of each of the two tasks."""
    learning_rate: float = 1.0
    """Of the learning curves, on half the squared error."""
    forget: float = 0.02
    """Weight decay of one of the two learning curves."""
    outlier_share: float = 0.05
    """Share of wild tokens."""
    outlier_size: float = 30.0
    """Standard deviation of what is added to them."""
    outlier_rate: float = 0.1
    """Learning rate with outliers; of 8 features and values."""
    outlier_steps: int = 2000
    """Tokens with outliers."""
    threshold: float = 1.0
    """Of Huber's loss."""
    chunk_sizes: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Tokens in a chunk of gradients; increasing."""
    chunk_draws: int = 20
    """Perceptron memories of the chunks."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """Small sizes for continuous integration: the same claims in under a minute on two cores."""
        return cls(
            widths=(16, 64, 256), layers=(1, 2), delta_pairs=(8, 64, 128), recall_widths=(16,), recall_draws=60,
            chunk_sizes=(2, 16), chunk_draws=10,
        )  # fmt: skip

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        least = {"draws": 2, "width": 4, "oja_steps": 1, "recall_draws": 2, "words": max(self.recall_pairs, default=1)}
        least |= {"learning_width": 2, "learning_steps": 8, "outlier_steps": 1, "chunk_draws": 2}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {bound}, got {getattr(self, name)}.")
        counts = ("widths", "heads", "layers", "delta_pairs", "recall_widths", "recall_pairs", "chunk_sizes")
        for name in (*counts, "loads"):
            values = getattr(self, name)
            if not values or not min(values) > 0 or list(values) != sorted(set(values)):
                raise UsageError(
                    f"--{name.replace('_', '-')} must be one or more positive numbers, increasing, got {values}."
                )
        if not (min(self.loads) <= 0.25 <= max(self.loads) and len(self.widths) > 1):
            raise UsageError(
                f"--loads must reach from 0.25 or less to 0.25 or more, and --widths be two, got {self.loads}."
            )
        if list(self.spectrum) != sorted(self.spectrum, reverse=True) or not min(self.spectrum) > 0:
            raise UsageError(f"--spectrum must be positive, the greatest first, got {self.spectrum}.")
        for name, low, high in (("decay", 0, 1), ("forget", 0, 1), ("learning_rate", 0, 2), ("outlier_rate", 0, 2)):
            if not low < getattr(self, name) < high:
                raise UsageError(
                    f"--{name.replace('_', '-')} must be between {low} and {high}, got {getattr(self, name)}."
                )
        for name in ("common", "oja_rate", "outlier_share", "outlier_size", "threshold"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}.")

    def counts(self, width: int) -> tuple[int, ...]:
        """Pairs n of a capacity curve."""
        return tuple(max(2, 1 + round(load * width)) for load in self.loads)


class Result(NamedTuple):
    """What the claims and figures are made of; errors are squared, R are draws.

    Attributes:
        config: The settings.
        noise: Of Hebb's sum, for each width `[R, loads]`.
        safe: Keys whose sums of products stay below 1, for each width `[R]`.
        heads: Error of averaged heads `[R, heads]`.
        layers: Error after layers `[R, layers]`.
        corrected: By age, NaN where there are fewer pairs, "delta" and "hebb" `[R, pairs, ages]`.
        decayed: By age, "signal" and "error" `[R, ages]`.
        shared: Of keys with a common part, "hebb" and "covariance" `[R]`.
        component: Squared sine between Oja's vector and the first component `[R]`.
        recall: Measured, for each width.
        recall_law: Predicted from noise, for each width `[mechanisms, pairs]`.
        curves: Relative error after each token, without decay and with it `[R, 2 T]`.
        outliers: Relative error with and without them, "squares" and "huber" `[R, 2]`.
        chunks: Distance of chunks from the exact memory `[R, sizes]`.
    """

    config: Config
    noise: list[np.ndarray]
    safe: list[np.ndarray]
    heads: np.ndarray
    layers: np.ndarray
    corrected: dict[str, np.ndarray]
    decayed: dict[str, np.ndarray]
    shared: dict[str, np.ndarray]
    component: np.ndarray
    recall: list[recall.Recall]
    recall_law: list[np.ndarray]
    curves: list[np.ndarray]
    outliers: dict[str, np.ndarray]
    chunks: np.ndarray


def run(config: Config, context: Context) -> Result:
    """Draw memories, write, read.

    Args:
        config: Settings.
        context: Surroundings.

    Returns:
        The result.

    Raises:
        UsageError: An impossible setting.
    """
    config.check()
    d, key = config.width, context.key

    def of(name: str, one: Callable, draws: int = config.draws, **knobs: Any) -> Any:
        return each(functools.partial(one, **knobs), jax.random.fold_in(key, sum(map(ord, name))), draws)

    many = lambda widths: context.track(widths, "capacity")
    noise = [of(f"noise {w}", storing.sums, features=w, counts=config.counts(w)) for w in many(config.widths)]
    safe = [of(f"safe {w}", storing.safe, features=w, most=int(6 + 2 * w**0.5)) for w in config.widths]
    quarter, half = 1 + d // 4, 1 + d // 2
    recall_key = jax.random.fold_in(key, 1)
    table = [
        recall.measured(jax.random.fold_in(recall_key, w), w, config.recall_pairs, config.words, config.recall_draws)
        for w in context.track(config.recall_widths, "recall")
    ]
    law = [recall.predicted(recall_key, w, config.recall_pairs, config.words) for w in config.recall_widths]
    task: dict[str, Any] = {
        "features": config.learning_width,
        "steps": config.learning_steps,
        "rate": config.learning_rate,
    }
    wild: dict[str, Any] = {"share": config.outlier_share, "size": config.outlier_size, "threshold": config.threshold}
    return Result(
        config,
        noise,
        safe,
        of("heads", storing.heads, features=d, count=half, heads=config.heads),
        of("layers", storing.layers, features=d, count=quarter, layers=config.layers),
        of("corrected", storing.corrected, features=d, counts=config.delta_pairs),
        of("decayed", storing.decayed, features=d, count=half, decay=config.decay),
        of("shared", storing.shared, features=d, count=quarter, common=config.common),
        of("oja", storing.component, spectrum=config.spectrum, rate=config.oja_rate, steps=config.oja_steps),
        table,
        law,
        [of("curves", learning.curves, **task, forget=forget) for forget in (0.0, config.forget)],
        of(
            "outliers", learning.outliers, features=8, steps=config.outlier_steps, rate=config.outlier_rate, **wild
        ),
        of(
            "chunks", learning.chunks, config.chunk_draws, features=4, length=64, sizes=config.chunk_sizes, rate=0.1
        ),
    )  # fmt: skip
