"""The language model experiment: its text, its baselines, its model, and that it stops and goes on exactly."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import language_model as experiment
from experiments.framework.context import Context, UsageError, new_progress
from experiments.language_model import corpus as corpora
from experiments.language_model import model as lm
from experiments.language_model import training
from experiments.language_model.verdicts import difference, mean_growth, strongest_growth

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = dict(
    layers=1, width=16, heads=2, context=16, batch=4, sample_length=8, measurements=4, held_out_bytes=2_000
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Six files of words in an order that only chance decides."""
    folder, draw = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    words = np.array(["alpha", "beta", "gamma", "delta", "\n"])
    for number in range(6):
        (folder / f"{number}.txt").write_text(" ".join(draw.choice(words, 700)))
    return folder


def context(out, **options):
    out.mkdir(exist_ok=True)
    return Context(out=out, seed=0, quick=True, progress=new_progress(), **options)


def test_split_is_by_file_and_depends_on_names_only(texts, tmp_path):
    texts = Path(shutil.copytree(texts, tmp_path / "texts"))
    corpus = corpora.load((texts,), held_out_bytes=3_000)
    files = {path.name: path.read_bytes() for path in texts.iterdir()}
    assert all(files[name] == content for name, content in zip(corpus.names, corpus.held_out, strict=True))
    kept = b"".join(b"\0" + files[name] for name in sorted(files) if name not in corpus.names)
    assert corpus.train.tobytes() == kept
    next(texts.glob("*")).write_text("changed " * 500)
    assert corpora.load((texts,), held_out_bytes=3_000).names == corpus.names


def test_one_file_is_cut(texts, tmp_path):
    whole = b"".join(path.read_bytes() for path in sorted(texts.iterdir()))
    (tmp_path / "whole").write_bytes(whole)
    corpus = corpora.load((tmp_path / "whole",), held_out_bytes=1)
    assert corpus.train.tobytes() == b"\0" + whole[: len(whole) * 9 // 10]
    assert b"".join(corpus.held_out) == whole[len(whole) * 9 // 10 :]


def test_the_standard_library_is_found():
    corpus = corpora.load((), held_out_bytes=50_000)
    assert len(corpus.train) > 1_000_000
    assert sum(map(len, corpus.held_out)) >= 50_000
    assert not any("test/" in name or "site-packages" in name for name in corpus.names)


@pytest.mark.parametrize("content", [None, ""])
def test_text_that_is_not_there_is_named(tmp_path, content):
    path = tmp_path / "absent.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match="absent.txt"):
        corpora.load((path,), held_out_bytes=100)


def test_baselines():
    train = np.frombuffer(b"\0" + b"ab" * 5_000 + b"c", np.uint8)
    held_out = (b"abab" * 10, b"cc")
    unigram = (np.bincount(train, minlength=256) + 1) / (len(train) + 256)
    np.testing.assert_allclose(corpora.unigram_bits(train, held_out)[1], -2 * np.log2(unigram[ord("c")]))
    assert corpora.bigram_bits(train, held_out)[0] < 10 + 0.1 * 39  # a after b after a: nearly certain
    assert corpora.gzip_bits(held_out).sum() == 8 * len(gzip.compress(b"".join(held_out), 9))


def test_bigram_is_a_distribution():
    train = np.random.default_rng(0).integers(0, 256, 3_000).astype(np.uint8)
    probabilities = [2 ** -corpora.bigram_bits(train, (bytes([65, b]),))[0] for b in range(256)]
    first = 2 ** -corpora.bigram_bits(train, (bytes([65]),))[0]
    np.testing.assert_allclose(sum(probabilities), first, rtol=1e-9)


def test_every_attention_has_a_normalizer_and_a_gradient(texts):
    assert set(get_args(lm.Attention)) == {*lm._NORMALIZERS, *lm._LINEAR}
    config = experiment.Config(**TINY, steps=1)
    batch = training.fixed_batch(corpora.load((texts,), held_out_bytes=2_000), config)
    for name in get_args(lm.Attention)[: len(lm._NORMALIZERS) + 1]:
        parts = lm.build(config, name)
        loss = lambda p, parts=parts: lm.nats(parts.model(p)(lm.inputs(batch)), batch).mean()
        gradient = jax.jit(jax.grad(loss))(parts.params)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient)), name


@pytest.mark.parametrize(
    "options", [dict(positions="alibi"), dict(positions="none"), dict(window=4, sinks=1), dict(kv_heads=1)]
)
def test_other_masks_and_positions_stay_causal(options):
    parts = lm.build(experiment.Config(**TINY, **options), "softmax")
    tokens = jax.random.randint(jax.random.key(0), (1, 16), 0, 256)
    before, after = (parts.model(parts.params)(t)[:, :10] for t in (tokens, tokens.at[:, 10:].set(7)))
    np.testing.assert_allclose(before, after, atol=1e-5)


def test_every_byte_counts_once(texts):
    """Evaluation with overlapping windows against one byte at a time."""
    config = experiment.Config(**TINY)
    parts = lm.build(config, "softmax")
    held_out = (b"the quick brown fox jumps over the lazy dog, twice", b"short", b"exactly sixteen!")
    found = training.file_bits(parts, parts.params, held_out, context=16)
    model = parts.model(parts.params)

    def cost(content, at):
        start = 0 if at < 16 else (at - 8) // 8 * 8  # windows start every 8 bytes; the second half of each counts
        text = np.frombuffer(content[start : start + 16].ljust(16, b"\0"), np.uint8)
        window = jnp.asarray(text, jnp.int32)[None]
        return float(lm.nats(model(lm.inputs(window)), window)[0, at - start] / np.log(2))

    expected = [sum(cost(content, at) for at in range(len(content))) for content in held_out]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_measured_shares_are_means_of_weights(texts):
    config = experiment.Config(**TINY)
    batch = training.fixed_batch(corpora.load((texts,), held_out_bytes=2_000), config)
    for name in ("softmax", "sigmoid"):
        parts = lm.build(config, name)
        found = lm.measure(parts.model(parts.params), batch)
        assert found.key_mass.shape == (1, 2, 16)
        np.testing.assert_allclose(found.key_mass[..., 0], found.sink, rtol=1e-4)
        assert found.far_share.shape == found.far_weight.shape == (1, 2, len(batch))
        assert len(batch) == 128
        assert bool((found.share >= found.far_share.mean(-1)).all())
        assert bool((found.far_share > 0).all())
        if name == "softmax":
            np.testing.assert_allclose(found.share, found.sink, rtol=1e-5)
    assert lm.uniform_sink(4) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_what_has_no_weights_is_measured_as_unknown(texts):
    config = experiment.Config(**TINY)
    batch = training.fixed_batch(corpora.load((texts,), held_out_bytes=2_000), config)
    shapes, names = [], get_args(lm.Attention)
    for name in (names[0], names[-1]):
        parts = lm.build(config, name)
        shapes.append(jax.eval_shape(lambda params, parts=parts: lm.measure(parts.model(params), batch), parts.params))
    assert jax.tree.map(jnp.shape, shapes[0]) == jax.tree.map(jnp.shape, shapes[1])


def test_generation_conditions_on_the_last_bytes():
    parts = lm.build(experiment.Config(**TINY), "softmax")
    model, key = parts.model(parts.params), jax.random.key(0)
    options: dict[str, Any] = dict(context=16, length=20, temperature=1.0)
    short = lm.generate(model, key, b"abc", **options)
    assert len(short) == 20
    assert short == lm.generate(model, key, b"abc", **options)
    long = b"x" * 40 + b"0123456789abcde"
    assert lm.generate(model, key, long, **options) == lm.generate(model, key, long[-15:], **options)


def test_run_claims_and_figures(texts, tmp_path):
    config = experiment.Config(**TINY, text=(texts,), steps=6, compare="sigmoid", checkpoint_every=3)
    result = experiment.run(config, context(tmp_path / "out"))
    assert [course.attention for course in result.courses] == ["softmax", "sigmoid"]
    ids = [claim.id for claim in experiment.claims(result)]
    assert ids == [
        "beats-gzip",
        "beats-bigram",
        "sink-grows",
        "sink-grows-on-average",
        "sink-grows-more",
        "no-sink-weight",
        "no-sink-share",
    ]
    assert set(experiment.plot(result)) == {"loss", "attention", "key_mass"}
    assert "--- sigmoid ---" in (tmp_path / "out" / "samples.txt").read_text()


def test_interval_of_a_clear_win_excludes_zero(texts, tmp_path):
    config = experiment.Config(**TINY, text=(texts,), steps=1, compare="none")
    result = experiment.run(config, context(tmp_path / "out"))
    course = result.courses[0]._replace(file_bits=0.5 * result.baseline_bits["gzip"])
    measured, (low, high) = difference(result, course, "gzip")
    assert low <= measured <= high < 0
    assert measured == pytest.approx(-0.5 * result.baselines["gzip"])


def test_the_windows_that_choose_a_head_do_not_measure_it():
    values = np.zeros((2, 2, 2, 6))  # measurements, layers, heads, windows
    values[-1, 0, 1] = [0.2, 0.1, 0.2, 0.1, 0.2, 0.1]
    values[-1, 1, 0] = [0.0, 0.9, 0.0, 0.9, 0.0, 0.9]
    measured, (low, high) = strongest_growth(values)
    assert (measured, low, high) == pytest.approx((0.1, 0.1, 0.1))
    assert mean_growth(values)[0] == pytest.approx((0.15 + 0.45) / 4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(steps=0), "--steps: got 0"),
        (dict(context=4), "--context: got 4"),
        (dict(compare="softmax"), "--compare: got softmax"),
    ],
)
def test_impossible_settings_are_named(options, text):
    with pytest.raises(UsageError, match=text):
        experiment.Config(**options)


@pytest.mark.parametrize(
    ("options", "text"),
    [(dict(heads=3), "divisor"), (dict(sinks=2), "--sinks"), (dict(kv_heads=3), "kv_heads: got 3")],
)
def test_impossible_models_are_named(options, text):
    with pytest.raises(UsageError, match=text):
        lm.build(experiment.Config(**{**TINY, **options}), "softmax")


def resumable(texts, **options):
    changed = {"text": (texts,), "steps": 12, "compare": "none", "checkpoint_every": 4, **options}
    return experiment.Config(**{**TINY, **changed})


def course_of(config, out):
    return experiment.run(config, context(out)).courses[0]


@pytest.fixture(scope="module")
def finished(texts, tmp_path_factory):
    """The folder and the course of a finished run."""
    out = tmp_path_factory.mktemp("finished")
    with jax.numpy_rank_promotion("allow"):
        return out, course_of(resumable(texts), out)


class TestResume:
    """Stop anywhere, go on, and find what an uninterrupted run finds, to the last bit."""

    @pytest.fixture
    def out(self, finished, tmp_path):
        """A copy of the finished run, to be resumed or damaged."""
        return Path(shutil.copytree(finished[0], tmp_path / "out"))

    def interrupt_after(self, monkeypatch, step):
        save = training.Checkpoints.save

        def then_stop(self, done, *rest):
            save(self, done, *rest)
            if done == step:
                raise KeyboardInterrupt

        monkeypatch.setattr(training.Checkpoints, "save", then_stop)

    def test_same_bits(self, texts, finished, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            self.interrupt_after(patch, 8)
            with pytest.raises(KeyboardInterrupt):
                course_of(resumable(texts), tmp_path / "parts")
        resumed, whole = course_of(resumable(texts, resume=True), tmp_path / "parts"), finished[1]
        assert resumed.sample == whole.sample
        np.testing.assert_array_equal(resumed.losses, whole.losses)
        np.testing.assert_array_equal(resumed.file_bits, whole.file_bits)
        jax.tree.map(np.testing.assert_array_equal, resumed.measured, whole.measured)

    def test_a_finished_run_is_not_trained_again(self, texts, finished, out, monkeypatch):
        monkeypatch.setattr(training, "make_step", lambda *_: pytest.fail)
        again = course_of(resumable(texts, resume=True), out)
        np.testing.assert_array_equal(again.file_bits, finished[1].file_bits)

    def test_nothing_to_resume(self, texts, tmp_path):
        with pytest.raises(UsageError, match="--resume: no checkpoint in"):
            course_of(resumable(texts, resume=True), tmp_path / "empty")

    def test_other_settings(self, texts, out):
        with pytest.raises(UsageError, match="learning_rate was 0.004, is 0.1"):
            course_of(resumable(texts, resume=True, learning_rate=0.1), out)

    @pytest.mark.parametrize("part", ["state", "log"])
    def test_damaged_checkpoint(self, texts, out, part):
        for file in (out / "checkpoints" / "softmax" / "12" / part).rglob("*"):
            if file.is_file():
                file.write_bytes(b"?")
        with pytest.raises(UsageError, match="12 cannot be read"):
            course_of(resumable(texts, resume=True), out)


def command(texts, out, *more):
    small = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    flags = [*small, "--steps=400", "--checkpoint-every=20", "--compare=none", f"--text={texts}", f"--out={out}", *more]
    return [sys.executable, "-m", "experiments", "run", "language-model", *flags]


def stopped_by(number, texts, out):
    """The finished process of a run that got a signal once it had its second checkpoint."""
    with open(out.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(command(texts, out), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 120
            while not (out / "checkpoints" / "softmax" / "40").exists():
                assert process.poll() is None, out.with_suffix(".log").read_text()
                assert time.monotonic() < deadline, out.with_suffix(".log").read_text()
                time.sleep(0.02)
            os.kill(process.pid, number)
            process.wait(timeout=60)
        finally:
            process.kill()
    return process.returncode, out.with_suffix(".log").read_text()


def found(out):
    course = json.loads((out / "result.json").read_text())["result"]["courses"][0]
    return {name: value for name, value in course.items() if name != "tokens_per_second"}


@pytest.mark.slow
def test_killed_or_interrupted_and_resumed_gives_the_same_bits(texts, tmp_path):
    subprocess.run(command(texts, tmp_path / "whole"), cwd=ROOT, check=True, capture_output=True, timeout=300)
    code, _ = stopped_by(signal.SIGKILL, texts, tmp_path / "killed")
    assert code == -signal.SIGKILL
    code, said = stopped_by(signal.SIGINT, texts, tmp_path / "interrupted")
    assert code == 130
    assert "--resume" in said
    assert "Saved softmax after step" in said
    for out in (tmp_path / "killed", tmp_path / "interrupted"):
        assert not (out / "claims.json").exists()
        subprocess.run(command(texts, out, "--resume"), cwd=ROOT, check=True, capture_output=True, timeout=300)
        assert found(out) == found(tmp_path / "whole")
