"""Checkpoints: written while training goes on, on notice of preemption too; damaged ones are passed over."""

import contextlib
import dataclasses
import json
import logging
import signal
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from experiments.framework.context import UsageError
from experiments.pod.config import Config

LOG = logging.getLogger(__name__)


class Unwritten(OSError):
    """A checkpoint could not be written: a full disk, for example."""


DAMAGE = ("OUT_OF_RANGE", "DATA_LOSS", "NOT_FOUND", "was not found in the checkpoint")
"""What the errors of a damaged checkpoint say; others disagree with the run, and must not be passed over."""


class Checkpoints:
    """Those of a run.

    Args:
        config: Of the run; what does not change its result may differ when it goes on.
    """

    def __init__(self, config: Config):
        output = config.output
        self.folder = epath.Path(output.folder).expanduser().absolute() / "checkpoints"
        self.described = described(config)
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=output.keep, save_interval_steps=output.save_every, cleanup_tmp_directories=True
            ),
            item_names=("state", "config"),
        )
        self.alone = jax.process_count() == 1
        self.noticed = False
        if self.alone:  # with several processes jax's own service listens, and all are told at the same step
            signal.signal(signal.SIGTERM, self._notice)

    def _notice(self, *_: Any) -> None:
        self.noticed = True

    def preempted(self, step: int) -> bool:
        """Whether the machine is about to be taken away: true in all processes at the same step. Ask at every step."""
        return self.noticed if self.alone else self.manager.reached_preemption(step)

    def save(self, step: int, state: Any, *, now: bool = False) -> None:
        """Save if it is time, or `now`. Returns when the state has been copied to the host.

        Raises:
            Unwritten: This checkpoint, or the one before it, whose files are written in the background.
        """
        with self._writing():
            self.manager.check_for_errors()
            if step in self.manager.all_steps():
                return
            items = ocp.args.Composite(state=ocp.args.StandardSave(state), config=ocp.args.JsonSave(self.described))
            self.manager.save(step, args=items, force=now)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Says of an error what it means for the run."""
        try:
            yield
        except Exception as error:
            with contextlib.suppress(Exception):
                self.manager.close()
            whole = sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())
            raise Unwritten(
                f"{self.folder}: a checkpoint could not be written ({_said(error)[-1]}). Those of steps {whole} are "
                "whole: make room, and start again with the same command"
            ) from error

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest state that can be read, and its step; None if there is none.

        Args:
            like: Shapes, dtypes and shardings of the state: those of any mesh.

        Raises:
            UsageError: The checkpoints are those of another configuration.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            state, error = self._read(step, like)
            if _all_agree(error is None):
                return step, state
            LOG.warning("checkpoint %d is damaged and is passed over: %s", step, error)
            self.manager.delete(step)
        return None

    def _read(self, step: int, like: Any) -> tuple[Any, Exception | None]:
        try:
            items = ocp.args.Composite(state=ocp.args.StandardRestore(like), config=ocp.args.JsonRestore())
            found = self.manager.restore(step, args=items)
        except Exception as error:  # orbax raises bare ones, caused by those that tell why
            if not any(word in said for word in DAMAGE for said in _said(error)):
                raise
            return None, error
        if found["config"] != self.described:
            raise UsageError(
                f"{self.folder}: its checkpoints are those of another run, which differs in "
                f"{differences(found['config'], self.described)}; name another folder with --output.folder"
            )
        return found["state"], None

    def close(self) -> None:
        """Wait for what is being written.

        Raises:
            Unwritten: The last checkpoint.
        """
        with self._writing():
            self.manager.wait_until_finished()
            self.manager.close()


def described(config: Config) -> dict[str, Any]:
    """What of a configuration decides the result of a run: not where and on how many devices it runs."""
    kept = {name: dataclasses.asdict(getattr(config, name)) for name in ("model", "data", "training")}
    for section, names in {"data": ("threads",), "training": ("implementation", "remat", "pmap")}.items():
        for name in names:
            del kept[section][name]
    return json.loads(json.dumps(kept, default=str))


def differences(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Where two configurations differ."""
    found = [
        f"{section}.{name}: {a.get(section, {}).get(name)} then, {value} now"
        for section, values in b.items()
        for name, value in values.items()
        if a.get(section, {}).get(name) != value
    ]
    return ", ".join(found)


def _said(error: BaseException | None) -> list[str]:
    """What an error says, and those that caused it."""
    return [] if error is None else [str(error), *_said(error.__cause__ or error.__context__)]


def _all_agree(good: bool) -> bool:
    return bool(np.all(multihost_utils.process_allgather(np.asarray(good))))
