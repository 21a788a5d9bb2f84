"""Settings of `language_model`, and the run."""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np

from experiments.framework.context import Context, UsageError
from experiments.language_model import corpus as corpora
from experiments.language_model import model as lm
from experiments.language_model import training


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the model, its training and its text."""

    text: tuple[Path, ...] = ()
    """Text files or folders to learn from. Default: the standard library of the running Python."""
    attention: lm.Attention = "softmax"
    """How scores become weights, or a mechanism of linear time, which has none."""
    compare: lm.Attention | Literal["none"] = "sigmoid"
    """Attention of the second model."""
    positions: lm.Positions = "rotary"
    """How the model knows positions; with "none" the causal mask alone tells."""
    window: int | None = None
    """Let a position see only this many positions back. Default: all."""
    sinks: int = 0
    """First positions that stay visible beside the window."""
    layers: int = 3
    """Blocks."""
    width: int = 128
    """Model dimension, D."""
    heads: int = 8
    """Query heads of a layer, N."""
    kv_heads: int | None = None
    """Key/value heads, K, a divisor of N. Default: N."""
    context: int = 128
    """Bytes that the model sees, T."""
    batch: int = 16
    """Windows in a step."""
    steps: int = 750
    """Optimizer steps of each model."""
    learning_rate: float = 4e-3
    """Peak rate of AdamW, reached after a tenth of the steps (at most 100), then decaying to a twentieth."""
    weight_decay: float = 0.1
    """Of AdamW, on matrices."""
    held_out_bytes: int = 200_000
    """Least size of the held-out text."""
    measurements: int = 12
    """Times at which attention is measured, spaced evenly in the logarithm of the step."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    prompt: str = "\n"
    """Start of the samples."""
    sample_length: int = 400
    """Bytes of a sample."""
    temperature: float = 0.8
    """Of the samples."""
    seed: int = 0
    """Of the initial parameters, the order of the data and the samples."""
    resume: bool = False
    """Go on from the newest checkpoint in the output folder."""

    def __post_init__(self):
        small = {n: getattr(self, n) for n in ("steps", "batch", "measurements", "checkpoint_every", "held_out_bytes")}
        for name, value in {**small, "sample_length": self.sample_length, "temperature": self.temperature}.items():
            if not value > 0:
                raise UsageError(f"--{name.replace('_', '-')}: got {value}, wanted a positive number.")
        if self.context < 8:
            raise UsageError(f"--context: got {self.context}, wanted at least 8 bytes.")
        if self.attention == self.compare:
            raise UsageError(f"--compare: got {self.compare}, which is --attention too; name another one, or none.")

    @classmethod
    def quick(cls) -> "Config":
        """About a minute on two cores: a smaller model, fewer steps."""
        return cls(
            layers=2,
            width=96,
            steps=160,
            held_out_bytes=100_000,
            measurements=10,
            sample_length=200,
        )


class Course(NamedTuple):
    """One model's training.

    Attributes:
        attention: Its name.
        file_bits: `[F]` bits of each held-out file.
        bits_per_byte: On the held-out text.
        losses: `[steps]` training loss in bits per byte.
        measured_at: `[M]` steps done when attention was measured.
        measured: `Measured`, with a leading axis M.
        sample: Text that it wrote.
        tokens_per_second: While training in this process.
    """

    attention: str
    file_bits: np.ndarray
    bits_per_byte: float
    losses: np.ndarray
    measured_at: np.ndarray
    measured: lm.Measured
    sample: str
    tokens_per_second: float | None


class Result(NamedTuple):
    """What was found.

    Attributes:
        origin: Where the text comes from.
        train_bytes: Size of the training text.
        files: Names of the held-out files.
        file_bytes: `[F]` their sizes.
        baseline_bits: Bits of each held-out file under "unigram", "bigram" and "gzip".
        baselines: The same in bits per byte of the held-out text.
        context: T.
        bytes_read: Bytes in all batches of one model's training.
        courses: The models.
    """

    origin: str
    train_bytes: int
    files: tuple[str, ...]
    file_bytes: np.ndarray
    baseline_bits: dict[str, np.ndarray]
    baselines: dict[str, float]
    context: int
    bytes_read: int
    courses: tuple[Course, ...]


def run(config: Config, context: Context) -> Result:
    """Train the models, one after the other, and evaluate them."""
    names: list[lm.Attention] = [config.attention, *([] if config.compare == "none" else [config.compare])]
    if config.resume and not any((context.out / "checkpoints" / config.attention).glob("[0-9]*")):
        raise UsageError(
            f"--resume: no checkpoint in {context.out / 'checkpoints'}; start without --resume, or name --out."
        )
    corpus = corpora.load(config.text, held_out_bytes=config.held_out_bytes)
    sizes = np.array([len(content) for content in corpus.held_out])
    context.console.print(
        f"Text: {corpus.origin}; {len(corpus.train) / 1e6:.2f} MB to learn from, "
        f"{sizes.sum() / 1e3:.0f} kB in {len(sizes)} pieces held out.",
        highlight=False,
    )
    baseline_bits = {
        "unigram": corpora.unigram_bits(corpus.train, corpus.held_out),
        "bigram": corpora.bigram_bits(corpus.train, corpus.held_out),
        "gzip": corpora.gzip_bits(corpus.held_out),
    }
    baselines = {name: float(bits.sum() / sizes.sum()) for name, bits in baseline_bits.items()}
    courses = tuple(_course(config, name, corpus, context) for name in names)
    for name, bits in [(course.attention, course.bits_per_byte) for course in courses] + list(baselines.items()):
        context.console.print(f"  {name:<18}{bits:.4f} bits per byte, held out", highlight=False)
    (context.out / "samples.txt").write_text("\n".join(f"--- {c.attention} ---\n{c.sample}\n" for c in courses))
    context.console.print(f"\n{names[0]} wrote:", courses[0].sample, sep="\n", markup=False, highlight=False)
    return Result(
        origin=corpus.origin,
        train_bytes=len(corpus.train),
        files=corpus.names,
        file_bytes=sizes,
        baseline_bits=baseline_bits,
        baselines=baselines,
        context=config.context,
        bytes_read=config.steps * config.batch * config.context,
        courses=courses,
    )


def _course(config: Config, attention: lm.Attention, corpus: corpora.Corpus, context: Context) -> Course:
    trained = training.train(config, attention, corpus, context)
    parts, params = trained.parts, trained.params
    bits = training.file_bits(parts, params, corpus.held_out, context=config.context)
    np.savez(context.out / f"{attention}.npz", steps=trained.measured_at, **trained.measured._asdict())
    prompt = config.prompt.encode()
    sample = lm.generate(
        parts.model(params),
        jax.random.fold_in(context.key, 2),
        prompt,
        context=config.context,
        length=config.sample_length,
        temperature=config.temperature,
    )
    return Course(
        attention=attention,
        file_bits=bits,
        bits_per_byte=float(bits.sum() / sum(map(len, corpus.held_out))),
        losses=trained.losses,
        measured_at=trained.measured_at,
        measured=trained.measured,
        sample=(prompt + sample).decode(errors="replace"),
        tokens_per_second=trained.tokens_per_second,
    )
