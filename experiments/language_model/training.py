"""Training that can stop at any moment and go on as if it had not: everything is a function of (config, step)."""

import dataclasses
import functools
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jaxtyping import Array, Int

from experiments.framework.context import Context, UsageError
from experiments.language_model import model as lm
from experiments.language_model.corpus import START, Corpus

NOTE_EVERY = 10  # steps between two looks at the loss


class Trained(NamedTuple):
    """What training one model gave.

    Attributes:
        parts: The model's structure.
        params: Its trained parameters.
        losses: `[steps]` training loss in bits per byte, by step.
        measured_at: `[M]` steps at which the attention was measured.
        measured: `Measured` with a leading axis M.
        tokens_per_second: Over the steps that this process ran; None if it ran none.
    """

    parts: lm.Parts
    params: Any
    losses: np.ndarray
    measured_at: np.ndarray
    measured: lm.Measured
    tokens_per_second: float | None


def warmup_steps(steps: int) -> int:
    """Steps after which the learning rate is at its peak."""
    return max(1, min(100, steps // 10))


def optimizer(config: Any) -> optax.GradientTransformation:
    """AdamW, linear warm-up, cosine decay to 5%, gradients clipped to norm 1, no weight decay on gains and logits."""
    warmup = warmup_steps(config.steps)
    end = max(config.steps, warmup + 1)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, end, config.learning_rate / 20)
    matrices = functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.95, weight_decay=config.weight_decay, mask=matrices)
    )


def windows(text: Array, key: Array, step: Array, *, batch: int, context: int) -> Int[Array, "batch context"]:
    """The step's batch: windows at uniformly random offsets, a function of the key and the step alone."""
    offsets = jax.random.randint(jax.random.fold_in(key, step), (batch,), 0, text.shape[0] - context + 1)
    return text[offsets[:, None] + jnp.arange(context)[None]].astype(jnp.int32)


def make_step(config: Any, parts: lm.Parts, key: Array) -> Callable:
    """The jitted `(params, opt_state, step, text) -> (params, opt_state, loss in bits per byte)`."""
    update = optimizer(config).update

    def loss(params, window):
        return lm.nats(parts.model(params)(lm.inputs(window)), window).mean() / jnp.log(2.0)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, number, text):
        window = windows(text, key, number, batch=config.batch, context=config.context)
        value, gradient = jax.value_and_grad(loss)(params, window)
        change, opt_state = update(gradient, opt_state, params)
        return optax.apply_updates(params, change), opt_state, value

    return step


def fixed_batch(corpus: Corpus, config: Any) -> Int[Array, "B T"]:
    """Held-out windows on which attention is measured: evenly spread, at most 128."""
    text = np.frombuffer(b"".join(bytes([START]) + content for content in corpus.held_out), np.uint8)
    if len(text) < 2 * config.context:
        raise UsageError(f"--context {config.context}: the held-out text has {len(text)} bytes; shorten the context.")
    starts = np.linspace(0, len(text) - config.context, min(128, len(text) // config.context)).astype(int)
    return jnp.asarray(text[starts[:, None] + np.arange(config.context)], jnp.int32)


def file_bits(parts: lm.Parts, params: Any, held_out: tuple[bytes, ...], *, context: int) -> np.ndarray:
    """Bits of each held-out file, every byte predicted once from at least half a window of its own file's bytes.

    Windows of a file start every half window; of each but the first, the second half counts.
    """
    half = context // 2

    @jax.jit
    def bits(params, window):
        return lm.nats(parts.model(params)(lm.inputs(window)), window) / jnp.log(2.0)

    rows, counted, owner = [], [], []
    for number, content in enumerate(held_out):
        text = np.frombuffer(content, np.uint8)
        for start in range(0, max(len(text) - context + half, 1), half):
            window = text[start : start + context]
            rows.append(np.pad(window, (0, context - len(window))))
            counted.append((np.arange(context) < len(window)) & ((np.arange(context) >= context - half) | (start == 0)))
            owner.append(number)
    size = 32
    short = -len(rows) % size
    padded = np.concatenate([np.stack(rows), np.zeros((short, context), np.uint8)]).reshape(-1, size, context)
    found = np.concatenate([np.asarray(bits(params, jnp.asarray(block, jnp.int32))) for block in padded])[: len(rows)]
    return np.bincount(owner, weights=(found.astype(np.float64) * np.stack(counted)).sum(1), minlength=len(held_out))


@dataclasses.dataclass
class Checkpoints:
    """Checkpoints of one model: the two newest, each written whole or not at all."""

    folder: Path
    fingerprint: dict[str, Any]

    def __post_init__(self):
        self.folder = self.folder.absolute()
        handlers = {"state": ocp.StandardCheckpointHandler(), "log": ocp.JsonCheckpointHandler()}
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False, create=True)
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, log: dict[str, Any]) -> None:
        """Write the state after `step` steps, unless it is there already."""
        if self.manager.latest_step() == step:
            return
        items = {
            "state": ocp.args.StandardSave(state),
            "log": ocp.args.JsonSave({**log, "fingerprint": self.fingerprint}),
        }
        self.manager.save(step, args=ocp.args.Composite(**items))

    def restore(self, like: Any) -> tuple[int, Any, dict[str, Any]] | None:
        """The newest checkpoint: steps done, state and log. None where there is none.

        Raises:
            UsageError: It cannot be read, or belongs to other settings.
        """
        step = self.manager.latest_step()
        if step is None:
            return None
        try:
            log = self.manager.restore(step, args=ocp.args.Composite(log=ocp.args.JsonRestore()))["log"]
            self._compare(log["fingerprint"])
            shapes = ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
            state = self.manager.restore(step, args=ocp.args.Composite(state=shapes))["state"]
        except UsageError:
            raise
        except Exception as error:  # whatever a damaged file makes orbax or json raise
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UsageError(
                f"--resume: the checkpoint {self.folder / str(step)} cannot be read ({reason:.200}). Delete that "
                f"folder to resume from the one before it, or start anew without --resume."
            ) from error
        return step, state, log

    def _compare(self, saved: dict[str, Any]) -> None:
        wanted = json.loads(json.dumps(self.fingerprint))
        differing = [name for name in wanted if saved.get(name) != wanted[name]]
        if differing:
            changes = ", ".join(f"{name} was {saved.get(name)!r}, is {wanted[name]!r}" for name in differing)
            raise UsageError(
                f"--resume: {self.folder} belongs to other settings ({changes}). Repeat the first run's flags."
            )


def train(config: Any, attention: lm.Attention, corpus: Corpus, context: Context) -> Trained:
    """Train one model, from its newest checkpoint under `config.resume`, else from the start.

    Raises:
        UsageError: Settings, checkpoints or text that do not fit.
        KeyboardInterrupt: After Ctrl-C, once a checkpoint is written.
    """
    parts = lm.build(config, attention)
    folder = context.out / "checkpoints" / attention
    if not config.resume:
        shutil.rmtree(folder, ignore_errors=True)
    checkpoints = Checkpoints(folder, _fingerprint(config, attention, corpus))
    batch, text = fixed_batch(corpus, config), jnp.asarray(corpus.train)
    step = make_step(config, parts, jax.random.fold_in(context.key, 1))
    measure = jax.jit(lambda params: lm.measure(parts.model(params), batch))
    state = {"params": parts.params, "opt": optimizer(config).init(parts.params)}
    start, log = 0, {"losses": [], "measured_at": [], "measured": []}
    found = checkpoints.restore(state) if config.resume else None
    if found is not None:
        start, state, log = found
        context.console.print(f"{attention}: resumed after step {start}.")
    measure_at = set(np.unique(np.geomspace(1, config.steps, config.measurements).astype(int)).tolist())
    measure_at |= {0, warmup_steps(config.steps)}
    task = context.progress.add_task(attention, total=config.steps, completed=start, note="")
    losses, clock = [], _Clock(config.batch * config.context)

    def save(done: int) -> None:
        log["losses"] += [float(loss) for loss in losses]
        losses.clear()
        checkpoints.save(done, state, log)

    with interruptions() as interrupted:
        for done in range(start, config.steps + 1):
            if done in measure_at and done not in log["measured_at"]:
                log["measured_at"].append(done)
                log["measured"].append(_as_lists(measure(state["params"])))
            if done == config.steps or (done > start and done % config.checkpoint_every == 0):
                save(done)
            if interrupted:
                save(done)
                _say_how_to_resume(context, attention, done)
                raise KeyboardInterrupt
            if done < config.steps:
                *new, loss = step(state["params"], state["opt"], done, text)
                state = dict(zip(("params", "opt"), new, strict=True))
                losses.append(loss)
                if (done + 1) % NOTE_EVERY == 0:
                    note = f"{clock.speed(done + 1 - start, loss):,.0f} tokens/s   {float(loss):.3f} bits/byte"
                    context.progress.update(task, completed=done + 1, note=note)
    measured = [lm.Measured(**{k: np.asarray(v) for k, v in entry.items()}) for entry in log["measured"]]
    stacked = jax.tree.map(lambda *entries: np.stack(entries), *measured)
    trained = Trained(
        parts, state["params"], np.array(log["losses"]), np.array(log["measured_at"]), stacked, clock.last
    )
    context.progress.update(task, completed=config.steps)
    return trained


def _as_lists(measured: lm.Measured) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() for name, value in measured._asdict().items()}


class _Clock:
    """Tokens per second since the first look, which comes after compilation."""

    def __init__(self, tokens: int):
        self.tokens, self.first, self.last = tokens, None, None

    def speed(self, steps: int, loss: Array) -> float:
        loss.block_until_ready()
        now = time.perf_counter()
        if self.first is None:
            self.first = (steps, now)
            return float("nan")
        self.last = self.tokens * (steps - self.first[0]) / (now - self.first[1])
        return self.last


def _fingerprint(config: Any, attention: str, corpus: Corpus) -> dict[str, Any]:
    """What a checkpoint belongs to: all that decides the course of training, and nothing else."""
    others = ("text", "attention", "compare", "resume", "checkpoint_every", "prompt", "sample_length", "temperature")
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in others}
    return {**settings, "attention": attention, "text": corpus.digest}


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """A list that becomes non-empty at the first Ctrl-C; the second one interrupts at once, as usual."""
    seen: list[int] = []

    def note(number, frame):
        seen.append(number)
        signal.signal(signal.SIGINT, previous)

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread, where no Ctrl-C arrives either
        yield seen
        return
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, previous)


def _say_how_to_resume(context: Context, attention: str, step: int) -> None:
    command = context.command if "--resume" in context.command else f"{context.command} --resume"
    context.console.print(
        f"Saved {attention} after step {step}. Go on with:\n  {command}", soft_wrap=True, highlight=False
    )
