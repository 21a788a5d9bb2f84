"""The command line on two small experiments: what it writes, its exit status, and its errors without a traceback."""

import dataclasses
import json
import re
import types
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from experiments.framework import cli, plotting
from experiments.framework.claim import Claim
from experiments.framework.context import UsageError
from experiments.registry import EXPERIMENTS

KEYS = {"id", "statement", "source", "predicted", "measured", "interval", "tolerance", "reason", "verdict"}


def make_experiment(name: str, *, measured: float):
    """An experiment that draws one number around `measured` and says that it is 1."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        size: int = 100
        """Number of draws."""
        spread: float = 0.0
        """Standard deviation."""
        seed: int = 0
        """Seed."""

        @classmethod
        def quick(cls):
            return cls(size=10)

    class Result(NamedTuple):
        config: Config
        draws: np.ndarray
        large: np.ndarray

    calls = []

    def run(config, context):
        calls.append(config)
        if config.size < 1:
            raise UsageError(f"--size must be at least 1, got {config.size} [sic].")
        draws = measured + config.spread * np.asarray(jax.random.normal(context.key, (config.size,)))
        for _ in context.track(range(3), "working"):
            pass
        return Result(config, draws, np.zeros((100, 100)))

    def claims(result):
        measured = float(np.mean(result.draws))
        return [
            Claim.equal(
                "is-one", "It is <1> & one.", "Own", predicted=1.0, measured=measured, tolerance=0.1, reason="R."
            )
        ]

    def plot(result):
        figure, axes = plotting.new_figure()
        plotting.theory(axes, np.arange(3), np.ones(3), label="theory")
        plotting.label(axes, "x (units)", "y (units)")
        return {"a_figure": figure}

    module: Any = types.ModuleType(name, f"The {name} experiment.\n\nMore of it.")
    module.Config, module.run, module.claims, module.plot, module.calls = Config, run, claims, plot, calls
    return module


@pytest.fixture
def toys(monkeypatch):
    experiments = {"right": make_experiment("right", measured=1.0), "wrong": make_experiment("wrong", measured=2.0)}
    for name in list(EXPERIMENTS):
        monkeypatch.delitem(EXPERIMENTS, name)
    for name, module in experiments.items():
        monkeypatch.setitem(EXPERIMENTS, name, module)
    return types.SimpleNamespace(**experiments)


def read(path):
    return json.loads(path.read_text(), parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_run_writes_claims_result_and_figures(toys, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert cli.main(["run", "right", "--out", str(out), "--size", "7", "--seed", "3"]) == 0
    (claim,) = read(out / "claims.json")
    assert set(claim) == KEYS
    assert claim["verdict"] == "pass"
    result = read(out / "result.json")
    assert result["config"] == {"size": 7, "spread": 0.0, "seed": 3}
    assert result["seed"] == 3
    assert result["device"].startswith("cpu")
    assert {"python", "jax", "numpy"} <= set(result["versions"])
    assert result["timings"]["run_s"] >= 0
    assert len(result["result"]["draws"]) == 7
    assert result["result"]["large"]["shape"] == [100, 100]
    assert result["command"] == f"python -m experiments run right --out {out} --size 7 --seed 3"
    assert {path.name for path in out.iterdir()} == {"claims.json", "result.json", "a_figure.svg", "a_figure.png"}
    printed = capsys.readouterr().out
    assert "is-one" in printed
    assert "pass" in printed


def test_quick_is_a_starting_point_that_flags_override(toys, tmp_path):
    cli.main(["run", "right", "--quick", "--out", str(tmp_path / "a")])
    cli.main(["run", "right", "--quick", "--size", "5", "--out", str(tmp_path / "b")])
    cli.main(["run", "right", "--out", str(tmp_path / "c")])
    assert [config.size for config in toys.right.calls] == [10, 5, 100]


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(toys, tmp_path):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        cli.main(["run", "right", "--spread", "1", "--seed", seed, "--out", str(tmp_path / name)])
    a, b, c = (read(tmp_path / name / "result.json")["result"]["draws"] for name in "abc")
    assert a == b
    assert a != c


def test_a_failed_claim_is_an_error_only_under_strict(toys, tmp_path):
    assert cli.main(["run", "wrong", "--out", str(tmp_path)]) == 0
    assert read(tmp_path / "claims.json")[0]["verdict"] == "fail"
    assert cli.main(["run", "wrong", "--strict", "--out", str(tmp_path)]) == 1
    assert cli.main(["run", "right", "--strict", "--out", str(tmp_path)]) == 0


def test_list_names_every_experiment(toys, capsys):
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "The right experiment." in printed
    assert "wrong" in printed
    assert "More of it" not in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "rihgt"], ["rihgt", "right"]),
        (["run", "right", "--sise", "3"], ["--sise"]),
        (["run", "right", "--size", "many"], ["many", "--size"]),
        (["run", "right", "--size", "0"], ["--size must be at least 1, got 0 [sic]."]),
        (["walk"], ["walk"]),
        (["run"], ["right", "wrong"]),
        ([], ["list", "run", "report"]),
    ],
)
def test_mistakes_are_named_without_a_traceback(toys, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    for word in words:
        assert word in printed.out + printed.err
    assert "Traceback" not in printed.out + printed.err


@pytest.mark.parametrize("command", [["run", "right"], ["report"]])
def test_a_folder_that_cannot_be_written_to(toys, tmp_path, capsys, command):
    (tmp_path / "file").write_text("in the way")
    assert cli.main([*command, "--out", str(tmp_path / "file" / "out")]) == 2
    printed = capsys.readouterr()
    assert "--out" in printed.err
    assert "Traceback" not in printed.out + printed.err
    assert not toys.right.calls


def test_help_shows_the_fields_docstrings(toys, capsys):
    assert cli.main(["run", "right", "--help"]) == 0
    printed = capsys.readouterr().out
    for words in ("Number of draws", "--quick", "--strict", "--out"):
        assert words in printed


def test_report_gathers_everything_in_one_page(toys, tmp_path):
    assert cli.main(["report", "--quick", "--out", str(tmp_path)]) == 0
    document = read(tmp_path / "report.json")
    assert [entry["name"] for entry in document["experiments"]] == ["right", "wrong"]
    assert [entry["claims"][0]["verdict"] for entry in document["experiments"]] == ["pass", "fail"]
    assert set(document["experiments"][0]["claims"][0]) == KEYS
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "It is &lt;1&gt; &amp; one." in page
    assert not re.findall(r'(?:src|href)="(?!#)|url\((?!#)|@import', page), "not self-contained"
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert document["command"] in page
    assert document["versions"]["jax"] in page


def test_report_with_several_processes_describes_what_breaks_in_them(toys, tmp_path, capsys):
    """The toys are unknown to the processes, which end with status 2; the report then runs them itself."""
    assert cli.main(["report", "--quick", "--jobs", "2", "--out", str(tmp_path)]) == 0
    assert "ended with status 2" in capsys.readouterr().out
    assert "right" in (tmp_path / "right" / "run.log").read_text()
    assert [one["name"] for one in read(tmp_path / "report.json")["experiments"]] == ["right", "wrong"]
    assert cli.main(["report", "--jobs", "0", "--out", str(tmp_path)]) == 2


def test_report_keeps_complete_runs_of_the_same_settings(toys, tmp_path):
    for arguments, runs in (([], 1), ([], 1), (["--fresh"], 2), (["--quick"], 3), (["--quick"], 3)):
        cli.main(["report", *arguments, "--out", str(tmp_path)])
        assert len(toys.right.calls) == runs
    (tmp_path / "right" / "claims.json").unlink()
    cli.main(["report", "--quick", "--out", str(tmp_path)])
    assert len(toys.right.calls) == 4
    assert len(toys.wrong.calls) == 3


def test_report_survives_a_broken_experiment(toys, tmp_path, monkeypatch):
    def broken(config, context):
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(toys.right, "run", broken)
    assert cli.main(["report", "--out", str(tmp_path)]) == 1
    assert "the disk is on fire" in (tmp_path / "report.html").read_text()
    document = read(tmp_path / "report.json")
    assert "the disk is on fire" in document["experiments"][0]["error"]
    assert document["experiments"][1]["claims"][0]["verdict"] == "fail"


def test_an_interrupt_ends_quietly(toys, tmp_path, monkeypatch, capsys):
    def interrupted(config, context):
        raise KeyboardInterrupt

    monkeypatch.setattr(toys.right, "run", interrupted)
    assert cli.main(["run", "right", "--out", str(tmp_path)]) == 130
    assert "Interrupted" in capsys.readouterr().out
    assert not (tmp_path / "claims.json").exists()
