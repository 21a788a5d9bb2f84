"""What the framework hands to an experiment: where to write, the key, and how to show progress."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import jax
from jaxtyping import Array, Key
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


class UsageError(ValueError):
    """The caller asked for something impossible; the command line prints the message and exits with status 2."""


def new_progress(console: Console | None = None) -> Progress:
    """The progress bar of every experiment; its last column shows the task's field `note`, e.g. a speed."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


@dataclasses.dataclass(frozen=True)
class Context:
    """Surroundings of one run.

    Attributes:
        out: Folder of this run; it exists and is writable. Extra files and checkpoints are the experiment's own.
        seed: The config's seed.
        quick: Whether `--quick` was given.
        progress: A live rich `Progress`; `track` is the short way to use it.
        command: The command line, for messages such as how to resume.
    """

    out: Path
    seed: int
    quick: bool
    progress: Progress
    command: str = ""

    @property
    def key(self) -> Key[Array, ""]:
        """The root random key of the run."""
        return jax.random.key(self.seed)

    @property
    def console(self) -> Console:
        """Where to print, without disturbing the progress bar."""
        return self.progress.console

    def track(self, items: Iterable[T], description: str, *, total: int | None = None) -> Iterator[T]:
        """Iterate with a progress bar.

        Args:
            items: What to iterate over.
            description: Text before the bar.
            total: Number of items where `items` has no `len`.
        """
        task = self.progress.add_task(description, total=total if total is not None else len(items), note="")  # type: ignore[arg-type]
        for item in items:
            yield item
            self.progress.advance(task)
