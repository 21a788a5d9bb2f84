"""The pod's training script as users run it: processes that find each other, die, are told to go, and go on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.pod.metrics import read

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 60, 20
SAME = ("--training.steps", STEPS, "--output.save-every", EVERY, "--output.log-every", 1, "--cluster.heartbeat", 5)
LIMITED = ("bash", "-c", 'set -o pipefail; (ulimit -f "$0"; exec "$@") 2>&1 | cat')
"""Runs what follows, a number of blocks and a command, with no file but its log longer than these."""
pytestmark = pytest.mark.slow


class Job:
    """Processes of one run.

    Args:
        folder: of what they write.
        processes: how many.
        devices: of each.
        flags: of all.
        each: of every process, more flags.
        folders: where every process is started.
        file_blocks: no file may be longer than so many blocks of 1,024 bytes.
    """

    def __init__(self, folder: Path, processes: int, devices: int, *flags, each=None, folders=None, file_blocks=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.folder, self.children, self.logs = folder, [], []
        folder.mkdir(parents=True, exist_ok=True)
        self.before = len(self.lines())
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        for rank in range(processes):
            command = [
                *((*LIMITED, file_blocks) if file_blocks else ()),
                *("timeout", "--signal=KILL", "180", sys.executable, "-m", "experiments.pod.train", "tiny", *SAME),
                *("--output.folder", folder, "--cluster.cpu-devices", devices, "--output.no-tensorboard", *flags),
                *(each[rank] if each else ()),
            ]
            if processes > 1:
                command += [
                    "--cluster.coordinator",
                    address,
                    "--cluster.processes",
                    processes,
                    "--cluster.process",
                    rank,
                ]
            self.logs.append(folder / f"log-{len(list(folder.glob('log-*')))}")
            with self.logs[-1].open("w") as log:
                child = subprocess.Popen(
                    list(map(str, command)), cwd=folders[rank] if folders else ROOT, env=environment,
                    stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            self.children.append(child)

    def lines(self) -> list[str]:
        """Of the metrics, those of earlier jobs too."""
        path = self.folder / "metrics.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    def wait(self) -> list[int]:
        """The exit codes of all processes."""
        codes = [child.wait(timeout=200) for child in self.children]
        print(*(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in self.logs), sep="\n")
        return codes

    def reach(self, step: int) -> None:
        """Wait until this job's metrics tell of a step."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if any(f'"step": {step},' in line for line in self.lines()[self.before :]):
                return
            assert all(child.poll() is None for child in self.children), self.wait()
            time.sleep(0.005)
        raise AssertionError(f"step {step} was not reached")

    def send(self, rank: int, number: int) -> None:
        """A signal to one process: not to `timeout`, whose only child it is."""
        parent = self.children[rank].pid
        (child,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        os.kill(int(child), number)


def losses(folder: Path) -> np.ndarray:
    found = read(folder)
    assert sorted(found) == list(range(1, STEPS + 1)), "no step is missing"
    return np.array([found[step]["loss"] for step in sorted(found)])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Losses of one process with four devices; its folder."""
    folder = tmp_path_factory.mktemp("whole")
    assert Job(folder, 1, 4, "--mesh.context", 2).wait() == [0]
    return losses(folder), folder


def test_two_processes_learn_what_one_learns_whatever_happens_to_them(uninterrupted, tmp_path):
    """Killed in the middle and started again; told to go and started again: the losses are those of one process."""
    flags = ("--mesh.context", 2)
    want, _ = uninterrupted
    assert want[-1] < want[0] - 1.5, "it learns"

    job = Job(tmp_path, 2, 2, *flags)
    job.reach(EVERY + 5)
    job.send(1, signal.SIGKILL)
    codes = job.wait()
    assert codes[1] in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert codes[0] not in (0, 75), "the other process cannot go on alone"
    written = len((tmp_path / "metrics.jsonl").read_text().splitlines())

    job = Job(tmp_path, 2, 2, *flags)
    job.reach(EVERY + 1)
    job.send(1, signal.SIGTERM)
    assert job.wait() == [75, 75], "both save at the same step, and ask to be started again"
    saved = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
    assert max(saved) > EVERY + 1
    assert max(saved) % EVERY, "saved on notice, not because it was time"

    assert Job(tmp_path, 2, 2, *flags).wait() == [0, 0]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[written]["step"] == EVERY + 1, "went on from the last checkpoint"
    by_step: dict[int, set] = {}
    for line in lines:
        by_step.setdefault(line["step"], set()).add(line["loss"])
    assert all(len(found) == 1 for found in by_step.values()), "steps that were taken twice were the same, bit for bit"
    np.testing.assert_allclose(losses(tmp_path), want, rtol=0, atol=1e-5)


def test_a_damaged_checkpoint_is_passed_over_and_other_devices_go_on(uninterrupted, tmp_path):
    """Of what four devices saved the newest is cut short; two devices go on from the one before, with a warning."""
    want, folder = uninterrupted
    shutil.copytree(folder / "checkpoints", tmp_path / "checkpoints")
    newest = tmp_path / "checkpoints" / str(STEPS)
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)

    job = Job(tmp_path, 1, 2, "--mesh.context", 1)
    assert job.wait() == [0]
    assert f"checkpoint {STEPS} is damaged and is passed over" in job.logs[0].read_text()
    found = read(tmp_path)
    assert sorted(found) == list(range(STEPS - EVERY + 1, STEPS + 1))
    np.testing.assert_allclose([found[n]["loss"] for n in sorted(found)], want[STEPS - EVERY :], rtol=0, atol=1e-5)

    other = Job(tmp_path, 1, 2, "--training.rate", 1e-3)
    assert other.wait() != [0]
    assert "training.rate: 0.003 then, 0.001 now" in other.logs[0].read_text()


def test_one_process_is_told_to_go(tmp_path):
    job = Job(tmp_path, 1, 2)
    job.reach(7)
    job.send(0, signal.SIGTERM)
    assert job.wait() == [75]
    assert Job(tmp_path, 1, 2).wait() == [0]
    assert sorted(read(tmp_path)) == list(range(1, STEPS + 1))


def test_a_full_disk_loses_nothing(uninterrupted, tmp_path):
    """A limit on the size of files stands for it: the run ends with an error, and goes on when there is room."""
    want, folder = uninterrupted
    for step in (EVERY, 2 * EVERY):
        shutil.copytree(folder / "checkpoints" / str(step), tmp_path / "checkpoints" / str(step))
    job = Job(tmp_path, 1, 2, file_blocks=100)
    assert job.wait() == [1]
    said = job.logs[0].read_text()
    assert f"\nerror: {tmp_path}/checkpoints: a checkpoint could not be written" in said
    assert "File too large" in said
    assert f"Those of steps [{EVERY}, {2 * EVERY}] are whole: make room" in said
    assert Job(tmp_path, 1, 2).wait() == [0]
    found = read(tmp_path)
    np.testing.assert_allclose([found[n]["loss"] for n in sorted(found)], want[2 * EVERY :], rtol=0, atol=1e-5)


def test_hosts_that_differ_are_told(tmp_path):
    """One has another file of tokens: all of them end at once, and say who."""
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        np.save(tmp_path / str(rank) / "tokens.npy", np.arange(10_000, dtype=np.uint8) + rank)
    job = Job(tmp_path, 2, 2, "--data.path", "tokens.npy", folders=[tmp_path / "0", tmp_path / "1"])
    assert job.wait() == [2, 2], "a mistake does not mend itself: not to be started again"
    for log in job.logs:
        assert "error: data: processes [1] have another than process 0" in log.read_text()
    job = Job(tmp_path, 2, 2, each=[("--training.seed", 0), ("--training.seed", 1)])
    assert job.wait() == [2, 2]
    assert "error: command: processes [1] have another than process 0" in job.logs[0].read_text()
