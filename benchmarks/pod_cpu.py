"""What the pod's training script costs beside its step: its loop, with data and metrics, against a bare step.

Run it alone on the machine:

    python -m benchmarks.pod_cpu --out runs/pod_cpu.json
"""

import dataclasses
import functools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import tyro

from benchmarks.measuring import environment, save
from experiments.pod.checkpoint import Checkpoints
from experiments.pod.config import Config, Data, Mesh, Model, Output, Training
from experiments.pod.data import Sequences, batches, load
from experiments.pod.metrics import Metrics
from experiments.pod.model import Decoder
from experiments.pod.train import initial, jitted, layout_of, loop, optimizer_of, shardings_of


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        quick: tiny sizes: shows that everything runs, its times mean nothing.
        out: where to write the figures as JSON.
        steps: in each turn.
        turns: of the script and the bare step, after each other.
    """

    quick: bool = False
    out: Path | None = None
    steps: int = 20
    turns: int = 7


def main(given: Settings) -> dict:
    """Seconds of a step, bare and in the script's loop."""
    model = Model(vocab=256, width=256, layers=4, heads=4, kv_heads=2, head_dim=64, mlp=512)
    data = Data(length=256, batch=8)
    if given.quick:
        given = dataclasses.replace(given, steps=3, turns=2)
        model, data = dataclasses.replace(model, width=32, layers=1, mlp=64, head_dim=8), Data(length=32, batch=8)
    with tempfile.TemporaryDirectory() as folder:
        training = Training(steps=10**6, dtype="float32")
        output = Output(folder=folder, save_every=10**6, log_every=10)
        config = Config(model, Mesh(), data, training, output)
        layout = layout_of(config.mesh)
        decoder, optimizer = Decoder(config, layout), optimizer_of(training)
        shardings = shardings_of(config, decoder, optimizer, layout)
        make = jax.jit(functools.partial(initial, decoder, optimizer), out_shardings=shardings)
        step = jitted(decoder, optimizer, training, shardings)
        sequences = Sequences(load(data), data, decoder.placement, config.model.vocab)
        reader = batches(data, sequences, layout.sharding("batch", "sequence"), 0)
        checkpoints, metrics = Checkpoints(config), Metrics(config, parameters=0, flops=0.0, first=0)
        state, report = step(make(jax.random.key(0)), next(reader))
        checkpoints.save(1, state, now=True)  # the first one, which no interval delays
        checkpoints.manager.wait_until_finished()
        at, seconds = 1, {"bare": [], "script": []}
        for turn in range(given.turns):
            for name in ("bare", "script") if turn % 2 else ("script", "bare"):
                jax.block_until_ready(state)
                begin = time.perf_counter()
                if name == "bare":
                    batch = next(reader)
                    for _ in range(given.steps):
                        state, report = step(state, batch)
                else:
                    state, _ = loop(config, step, state, reader, checkpoints, metrics, at, at + given.steps)
                    at += given.steps
                jax.block_until_ready((state, report))
                seconds[name].append((time.perf_counter() - begin) / given.steps)
        checkpoints.close()
        metrics.close()
    found = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["bare"], seconds["script"], strict=True)]
    figures = {
        "seconds of a step": found,
        "script over bare": statistics.median(ratios),
        "range": [min(ratios), max(ratios)],
        "settings": {"steps": given.steps, "turns": given.turns}
        | {"model": dataclasses.asdict(model), "length": data.length},
    }
    bare, script = found.values()
    print(f"a step takes {bare:.4f} s bare, {script:.4f} s in the script: {figures['script over bare']:.3f}")
    return figures


if __name__ == "__main__":
    settings = tyro.cli(Settings, prog="benchmarks.pod_cpu")
    save(environment() | main(settings), settings.out)
    sys.exit(0)
