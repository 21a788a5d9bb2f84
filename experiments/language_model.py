"""A byte-level Transformer learns real text, with any attention: bits per byte, and how its attention evolves.

Trains a small pre-norm Transformer on text split by file (by default Python's own standard library) and compares its
bits per byte on the held-out files with a unigram, a bigram and gzip. While it trains, the entropy of the attention,
the attention on the first position (the sink) and the attention that each key receives are measured for every layer
and head, streamed beside the output. A second model, which differs in its attention only, is trained for comparison.

    --text FILE ...   other text          --attention NAME   other weights         --window, --sinks, --positions
    --resume          go on after Ctrl-C, a kill or a power cut: the result is the same to the last bit
"""

import dataclasses
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import _lm_model as lm
from experiments import _lm_training as training
from experiments import _plotting, _text
from experiments._claim import Claim
from experiments._context import Context, UsageError
from experiments._statistics import mean_over_seeds

GU = "Gu, Pang, Du, Liu, Zhang, Du, Wang, Lin, 2025, When Attention Sink Emerges in Language Models, arXiv 2410.10781"
RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the model, its training and its text."""

    text: tuple[Path, ...] = ()
    """Text files or folders to learn from. Default: the standard library of the running Python."""
    attention: lm.Attention = "softmax"
    """How scores become weights."""
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
            steps=400,
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
    corpus = _text.load(config.text, held_out_bytes=config.held_out_bytes)
    sizes = np.array([len(content) for content in corpus.held_out])
    context.console.print(
        f"Text: {corpus.origin}; {len(corpus.train) / 1e6:.2f} MB to learn from, "
        f"{sizes.sum() / 1e3:.0f} kB in {len(sizes)} pieces held out.",
        highlight=False,
    )
    baseline_bits = {
        "unigram": _text.unigram_bits(corpus.train, corpus.held_out),
        "bigram": _text.bigram_bits(corpus.train, corpus.held_out),
        "gzip": _text.gzip_bits(corpus.held_out),
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


def _course(config: Config, attention: lm.Attention, corpus: _text.Corpus, context: Context) -> Course:
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


def difference(result: Result, course: Course, baseline: str) -> tuple[float, tuple[float, float]]:
    """Bits per byte of the model minus the baseline's, and its 95% interval: bootstrap over held-out files."""
    gain = course.file_bits - result.baseline_bits[baseline]
    files = len(gain)
    drawn = np.random.default_rng(0).integers(0, files, (RESAMPLES, files))
    resampled = gain[drawn].sum(1) / result.file_bytes[drawn].sum(1)
    measured = float(gain.sum() / result.file_bytes.sum())
    low, high = np.quantile(resampled, [0.025, 0.975])
    return measured, (min(float(low), measured), max(float(high), measured))


def grown(course: Course, kind: Literal["share", "weight"]) -> np.ndarray:
    """Attention on the first position at the end of the learning rate's warm-up and at the end, `[2, L, N, W]`.

    While the rate warms up, the embedding of the byte that starts every window, and with it all scores of the first
    position, moves away from where it began; what training then makes of it is the sink.
    """
    values = getattr(course.measured, f"far_{kind}")
    warm = int(np.searchsorted(course.measured_at, training.warmup_steps(len(course.losses))))
    return values[[min(warm, len(values) - 1), -1]]


def mean_growth(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Last minus first of `[M, L, N, W]`, averaged over windows and heads, with its 95% t-interval over the heads."""
    return _estimate((values[-1] - values[0]).mean(-1).reshape(-1))


def strongest_growth(values: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Last minus first of `[M, L, N, W]` in the head with the largest last value, and its 95% t-interval over windows.

    Every other window chooses the head and the rest measure it, so that the choice does not flatter the result.
    """
    layer, head = np.unravel_index(values[-1, ..., ::2].mean(-1).argmax(), values.shape[1:3])
    return _estimate((values[-1] - values[0])[layer, head, 1::2])


def _estimate(samples: np.ndarray) -> tuple[float, tuple[float, float]]:
    if len(samples) < 2:
        return float(samples.mean()) if len(samples) else float("nan"), (-np.inf, np.inf)
    estimate = mean_over_seeds(samples)
    return float(estimate.mean), (float(estimate.low), float(estimate.high))


def claims(result: Result) -> list[Claim]:
    """What is held against the measurements."""
    main = result.courses[0]
    found = [_beats(result, main, "gzip", GZIP), _beats(result, main, "bigram", BIGRAM)]
    found += [_sink_grows(result, main), _sink_grows_on_average(result, main)]
    for other in result.courses[1:]:
        found += [_grows_more(result, main, other), _no_sink(result, other, "weight"), _no_sink(result, other, "share")]
    return found


GZIP = "the held-out files in one gzip -9 stream, each costing what it adds to the stream"
ENOUGH = 1_500_000  # bytes read, repetitions counted
BIGRAM = "a bigram model of the training files that backs off to the unigram, its strength fitted by leave-one-out"


def _beats(result: Result, course: Course, baseline: str, described: str) -> Claim:
    measured, interval = difference(result, course, baseline)
    return Claim.at_most(
        f"beats-{baseline}",
        f"On {len(result.files)} held-out pieces of text the {course.attention} Transformer needs fewer bits per byte "
        f"({course.bits_per_byte:.3f}) than {described} ({result.baselines[baseline]:.3f}). Measured: the difference.",
        f"own test: a model that has read {ENOUGH / 1e6:.1f} MB or more (this one: {result.bytes_read / 1e6:.1f} MB) "
        "learns more than a text's local statistics",
        predicted=0.0,
        measured=measured,
        interval=interval,
        tolerance=0.0,
        reason="A sign: any difference below zero will do. Interval: bootstrap over held-out files.",
        assumptions_hold=result.bytes_read >= ENOUGH,
    )


def _uniform(result: Result) -> float:
    """What uniform attention gives the first position, over the queries of a window's second half."""
    return lm.uniform_sink(result.context, start=result.context // 2)


def _described(result: Result) -> str:
    return (
        f"attention on the first position by the queries of a window's second half, at the end minus at the end of the "
        f"warm-up (uniform attention gives {_uniform(result):.4f})"
    )


STRONGEST = "Interval over the held-out windows that had no part in choosing the head."


def _sink_grows(result: Result, course: Course) -> Claim:
    measured, interval = strongest_growth(grown(course, "share"))
    return Claim.at_least(
        "sink-grows",
        f"With {course.attention} attention a head grows a sink; measured in the strongest head: {_described(result)}.",
        f"{GU}, section 4",
        predicted=_uniform(result),
        measured=measured,
        interval=interval,
        tolerance=0.0,
        reason=f"Growing by less than uniform attention has is no sink. {STRONGEST}",
        assumptions_hold=course.attention == "softmax",
    )


def _sink_grows_on_average(result: Result, course: Course) -> Claim:
    measured, interval = mean_growth(grown(course, "share"))
    return Claim.at_least(
        "sink-grows-on-average",
        f"With {course.attention} attention sinks grow on average over all heads: {_described(result)}.",
        f"{GU}, section 4",
        predicted=0.0,
        measured=measured,
        interval=interval,
        tolerance=0.0,
        reason="A sign: the paper trains larger models, longer, and has no value for this size. Interval over heads.",
        assumptions_hold=course.attention == "softmax",
    )


def _grows_more(result: Result, course: Course, other: Course) -> Claim:
    (more, (low, _)), (less, (_, high)) = (strongest_growth(grown(c, "weight")) for c in (course, other))
    return Claim.at_least(
        "sink-grows-more",
        f"Sinks grow more with {course.attention} ({more:.3f}) than with {other.attention} ({less:.3f}); measured, in "
        f"the strongest head of each, weights as they are: {_described(result)}.",
        f"{GU}, section 7",
        predicted=0.0,
        measured=more - less,
        interval=(low - high, more - less + (more - low) + (high - less)),
        tolerance=0.0,
        reason="A sign. The interval is the widest that the two models' own intervals allow.",
        assumptions_hold=(course.attention, other.attention) == ("softmax", "sigmoid"),
    )


def _no_sink(result: Result, course: Course, kind: Literal["weight", "share"]) -> Claim:
    measured, interval = strongest_growth(grown(course, kind))
    how = {"weight": "weights as they are", "share": "weights divided by their sum over the row"}[kind]
    return Claim.at_most(
        f"no-sink-{kind}",
        f"With {course.attention} attention no head grows a sink ({how}); measured in the strongest: "
        f"{_described(result)}.",
        f"{GU}, section 7 (sigmoid attention without normalization)",
        predicted=0.0,
        measured=measured,
        interval=interval,
        tolerance=_uniform(result),
        reason=f"Growing by less than uniform attention has is no sink. {STRONGEST}",
        assumptions_hold=course.attention == "sigmoid",
    )


def plot(result: Result) -> dict[str, Figure]:
    """Loss against the baselines; entropy and sink by layer and head over training; attention received by each key."""
    return {"loss": _plot_loss(result), "attention": _plot_attention(result), "key_mass": _plot_key_mass(result)}


def _plot_loss(result: Result) -> Figure:
    figure, axes = _plotting.new_figure()
    for color, course in zip(_plotting.COLORS, result.courses, strict=False):
        steps = np.arange(1, len(course.losses) + 1)
        axes.plot(steps, course.losses, color=color, linewidth=0.6, alpha=0.35)
        held_out = f"{course.attention}, held-out batch (all held-out text: {course.bits_per_byte:.2f})"
        axes.plot(course.measured_at[1:], course.measured.bits[1:], "o-", color=color, markersize=3.5, label=held_out)
    for (name, bits), style in zip(result.baselines.items(), (":", "--", "-"), strict=True):
        axes.axhline(bits, color="black", linewidth=1, linestyle=style, label=f"{name} ({bits:.2f})")
    axes.set_ylim(1, 6)
    axes.set_xscale("log")
    _plotting.label(axes, "step", "bits per byte", "Thin: training batches")
    return figure


def _plot_attention(result: Result) -> Figure:
    """One row for the entropy and one for the sink; one line for each head, colored by layer."""
    panels = [(course, name) for course in result.courses for name in ("entropy", "far_share")]
    titles = {"entropy": "entropy of attention (nats)", "far_share": "attention on the first position (share)"}
    figure, all_axes = _plotting.new_figure(len(panels), width=4.2, height=3.6)
    for axes, (course, name) in zip(all_axes, panels, strict=True):
        values = getattr(course.measured, name)
        values = values.mean(-1) if name == "far_share" else values  # [M, L, N]
        for layer in range(values.shape[1]):
            for head in range(values.shape[2]):
                text = f"layer {layer + 1}" if head == 0 else None
                color = _plotting.COLORS[layer % len(_plotting.COLORS)]
                axes.plot(course.measured_at, values[:, layer, head], color=color, linewidth=1.1, label=text)
        if name == "far_share":
            axes.axhline(_uniform(result), color="black", linewidth=1, linestyle=":", label="uniform attention")
            axes.set_ylim(bottom=0, top=max(0.1, *(1.05 * c.measured.far_share.mean(-1).max() for c in result.courses)))
        axes.set_xscale("symlog", linthresh=1)
        _plotting.label(axes, "step", titles[name], course.attention)
    return figure


def _plot_key_mass(result: Result) -> Figure:
    figure, all_axes = _plotting.new_figure(len(result.courses), width=5.0)
    for axes, course in zip(np.atleast_1d(all_axes), result.courses, strict=True):
        profile = course.measured.key_mass  # [M, L, N, T]
        positions = np.arange(1, profile.shape[-1] + 1)
        axes.plot(
            positions, profile[0].mean((0, 1)), color="black", linewidth=1, linestyle=":", label="before training"
        )
        for layer in range(profile.shape[1]):
            color = _plotting.COLORS[layer % len(_plotting.COLORS)]
            axes.plot(positions, np.abs(profile[-1, layer]).mean(0), color=color, label=f"layer {layer + 1}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        title = f"{course.attention}: weight received"
        _plotting.label(axes, "position of the key", "per query that may see it", title)
    return figure
