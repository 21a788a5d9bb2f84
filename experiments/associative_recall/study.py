"""Settings of `associative_recall`, and the run."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from attnjax.nn import TransformerLM
from attnjax.tasks import IGNORED, multi_query_recall
from experiments.associative_recall import by_hand
from experiments.associative_recall.models import Family, build, repeated, selective, state_size
from experiments.framework.context import Context, UsageError
from experiments.framework.training import advance


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the paper's tasks are larger (64 tokens and more, 64 epochs of 100 000 sequences)."""

    vocabulary: int = 48
    """V: half of the tokens are keys, half are values."""
    length: int = 24
    """T, tokens."""
    pairs: int = 6
    """D, pairs of a key and a value."""
    widths: tuple[int, ...] = (16, 32, 64)
    """Of the models; the last is the one that families are compared at."""
    families: tuple[Family, ...] = get_args(Family)
    """What the second layer is."""
    learning_rates: tuple[float, ...] = (5e-3,)
    """Peaks of Adam's; of several each family and width is judged at its best, chosen by training loss."""
    batch: int = 64
    """Fresh sequences per step and seed."""
    steps: int = 600
    """Of training, the same for all."""
    seeds: int = 8
    """Independent runs, in one vmap; at least 2."""
    hand_widths: tuple[int, ...] = (8, 16, 32, 64)
    """Of the attention that is written down; 256 tokens in sequences of 64 with 8 pairs."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """Small sizes for continuous integration: the same claims in a few minutes on two cores."""
        return cls(
            vocabulary=32, length=16, pairs=4, widths=(16, 32), learning_rates=(1e-2,), batch=48, steps=400, seeds=5
        )

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        least = {"pairs": 1, "batch": 1, "steps": 10, "seeds": 2}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"--{name} must be at least {bound}, got {getattr(self, name)}.")
        if self.length % 2 or self.length < 4 * self.pairs:
            raise UsageError(f"--length must be even and at least 4 * pairs = {4 * self.pairs}, got {self.length}.")
        if self.vocabulary <= self.length:
            raise UsageError(f"--vocabulary must be larger than --length = {self.length}, got {self.vocabulary}.")
        if not self.widths or min(self.widths) < 1 or list(self.widths) != sorted(set(self.widths)):
            raise UsageError(f"--widths must be positive and increase, got {self.widths}.")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise UsageError(f"--learning-rates must be positive, got {self.learning_rates}.")
        if "softmax" not in self.families:
            raise UsageError(f"--families must name softmax, got {' '.join(self.families)}.")

    @property
    def window(self) -> int:
        """Steps at the end over which accuracy is averaged."""
        return max(1, self.steps // 10)


class Course(NamedTuple):
    """One family at one width.

    Attributes:
        accuracies: On the batch of each step, before it is learned from, by seed, `[seeds, steps]`.
        rate: The learning rate that was best.
        state: Numbers that the model keeps of a sequence.
    """

    accuracies: np.ndarray
    rate: float
    state: int

    def smooth(self, window: int) -> np.ndarray:
        """Means over as many steps, `[seeds, steps // window]`."""
        whole = self.accuracies.shape[1] // window * window
        return self.accuracies[:, :whole].reshape(len(self.accuracies), -1, window).mean(-1)

    def final(self, window: int) -> np.ndarray:
        """Accuracy at the end, over as many steps, `[seeds]`."""
        return self.accuracies[:, -window:].mean(-1)

    def steps_to(self, level: float, window: int) -> np.ndarray:
        """Steps after which accuracy is at least that, infinite where it never is, `[seeds]`."""
        reached = self.smooth(window) >= level
        return np.where(reached.any(1), (reached.argmax(1) + 1.0) * window, np.inf)


class Result(NamedTuple):
    """What the claims and figures are made of.

    Attributes:
        config: Settings.
        by_hand: Accuracy of attention that is written down, by width.
        selected: Accuracy of the widest trained models with attention where only repeated tokens attend, `[seeds]`.
        attending: Share of tokens that then attend.
        guessing: Accuracy of the best guess from where a question stands.
        courses: By family and width.
    """

    config: Config
    by_hand: dict[int, float]
    selected: np.ndarray
    attending: float
    guessing: float
    courses: dict[str, dict[int, Course]]


def run(config: Config, context: Context) -> Result:
    """Write one model down, train the others.

    Args:
        config: Settings.
        context: Surroundings.

    Returns:
        The result.

    Raises:
        UsageError: An impossible setting.
    """
    config.check()
    of_hand, of_tokens, of_training = jax.random.split(context.key, 3)
    hand = {"vocabulary": 256, "length": 64, "pairs": 8, "batch": 64}
    found = {width: by_hand.accuracy(width, of_hand, **hand) for width in config.hand_widths}
    courses: dict[str, dict[int, Course]] = {family: {} for family in config.families}
    sparse, attending = np.empty(0), 0.0
    todo: list[tuple[int, Family]] = [(width, family) for width in config.widths for family in config.families]
    for width, family in context.track(todo, f"Adam, {config.steps} steps of each model"):
        courses[family][width], models = train(family, width, config, of_training)
        if (width, family) == (config.widths[-1], "softmax"):
            sparse, attending = selected(models, of_tokens, config)
    return Result(config, found, sparse, attending, guess(of_tokens, config), courses)


def guess(key: jax.Array, config: Config) -> float:
    """Accuracy of naming the value of the pair that is most often asked for at a position, whatever its key.

    It is above one in D: earlier pairs choose their questions' places first, and prefer early ones.
    """
    tokens, targets = map(np.asarray, draw(key, config, 20_000))
    values = tokens[:, 1 : 2 * config.pairs : 2]
    asked = (targets[:, :, None] == values[:, None, :]).sum(0)  # by position and pair
    return float(asked.max(-1).sum() / asked.sum())


def draw(key: jax.Array, config: Config, batch: int) -> Any:
    """Fresh sequences with fillers of 0, as in the paper's figure 2."""
    sizes = {"length": config.length, "pairs": config.pairs, "vocabulary": config.vocabulary}
    return multi_query_recall(key, batch=batch, random_fillers=False, **sizes)


def answered(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Share of questions whose answer is the likeliest token."""
    asked = targets != IGNORED
    return ((logits.argmax(-1) == targets) & asked).sum() / asked.sum()


class State(NamedTuple):
    """Of one run."""

    params: Any
    moments: Any
    rate: jax.Array
    step: jax.Array


def train(family: Family, width: int, config: Config, key: jax.Array) -> tuple[Course, list[TransformerLM]]:
    """All seeds and learning rates in one vmap; seeds have the same data in every family and at every rate.

    Returns:
        What was measured, and the models at the end, by seed.
    """
    start = functools.partial(build, family, vocabulary=config.vocabulary, width=width, length=config.length)
    model = start(rngs=nnx.Rngs(0))
    graph, _, rest = nnx.split(model, nnx.Param, ...)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, max(1, config.steps // 20), config.steps, 0.1)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.scale_by_schedule(schedule))

    def loss(params, tokens, targets):
        asked = targets != IGNORED
        logits = nnx.merge(graph, params, rest)(tokens)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(asked, targets, 0))
        return (losses * asked).sum() / asked.sum(), answered(logits, targets)

    def step(state: State, key: jax.Array):
        task = draw(key, config, config.batch)
        (value, accuracy), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, *task)
        change, moments = optimizer.update(gradient, state.moments, state.params)
        params = jax.tree.map(lambda p, c: p - state.rate * c, state.params, change)
        return State(params, moments, state.rate, state.step + 1), (value, accuracy)

    def fresh(key, rate):
        params = nnx.split(start(rngs=nnx.Rngs(key)), nnx.Param, ...)[1]
        return State(params, optimizer.init(params), rate, jnp.zeros((), jnp.int32))

    of_params, of_data = jax.random.split(key)
    rates, again = len(config.learning_rates), jax.vmap(jax.random.fold_in, (None, 0))
    seeds = jnp.tile(jnp.arange(config.seeds), rates)
    states = jax.jit(jax.vmap(fresh))(
        again(of_params, seeds), jnp.repeat(jnp.array(config.learning_rates), config.seeds)
    )
    states, reports = advance(step, states, again(of_data, seeds), config.steps)
    losses, accuracies = (np.asarray(x, np.float64).reshape(rates, config.seeds, -1) for x in reports)
    best = int(np.nan_to_num(losses[..., -config.window :], nan=np.inf).mean((1, 2)).argmin())
    trained = lambda run: nnx.merge(graph, jax.tree.map(lambda leaf: leaf[run], states.params), rest)
    models = [trained(best * config.seeds + seed) for seed in range(config.seeds)]
    return Course(accuracies[best], config.learning_rates[best], state_size(model, config.length)), models


def selected(models: Sequence[TransformerLM], key: jax.Array, config: Config) -> tuple[np.ndarray, float]:
    """Accuracy of trained models where only repeated tokens attend, `[seeds]`, and the share of tokens that do."""
    tokens, targets = draw(key, config, 500)
    logits = [model(tokens, mask=selective(tokens)) for model in models]
    return np.array([float(answered(x, targets)) for x in logits]), float(repeated(tokens).mean())
