"""The benchmark of kernels on GPU: its formulas, its gate, its rows; no GPU is needed, and no time is believed."""

import contextlib
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attnjax
from benchmarks import attention_gpu, gpu_competitors, measuring
from benchmarks.attention_gpu import Config
from benchmarks.gpu_cases import CASES, KINDS, NAMES, TOLERANCES, Formulas, data_of
from benchmarks.gpu_report import BARS, Unit, against_bars

SMALL = Config(
    dtype="float32",
    peers=("jax.nn xla",),
    lengths=(64,),
    widths=(16,),
    heads=4,
    group=2,
    tokens=128,
    decode_batch=2,
    window=16,
    gate_length=48,
    gate_heads=4,
    repetitions=1,
    seconds=0.0,
)


def dense(*arrays, implementation, **knobs):
    assert implementation == "pallas"
    return attnjax.attend(*arrays, implementation="dense", **knobs)


@pytest.fixture
def no_kernels(monkeypatch):
    """The dense form in place of kernels."""
    monkeypatch.setattr(gpu_competitors, "attend", dense)
    monkeypatch.setattr(attention_gpu, "kernels", lambda config: contextlib.nullcontext("none"))
    tiles = attnjax.BlockSizes(16, 16)
    explain = lambda *x, implementation, mask: attnjax.explain(
        *x, implementation="blocks", block_sizes=tiles, mask=mask
    )
    monkeypatch.setattr(gpu_competitors, "explain", explain)


def test_quick(tmp_path, capsys):
    """In interpreted kernels: for GPU where this jax can, else those for TPU."""
    out = tmp_path / "figures" / "gpu.json"
    report = attention_gpu.main(Config(quick=True, peers=("jax.nn xla", "torch flash", "tokamax"), out=out))
    written = json.loads(out.read_text())
    assert written["sections"] == report["sections"]
    assert written["config"]["quick"]
    assert [(row["pass"], row["passed"]) for row in report["sections"]["gate"]] == [
        ("forward", True),
        ("backward", True),
    ]
    for row in report["sections"]["times"]:
        assert set(row["ms"]) == {"attnjax", "jax.nn xla"}
        assert row["best_peer"] == "jax.nn xla"
        assert row["TFLOP/s"]["attnjax"] > 0
    assert len(report["bars"]) == len(BARS)
    assert {bar["passed"] for bar in report["bars"]} == {None}
    assert report["peers"].keys() == {"jax.nn xla", "torch flash", "tokamax"}
    assert report["peers"]["jax.nn xla"] == "present"
    assert "nothing" in report["times_mean"]
    assert "interpreted" in report["kernels"]
    assert (report["left_out"], report["at_work_on"]) == ([], None)
    assert "mean nothing" in capsys.readouterr().out


def test_only_quick_runs_without_a_gpu():
    with pytest.raises(SystemExit, match="needs a Hopper GPU and finds cpu"):
        attention_gpu.main(SMALL)


def test_formulas_are_those_of_the_dense_form(no_kernels):
    config = dataclasses.replace(SMALL, gate_only=True)
    report = attention_gpu.main(config)
    found = {(row["case"], row["pass"]): row for row in report["sections"]["gate"]}
    assert {name for name, _ in found} == set(NAMES)
    for key, row in found.items():
        assert row["passed"], (key, row["message"])
    assert found["alibi", "backward"]["errors"].keys() == {"dq", "dk", "dv", "dlearned"}
    assert found["bias", "tangent"]["errors"].keys() == {"output", "tangent"}
    assert report["sections"]["times"] == []


def test_rows_and_their_ratios(no_kernels, monkeypatch):
    kept = [("window", "forward"), ("sigmoid", "tangent"), ("decode", "forward"), ("alibi", "forward+backward")]
    every = attention_gpu.units(SMALL)
    monkeypatch.setattr(attention_gpu, "units", lambda config: [u for u in every if (u.name, u.kind) in kept])
    report = attention_gpu.main(SMALL)
    rows = {(row["case"], row["pass"]): row for row in report["sections"]["times"]}
    assert rows.keys() == set(kept)
    assert set(rows["window", "forward"]["ms"]) == {"attnjax", "attnjax, full", "jax.nn xla"}
    assert rows["window", "forward"]["visited_share"] == pytest.approx(7 / 16)
    sigmoid = rows["sigmoid", "tangent"]
    assert set(sigmoid["ms"]) == {"attnjax", "attnjax, forward", "attnjax, softmax"}
    assert sigmoid["ratios"].keys() == {"tangent's time over forward's", "softmax's time over sigmoid's"}
    assert (sigmoid["best_peer"], sigmoid["not_timed"]) == (None, {"jax.nn xla": "NotImplementedError: softmax only"})
    assert rows["decode", "forward"]["GB/s"]["attnjax"] > 0
    assert {row["of"].split(",")[0] for row in report["ratios"]} == {"window", "sigmoid"}
    assert all(row["memory"]["attnjax"]["temporary_bytes"] > 0 for row in rows.values())


def test_a_wrong_kernel_is_not_timed_and_the_others_are(no_kernels, monkeypatch, capsys):
    def wrong(*arrays, normalizer, mask, **knobs):
        if mask is not None and normalizer is None:
            raise NotImplementedError("no kernel for masks\nfurther lines")
        return dense(*arrays, normalizer=normalizer, mask=mask, **knobs) * (1.001 if normalizer else 1)

    monkeypatch.setattr(gpu_competitors, "attend", wrong)
    config = dataclasses.replace(SMALL, cases=("sigmoid", "causal", "full"), kinds=("forward", "backward"))
    report = attention_gpu.main(config)
    rows = {(row["case"], row["pass"]): row for row in report["sections"]["times"]}
    for kind, part in (("forward", "output"), ("backward", "dq")):
        assert "ms" not in rows["sigmoid", kind]
        assert rows["sigmoid", kind]["failed"].startswith(f"{part} is off by 1.0e-03")
        assert rows["causal", kind]["failed"] == "NotImplementedError: no kernel for masks"
        assert rows["full", kind]["ms"]["attnjax"] > 0
    assert [row["passed"] for row in report["sections"]["gate"]].count(False) == 4
    assert "FAILED, not timed: sigmoid, H=16, forward: output is off by" in capsys.readouterr().out


def test_values_at_the_timed_length_are_compared_too(no_kernels, monkeypatch):
    """A kernel that is right only at the gate's length, and a peer that is wrong."""
    right_when_short = lambda *x, **knobs: dense(*x, **knobs) * (1 if x[0].shape[1] == SMALL.gate_length else 1.001)
    config = dataclasses.replace(SMALL, cases=("full",), kinds=("forward",))
    monkeypatch.setattr(gpu_competitors, "attend", right_when_short)
    (row,) = attention_gpu.main(config)["sections"]["times"]
    assert row["failed"].startswith("WrongValues: output is off by 1.0e-03 at some queries")
    monkeypatch.setattr(gpu_competitors, "attend", dense)
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, *_, **knobs: v)
    (row,) = attention_gpu.main(config)["sections"]["times"]
    assert set(row["ms"]) == {"attnjax"}
    assert row["not_timed"]["jax.nn xla"].startswith("WrongValues")


def test_what_a_spent_budget_leaves_out(no_kernels, capsys):
    report = attention_gpu.main(dataclasses.replace(SMALL, minutes=0.0, cases=("full",)))
    assert report["left_out"] == [f"full, H=16, T=64, {kind}" for kind in KINDS]
    assert report["sections"]["times"] == []
    assert "left out, time being up: 4 rows" in capsys.readouterr().out


def test_bars():
    units = attention_gpu.units(Config())
    assert units[: len(BARS)] == [bar.unit for bar in BARS]
    assert len(set(units)) == len(units)
    row = {"case": "full", "width": 128, "length": 16384, "pass": "forward", "ms": {}, "TFLOP/s": {"attnjax": 500.0}}
    tangent = row | {"pass": "tangent", "TFLOP/s": {}, "ratios": {"tangent's time over forward's": 2.5}}
    found = {bar["of"]: bar for bar in against_bars([row, tangent])}
    assert found["full, H=128, T=16384, forward"]["passed"] is False
    assert found["full, H=128, T=16384, forward"]["measured"] == 500
    assert found["full, H=128, T=16384, tangent"]["passed"] is True
    assert found["full, H=64, T=16384, forward"]["passed"] is None


def test_operations():
    problem = functools.partial(attention_gpu.problem_of, Config(), width=128, length=4096)
    full = problem("full")
    assert full.batch == 4
    assert full.operations("forward") == 4 * 4096**2 * 128 * 16 * 4
    assert full.operations("backward") == 2.5 * full.operations("forward")
    assert problem("causal").operations("forward") == full.operations("forward") / 2
    assert full.operations("tangent") is None
    for name in ("window", "segments"):
        small = attention_gpu.problem_of(SMALL, name, 16, 64)
        counted = small.visible(np.arange(64)[:, None], np.arange(64)[None]).sum()
        assert small.pairs == pytest.approx(counted, abs=32 if name == "segments" else 0)  # half of the diagonal


@pytest.mark.oracle("torch")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", ["math", "flex"])
@pytest.mark.parametrize("name", NAMES)
def test_torch_computes_the_same(name, backend):
    problem = attention_gpu.problem_of(SMALL, name, 16, 64)
    data = data_of(problem)
    build = functools.partial(gpu_competitors.in_torch, backend, problem, data, device="cpu")
    case = CASES[name]
    if case.sigmoid or (backend == "math" and (case.window or case.segments or case.learned)):
        with pytest.raises(NotImplementedError, match="softmax only"):
            build("forward")
        return
    for kind in ("forward", "backward", "forward+backward") if backend == "math" else ("forward",):
        competitor = build(kind)
        for _ in range(2):
            attention_gpu.checked(problem, data, kind)(competitor, 1)
    if backend == "math":  # FlexAttention has no gradients on CPU
        want = Formulas(problem, data).gradients()
        for got, (part, right) in zip(build("backward").run(), want.items(), strict=True):
            assert measuring.relative_error(got.transpose(1, 2).numpy(), right) < 1e-5, part
    with pytest.raises(NotImplementedError, match="no forward mode"):
        build("tangent")


def test_many_calls_share_one_wait():
    called, waited = [], []
    functions = {name: functools.partial(called.append, name) for name in ("a", "b")}
    found = measuring.alternate(functions, 2, {"a": 5}, waited.append, compiled=True)
    assert called == ["a"] * 6 + ["b"] * 2 + ["b"] * 2 + ["a"] * 6
    assert len(waited) == 8
    assert found["repetitions"] == 2
    assert measuring.calls_within(lambda: None, 1.0, waited.append, most=7) == 7
    assert measuring.calls_within(lambda: None, 0.0, waited.append) == 1


def test_a_peer_that_is_absent_says_why():
    assert gpu_competitors.absence("jax.nn cudnn") == "jax sees no GPU"
    assert gpu_competitors.absence("jax.nn xla") is None
    assert gpu_competitors.absence("torch flex") in ("torch is not installed", "torch sees no CUDA device")
    assert str(Unit("full", 64, 1024, "forward")) == "full, H=64, T=1024, forward"
    assert jnp.dtype(Config().dtype).name in TOLERANCES
