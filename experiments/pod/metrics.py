"""What a run tells: a line of JSON for every look at it, scalars for TensorBoard, a profile of some steps."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
from etils import epath

from experiments.pod.chips import peak_flops
from experiments.pod.config import Config


class Metrics:
    """Of the first process; the others keep silent.

    Losses stay on the devices until `log_every` steps later: nothing waits for a step that has just been started.

    Args:
        config: Of the run.
        parameters: How many the model has.
        flops: Floating-point operations of a step of the model, by its formula.
        first: The step that the run begins, or goes on, with.
    """

    def __init__(self, config: Config, *, parameters: int, flops: float, first: int):
        self.output, self.config = config.output, config
        self.speaks = jax.process_index() == 0
        self.flops, self.tokens = flops, config.data.batch * config.data.length
        self.peak = peak_flops(jax.devices()[0]) * jax.device_count()
        self.reports: list[tuple[int, Any]] = []
        self.begun, self.counted = time.monotonic(), first
        self.warm = first + 2  # the first steps compile
        self.tracing = False
        self.board: Any = None
        if not self.speaks:
            return
        folder = epath.Path(self.output.folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        self.lines = Lines(folder / "metrics.jsonl", whole="://" in self.output.folder)
        if self.output.tensorboard:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"))
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), default=str, indent=1))
        devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        print(
            f"{parameters:,} parameters on {devices}, {jax.process_count()} processes; steps from {first}", flush=True
        )

    def step(self, number: int, report: Any) -> None:
        """Take what a step reports; print if it is time."""
        self.reports.append((number, report))
        if number == self.warm:
            jax.block_until_ready(report)
            self.begun, self.counted = time.monotonic(), number
        if number % self.output.log_every == 0:
            self.flush()

    def flush(self) -> None:
        """Wait for the steps so far and write them down."""
        reports, self.reports = self.reports, []
        if not reports or not self.speaks:
            return
        found = [(number, {name: float(x) for name, x in report.items()}) for number, report in reports]
        last = found[-1][0]
        seconds = (time.monotonic() - self.begun) / (last - self.counted) if last > self.counted else None
        speed = {}
        if seconds is not None and last > self.warm:
            speed = {"step seconds": seconds, "tokens per second": self.tokens / seconds}
            if self.peak:
                speed["MFU"] = self.flops / seconds / self.peak
        self.lines.add([{"step": number, **values, **(speed if number == last else {})} for number, values in found])
        shown = {**found[-1][1], **speed}
        print(f"step {last}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()), flush=True)
        if self.board is not None:
            for name, value in shown.items():
                self.board.add_scalar(name, value, last)
            self.board.flush()
        self.begun, self.counted = time.monotonic(), last

    def profile(self, number: int) -> None:
        """Begin or end the profile, if the step that comes is its first or the one after its last."""
        if self.output.profile is None or not self.speaks:
            return
        if number == self.output.profile[0]:
            jax.profiler.start_trace(str(epath.Path(self.output.folder).expanduser() / "profile"))
            self.tracing = True
        elif self.tracing and number > self.output.profile[1]:
            jax.profiler.stop_trace()
            self.tracing = False

    def close(self) -> None:
        if self.tracing:
            jax.profiler.stop_trace()
        self.flush()
        if self.board is not None:
            self.board.close()


class Lines:
    """A file of lines of JSON that grows, over restarts too.

    Args:
        path: Of the file.
        whole: Write all of it every time: objects in a bucket cannot be appended to.
    """

    def __init__(self, path: epath.Path, *, whole: bool):
        self.path, self.whole = path, whole
        before = path.read_text() if path.exists() else ""
        self.text = before if not before or before.endswith("\n") else before + "\n"  # a process died as it wrote
        if self.text != before:
            path.write_text(self.text)

    def add(self, lines: list[dict[str, Any]]) -> None:
        new = "".join(json.dumps(line) + "\n" for line in lines)
        if self.whole:
            self.text += new
            self.path.write_text(self.text)
        else:
            with self.path.open("a") as file:
                file.write(new)


def read(folder: Path) -> dict[int, dict[str, float]]:
    """The lines of a run by their step; of steps that were taken twice, after a restart, the last.

    A line that was cut short, when a process died as it wrote or its disk was full, is passed over.
    """
    found = {}
    for text in (folder / "metrics.jsonl").read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        found[line["step"]] = line
    return found
