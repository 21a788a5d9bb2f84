"""The benchmarks run, at tiny sizes, and refuse to time wrong values."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from benchmarks import attention_cpu, linear_cpu, pod_cpu
from benchmarks.attention_cpu import QUICK, Config

ROOT = Path(__file__).resolve().parent.parent
TINY = dataclasses.replace(Config(), **QUICK)


def test_the_command_writes_its_figures(tmp_path):
    out = tmp_path / "figures" / "attention.json"
    command = [sys.executable, "-m", "benchmarks.attention_cpu", "--quick", "--only", "block-map", "--out", out]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=None)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert set(report["sections"]) == {"block-map"}
    assert report["versions"]["jax"]
    assert report["machine"]["cores"] >= 1
    assert "--quick" in report["command"]
    assert "segments" in done.stdout


def test_every_section():
    found = attention_cpu.main(dataclasses.replace(TINY, window_length=1024))["sections"]
    for kind in ("causal", "full"):
        for part in ("forward", "forward+backward"):
            assert {"attnjax blocks", "jax.nn"} <= set(found["speed"][f"{kind}, {part}"]["ms"])
            assert found["speed"][f"{kind}, {part}"]["ratio_to_first"]["attnjax blocks"] == 1
    same = found["window"]["tiles of 256 x 256"]
    assert same["tiles_visited"] == {"window": 2 * 7, "causal": 2 * 10}
    assert same["ratio_of_visited_entries"] == pytest.approx(10 / 7)
    assert [(row["batch_times_heads"], row["length"]) for row in found["crossover"]] == [(2, 16), (2, 32)]
    assert set(found["crossover"][0]["forward+backward"]["ms"]) == {"dense", "blocks"}
    for one in found["block-map"].values():
        assert 0 < one["tiles_visited"] < one["tiles"]
        assert one["temporary_bytes"] > 0
    for row in found["decoding"]:
        assert row["cache_bytes"]["multi-head"] == TINY.heads * row["cache_bytes"]["multi-query"]
        assert row["ms"].keys() == row["cache_bytes"].keys()
    rows = {section: attention_cpu.table_of(section, one).row_count for section, one in found.items()}
    assert (rows["crossover"], rows["block-map"], rows["window"]) == (8, 2, 4)


def test_wrong_values_are_not_timed(monkeypatch):
    monkeypatch.setattr(attention_cpu, "blocks", lambda causal: lambda q, k, v: v * 1.001)
    monkeypatch.setattr(attention_cpu, "alternate", lambda *_: pytest.fail("timed"))
    with pytest.raises(
        attention_cpu.WrongValues, match="blocks, causal=True, against float64: relative error of output"
    ):
        attention_cpu.speed(TINY)
    with pytest.raises(attention_cpu.WrongValues, match="nan"):
        attention_cpu.require_equal("test", [jnp.array([jnp.nan])], [jnp.ones(1)])


def test_linear_attention():
    """Every section of one kind; wrong values are not timed."""
    found = linear_cpu.main(linear_cpu.Config(quick=True, kinds=("delta",)))["sections"]
    for part in ("forward", "forward+backward"):
        assert set(found["forms"]["delta"][part]["ms"]) == {"chunked", "recurrent", "softmax"}
        assert set(found["per token"]["delta"][part]["microseconds"]) == {"32", "64"}
    short, long = found["memory"]["delta"].values()
    assert 0 < short < long
    with pytest.raises(linear_cpu.WrongValues, match="relative error"):
        linear_cpu._require("chunks", jnp.ones(3), jnp.ones(3) * 1.001)


def test_pod_script():
    found = pod_cpu.main(pod_cpu.Settings(quick=True))
    assert found["script over bare"] > 0
