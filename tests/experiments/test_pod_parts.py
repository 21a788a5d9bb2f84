"""The parts of the pod's training script: one step however it is split, data, placement of parameters, plans."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from attnjax import parallel
from experiments import pod
from experiments.framework.context import UsageError
from experiments.pod import hlo
from experiments.pod.chips import CHIPS, peak_flops
from experiments.pod.config import Config, Data, Mesh
from experiments.pod.configs import CONFIGS
from experiments.pod.data import Batch, Sequences, batches, fingerprint, load, share
from experiments.pod.estimate import estimate
from experiments.pod.metrics import Lines, read
from experiments.pod.model import Decoder, count, flops_per_token, partition
from experiments.pod.train import check, initial, layout_of, optimizer_of, pmapped, shardings_of, train_step

TINY = CONFIGS["tiny"]


def changed(config: Config = TINY, **sections) -> Config:
    """A configuration with other values in some of its sections."""
    return dataclasses.replace(
        config, **{name: dataclasses.replace(getattr(config, name), **new) for name, new in sections.items()}
    )


@functools.cache
def text() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, 128 * 64 + 1).astype(np.uint8)  # a zero, the end of a document, every 256 on average


# --- one step, however it is split


def two_steps(config: Config) -> tuple[list[float], dict]:
    """Losses of two steps, and the parameters after them, from the same start."""
    layout = layout_of(config.mesh)
    decoder, optimizer = Decoder(config, layout), optimizer_of(config.training)
    shardings = shardings_of(config, decoder, optimizer, layout)
    state = jax.jit(functools.partial(initial, decoder, optimizer), out_shardings=shardings)(jax.random.key(0))
    sequences = Sequences(text(), config.data, decoder.placement, config.model.vocab)
    reader = batches(config.data, sequences, layout.sharding("batch", "sequence"), 0)
    if config.training.pmap:
        step = pmapped(config, optimizer)
    else:
        run = functools.partial(train_step, decoder, optimizer, config.training)
        step = jax.jit(run, out_shardings=(shardings, layout.sharding()))
    losses = []
    for _ in range(2):
        state, report = step(state, next(reader))
        losses.append(float(report["loss"]))
    assert int(state.step) == 2
    return losses, jax.device_get(state.params)


@pytest.fixture(scope="module")
def alone():
    """On one device, as the mathematics says it."""
    return two_steps(changed(mesh={"data": 1, "fsdp": 8}, training={"warmup": 1}))


SPLITS = {
    "parameters and sequence": {"mesh": {"fsdp": 4, "context": 2}},
    "sequence exchanged for heads": {"mesh": {"fsdp": 2, "context": 4, "sequence_parallel": "all_to_all"}},
    "everything": {"mesh": {"data": 1, "fsdp": 2, "context": 2, "tensor": 2}},
    "sequence as it is read": {"mesh": {"fsdp": 1, "context": 8, "zigzag": False}},
    "parts of a batch": {"mesh": {"fsdp": 4, "context": 2}, "training": {"accumulate": 2}},
    "nothing kept": {"mesh": {"data": 2, "fsdp": 4}, "training": {"remat": "none"}},
    "pmap": {"mesh": {"data": -1, "fsdp": 1}, "training": {"pmap": True}},
}


@pytest.mark.parametrize("name", SPLITS)
def test_a_step_is_the_same_however_it_is_split(name, alone):
    sections = {key: dict(value) for key, value in SPLITS[name].items()}
    sections["training"] = {"warmup": 1} | sections.get("training", {})
    losses, params = two_steps(changed(**sections))
    np.testing.assert_allclose(losses, alone[0], rtol=0, atol=1e-5)
    # Adam's first steps divide by tiny gradients: rounding in these is seen.
    differences = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (params, alone[1])), strict=True)]
    assert max(differences) < 0.2 * TINY.training.rate


def test_any_mixer_trains_over_a_split_sequence():
    """A hybrid of linear and softmax layers gives the same logits on one device and on eight."""
    config = changed(model={"mixer": ("gated_delta_rule", "softmax")}, mesh={"fsdp": 2, "context": 4})
    layout = layout_of(config.mesh)
    tokens = jnp.asarray(text()[: 2 * 128].reshape(2, 128), jnp.int32)
    split, whole = Decoder(config, layout), Decoder(config, None)
    params = whole.init(jax.random.key(0))
    got = jax.jit(split.logits)(params, tokens, jnp.zeros_like(tokens))
    np.testing.assert_allclose(got, jax.jit(whole.logits)(params, tokens, jnp.zeros_like(tokens)), atol=2e-4)


def test_no_mask_is_kept_for_every_hop_and_layer():
    """Differentiated loops have stacked masks of all their steps: the program holds no Boolean map of that many axes."""
    config = changed(mesh={"fsdp": 1, "context": 8}, data={"length": 2048, "batch": 1})
    layout = layout_of(config.mesh)
    decoder, optimizer = Decoder(config, layout), optimizer_of(config.training)
    state = jax.eval_shape(functools.partial(initial, decoder, optimizer), jax.random.key(0))
    whole = jax.ShapeDtypeStruct((1, 2048), jnp.int32)
    batch = Batch(whole, whole, jax.ShapeDtypeStruct((1, 2048), jnp.float32), whole)
    lowered = jax.jit(functools.partial(train_step, decoder, optimizer, config.training)).lower(state, batch)
    masks = [tuple(map(int, dims.split("x")[:-1])) for dims in re.findall(r"tensor<((?:\d+x)+i1)>", lowered.as_text())]
    assert masks, "there are Boolean arrays"
    assert [shape for shape in masks if len(shape) >= 4 and np.prod(shape) > 256 * 256] == []


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"mesh": {"fsdp": 3}}, r"mesh: got .*'fsdp': 3.* for 8 devices"),
        ({"model": {"mixer": ("softmax",) * 3}}, "layers=2: want a multiple of the 3 mixers"),
        ({"mesh": {"fsdp": 0}}, "mesh: got .*'fsdp': 0.* for 8 devices"),
        ({"training": {"pmap": True}}, "pmap: want one process, and data parallelism alone"),
        ({"data": {"batch": 12}}, "data.batch=12: want a multiple of 8, for 8 devices along data and fsdp"),
        ({"training": {"accumulate": 2}}, "data.batch=8: want a multiple of 16.*training.accumulate=2"),
        ({"training": {"accumulate": 0}}, "training.accumulate=0: want at least 1"),
        ({"output": {"save_every": 0}}, "output.save_every=0: want at least 1"),
        (
            {"mesh": {"fsdp": 1, "context": 8}, "data": {"length": 136}},
            "data.length=136: want a multiple of 16.*two pieces",
        ),
        ({"mesh": {"fsdp": 1, "context": 8, "sequence_parallel": "all_to_all"}}, "heads: got N=4 .* for 8 devices"),
        ({"mesh": {"fsdp": 1, "tensor": 8}}, "heads: got N=4 .* for 8 devices"),
        ({"model": {"mixer": ("none",)}}, "mixer: got 'none', wanted one of softmax"),
        ({"data": {"path": "nowhere.npy"}}, "data.path=nowhere.npy: cannot be read"),
        ({"model": {"vocab": 50}}, r"has tokens from \d+ to \d+, want 0 to 49 \(model.vocab=50\)"),
    ],
)
def test_what_is_refused(sections, message):
    """Before anything is made, and by the kind of error that ends a run for good."""
    config = changed(**sections)

    def build():
        layout = layout_of(config.mesh)
        decoder = Decoder(config, layout)
        check(config, layout, decoder)
        if config.training.pmap:
            pmapped(config, optimizer_of(config.training))
        Sequences(load(config.data), config.data, decoder.placement, config.model.vocab)[0]

    with pytest.raises(UsageError, match=message):
        build()


def test_lines_of_metrics(tmp_path):
    """Appended to, or written whole where files cannot be; a line that was cut short is passed over."""
    path = tmp_path / "metrics.jsonl"
    for whole in (False, True):
        path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "lo')
        lines = Lines(epath.Path(path), whole=whole)
        lines.add([{"step": 2, "loss": 2.0}])
        lines.add([{"step": 3, "loss": 1.0}])
        assert {n: line["loss"] for n, line in read(tmp_path).items()} == {1: 3.0, 2: 2.0, 3: 1.0}


# --- data


def test_every_sequence_is_read_once_an_epoch_by_some_host():
    data = Data(length=16, batch=8, threads=0)
    tokens = np.arange(16 * 64 + 1)
    sequences = Sequences(tokens, data, parallel.contiguous(1), 2000)
    layout = layout_of(Mesh())
    reader = batches(data, sequences, layout.sharding("batch", "sequence"), 0)
    found = [np.asarray(next(reader).tokens) for _ in range(16)]
    firsts = np.concatenate([x[:, 0] for x in found]).reshape(2, 64) // 16
    assert np.array_equal(np.sort(firsts, axis=1), np.tile(np.arange(64), (2, 1)))
    assert not np.array_equal(firsts[0], firsts[1]), "another order in the next epoch"
    later = batches(data, sequences, layout.sharding("batch", "sequence"), 11)
    np.testing.assert_array_equal(next(later).tokens, found[11])


def test_documents():
    data = Data(length=8, batch=1, threads=0, document_end=0)
    batch = Sequences(np.array([5, 6, 0, 7, 8, 0, 9, 1, 2]), data, parallel.contiguous(1), 2000)[0]
    assert batch.tokens.tolist() == [5, 6, 0, 7, 8, 0, 9, 1]
    assert batch.targets.tolist() == [6, 0, 7, 8, 0, 9, 1, 2]
    assert batch.segments.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert batch.weights.tolist() == [1, 1, 0, 1, 1, 0, 1, 1]
    folded = Sequences(np.arange(9), dataclasses.replace(data, document_end=None), parallel.zigzag(2), 2000)[0]
    assert folded.tokens.tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    assert folded.targets.tolist() == [1, 2, 7, 8, 3, 4, 5, 6]
    with pytest.raises(UsageError, match="7 tokens of data"):
        Sequences(np.arange(7), data, parallel.contiguous(1), 2000)


def test_fingerprints_tell_files_apart():
    tokens = np.random.default_rng(0).integers(0, 256, 100_000).astype(np.uint8)
    found = fingerprint(tokens)
    assert found.startswith("100000 tokens, ")
    assert found == fingerprint(tokens.astype(np.int32))
    assert len({found, fingerprint(tokens[:-1]), fingerprint(np.roll(tokens, 1)), fingerprint(tokens[:0])}) == 4


def test_hosts_that_hold_parts_of_the_same_sequences_read_the_same():
    class Placed:
        def __init__(self, *rows):
            self.rows = rows

        def addressable_devices_indices_map(self, shape):
            return {n: (slice(*r), slice(None)) for n, r in enumerate(self.rows)}

    assert share(Placed((0, 8), (0, 8)), (8, 16)) == (0, 1)
    assert share(Placed((4, 6), (6, 8)), (8, 16)) == (1, 2)
    with pytest.raises(UsageError, match="no equal part"):
        share(Placed((0, 3)), (8, 16))


# --- launchers, with a stand-in for the training script


@pytest.fixture
def stand_in(tmp_path):
    """A folder whose .venv/bin/python, and srun, end with the codes of a list, one after another."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "scontrol").write_text('#!/bin/bash\necho "$@" >> requeued\n')
    take = '#!/bin/bash\necho "$@" >> calls\nsleep 0.5\ncode=$(head -1 codes)\nsed -i 1d codes\nexit $code\n'
    python.write_text(take)
    (tmp_path / "srun").write_text(take)
    for path in (python, tmp_path / "srun", tmp_path / "scontrol"):
        path.chmod(0o755)

    def start(script: str, *codes: int) -> subprocess.Popen:
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        (tmp_path / "calls").unlink(missing_ok=True)
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PAUSE": "0", "SLURM_JOB_ID": "7"}
        path = Path(pod.__file__).parent / script
        return subprocess.Popen(["bash", str(path), "7b", "--data.batch", "8"], cwd=tmp_path, env=environment)

    return tmp_path, start


def test_a_slice_is_started_again_until_it_is_done(stand_in):
    folder, start = stand_in
    assert start("launch_tpu.sh", 75, 134, 0).wait(timeout=20) == 0
    assert (folder / "calls").read_text() == "-m experiments.pod.train 7b --data.batch 8\n" * 3
    assert start("launch_tpu.sh", 2).wait(timeout=20) == 2


def test_a_job_is_put_back_into_the_queue(stand_in):
    folder, start = stand_in
    for code in (0, 2):
        assert start("launch_slurm.sh", code).wait(timeout=20) == code
        assert not (folder / "requeued").exists()
    job = start("launch_slurm.sh", 75)
    while not (folder / "calls").exists():
        time.sleep(0.01)
    job.terminate()  # the script's own shell gets the signal, too
    assert job.wait(timeout=20) == 75
    assert (folder / "requeued").read_text() == "requeue 7\n"
    assert "--kill-on-bad-exit=1 .venv/bin/python -m experiments.pod.train 7b" in (folder / "calls").read_text()


# --- where parameters live, and what a step costs


@pytest.mark.parametrize(("name", "billions"), [("125m", 0.134), ("1b3", 1.345), ("7b", 7.242), ("70b", 68.98)])
def test_sizes_and_their_split(name, billions):
    """Of every matrix each of 8 devices holds an eighth."""
    config = CONFIGS[name]
    params = jax.eval_shape(Decoder(config, None).init, jax.random.key(0))
    assert count(params) == pytest.approx(billions * 1e9, rel=2e-3)
    layout = layout_of(Mesh(fsdp=2, tensor=4))

    def share_of(path, x) -> float:
        found = partition(path, x.shape, config.model, layout).shard_shape(x.shape)
        return np.prod(found) / x.size if x.ndim - ("blocks" in jax.tree_util.keystr(path)) > 1 else 1 / 8

    shares = jax.tree_util.tree_map_with_path(share_of, params)
    assert set(jax.tree.leaves(shares)) == {1 / 8}


def test_operations_of_a_step():
    """Six for each weight of a product, twelve for each visible pair, head and feature."""
    model = CONFIGS["7b"].model
    params = jax.eval_shape(Decoder(CONFIGS["7b"], None).init, jax.random.key(0))
    weights = count(params) - 32_000 * 4096
    assert flops_per_token(model, params, 8192) == pytest.approx(6 * weights + 6 * 32 * 32 * 128 * 8193)
    window = dataclasses.replace(model, window=1023)
    per_pair = (flops_per_token(window, params, 8192) - 6 * weights) / (12 * 32 * 32 * 128)
    visible = np.minimum(np.arange(8192) + 1, 1024).mean()
    assert per_pair == pytest.approx(visible)
    linear = dataclasses.replace(model, mixer=("softmax", "retention"))
    assert flops_per_token(linear, params, 8192) == pytest.approx(6 * weights + 3 * 32 * 32 * 128 * 8193)


def test_chips_are_known_by_the_names_that_jax_has_for_them():
    class Device:
        def __init__(self, kind):
            self.device_kind = kind

    assert peak_flops(Device("TPU v5")) == CHIPS["v5p"].flops
    assert peak_flops(Device("TPU7x")) == CHIPS["tpu7x"].flops / 2
    assert peak_flops(Device("NVIDIA H200")) == CHIPS["h200"].flops
    assert peak_flops(Device("cpu")) == 0


# --- what a compiled program sends

LOOP = """
HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[128,256])) -> (s32[], bf16[128,256]) {
  %p = (s32[], bf16[128,256]) parameter(0)
  %x = bf16[128,256]{1,0} get-tuple-element(%p), index=1
  %start = (bf16[128,256]{1,0:T(8,128)}, bf16[128,256]{1,0:T(8,128)}, u32[], u32[]) collective-permute-start(%x), channel_id=1
  %other = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%y), channel_id=1
  %done = bf16[128,256]{1,0} collective-permute-done(%start)
  ROOT %t = (s32[], bf16[128,256]) tuple(%p, %done)
}

%condition (p: (s32[], bf16[128,256])) -> pred[] {
  %p = (s32[], bf16[128,256]) parameter(0)
  %n = s32[] get-tuple-element(%p), index=0
  %limit = s32[] constant(7)
  ROOT %less = pred[] compare(%n, %limit), direction=LT
}

%scatter (p: f32[64]) -> f32[8] {
  %p = f32[64] parameter(0)
  ROOT %r = f32[64] all-reduce(%p), to_apply=%add
}

%begin (p: f32[8]) -> f32[128] {
  %p = f32[8] parameter(0)
  %g = f32[128] all-gather(%p), channel_id=9, dimensions={0}
  ROOT %c = f32[128] custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%go_on (p: f32[8]) -> f32[128] {
  %p = f32[8] parameter(0)
  %g = f32[128] all-gather(%p), channel_id=9, dimensions={0}
  ROOT %c = f32[128] custom-call(%g), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8] parameter(0)
  %w = (s32[], bf16[128,256]) while(%init), condition=%condition, body=%body
  %g = f32[64]{0} all-gather(%p), dimensions={0}
  %s = (f32[16], f32[4]) all-reduce(%y, %z), to_apply=%add
  %all-reduce-scatter.1 = f32[8] fusion(%g), kind=kCustom, calls=%scatter
  %f.1 = f32[128] fusion(%p), kind=kCustom, calls=%begin
  %f.2 = f32[128] fusion(%p), kind=kCustom, calls=%go_on
  ROOT %o = f32[8] copy(%all-reduce-scatter.1)
}
"""


def test_traffic_of_a_program():
    """Loops count as often as they run; a start names its operand too; a scattered sum is no sum; one that
    is under way while others compute counts once."""
    size, times = hlo.collectives(LOOP)
    assert times == {"collective-permute": 14, "all-gather": 2, "all-reduce": 1, "reduce-scatter": 1}
    assert size == {
        "collective-permute": 7 * (128 * 256 * 2 + 16),
        "all-gather": 256 + 512,
        "all-reduce": 80,
        "reduce-scatter": 32,
    }
    with pytest.raises(hlo.Unresolved, match="condition"):
        hlo.collectives(LOOP.replace("direction=LT", "direction=NE"))
    assert hlo.largest(LOOP, 1) == [(65536, "bf16[128,256]")]


def test_traffic_of_a_ring():
    """Keys and values of seven others, from a real compiler's text."""
    layout = layout_of(Mesh(fsdp=1, context=8))
    x = jax.ShapeDtypeStruct((1, 256, 2, 16), jnp.float32, sharding=layout.sharding("batch", "sequence"))
    call = lambda q, k, v: parallel.ring_attend(q, k, v, layout=layout)
    size, _ = hlo.collectives(jax.jit(call).lower(x, x, x).compile().as_text())
    kept = 2 * 32 * 2 * 16 * 4  # keys and values of a device
    assert kept * 7 <= size["collective-permute"] <= kept * 7 * 1.1  # positions go along


def test_estimates_are_what_was_compiled():
    """State and what a ring sends, by formula, against the plans that the compiler made."""
    plans = json.loads((Path(pod.__file__).parent / "plans.json").read_text())
    fitting = [plan for plan in plans if plan["fits"]]
    assert len(fitting) >= 4
    for plan in fitting:
        mesh = {name: int(n) for name, n in (part.split("=") for part in plan["mesh"].split(","))}
        chip, length = plan["topology"].split(":")[0], plan["length"]
        found = estimate(plan["config"], chip, mesh, length, plan["batch"] * length)
        assert found.chips == plan["chips"]
        assert found.compute == pytest.approx(plan["compute seconds"])
        assert found.state == pytest.approx(plan["state bytes"], rel=0.02)
        assert plan["wire seconds"].get("collective-permute", 0.0) == pytest.approx(found.ring, rel=0.05)
        gathered = plan["received bytes"]["all-gather"]
        assert gathered == pytest.approx(2 * 2 * 7.242e9, rel=0.05)  # twice, in bfloat16
