"""Recall: attention by hand, sizes of states, verdicts on made-up courses, settings that are refused."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax.tasks import slot_probabilities
from experiments import associative_recall as experiment
from experiments.associative_recall import by_hand
from experiments.associative_recall.models import Family, build, repeated, state_size
from experiments.associative_recall.study import Course, Result, guess
from experiments.framework.context import UsageError

CONFIG = dataclasses.replace(experiment.Config.quick(), seeds=3, steps=40)


def test_attention_that_is_written_down_recalls():
    """Every question, in few dimensions."""
    sizes = {"vocabulary": 64, "length": 32, "pairs": 6, "batch": 32}
    assert by_hand.accuracy(8, jax.random.key(0), **sizes) == 1.0


def test_the_best_guess_knows_that_early_pairs_are_asked_for_first():
    """Two pairs and two places: the first pair has the first place with the probability of that slot."""
    config = dataclasses.replace(CONFIG, pairs=2, length=8)
    expected = float(slot_probabilities(2)[0])
    assert guess(jax.random.key(0), config) == pytest.approx(expected, abs=0.02)


def test_repeated_tokens_are_the_questions():
    found = repeated(jnp.array([[3, 9, 4, 8, 0, 0, 4, 0, 3, 0]]))
    np.testing.assert_array_equal(np.flatnonzero(found[0]), [6, 8])


def test_states_are_as_large_as_they_should_be():
    sizes = {"vocabulary": 32, "width": 8, "length": 16}
    first = 2 * 8  # what the convolution over three tokens keeps
    expected = {
        "softmax": 2 * 16 * 8,
        "taylor": (1 + 8 + 36) * (8 + 1),
        "linear_attention": 8 * (8 + 1),
        "delta_rule": 8 * 8,
        "base_conv": 15 * 8,
    }
    found = {}

    def measure() -> None:  # without drawing parameters
        for family in expected:
            found[family] = state_size(build(family, **sizes, rngs=nnx.Rngs(0)), 16)  # pyright: ignore[reportArgumentType]

    jax.eval_shape(measure)
    assert found == {family: first + own for family, own in expected.items()}


def course(start: float, end: float, state: int) -> Course:
    """Accuracy that jumps in the middle."""
    steps = np.arange(CONFIG.steps)
    trace = np.where(steps >= CONFIG.steps // 2, end, start)
    return Course(np.stack([trace + 0.001 * seed for seed in (-1, 0, 1)]), 0.01, state)


def result(finals: dict[str, tuple[float, float]], exact: float = 1.0) -> Result:
    courses = {
        family: {16: course(0.1, small, 100), 32: course(0.1, large, 1000)} for family, (small, large) in finals.items()
    }
    return Result(CONFIG, {8: exact, 16: exact}, np.full(3, exact), 0.25, 0.3, courses)


def test_claims_pass_on_what_the_paper_describes_and_fail_on_the_opposite():
    right = {"softmax": (0.99, 0.999), "taylor": (0.6, 0.95), "base_conv": (0.2, 0.4)}
    right |= {name: (0.3, 0.7) for name in ("linear_attention", "gated_linear_attention", "delta_rule", "state_space")}
    right |= {"dynamic_conv": (0.2, 0.3)}
    assert set(right) == set(get_args(Family))
    found = experiment.claims(result(right))
    assert {claim.verdict for claim in found} == {"pass"}
    assert set(experiment.plot(result(right))) == {"state", "learning"}
    wrong = {family: (1 - small, 1 - large) for family, (small, large) in right.items()}
    opposite = experiment.claims(result(wrong, exact=0.98))
    assert {claim.id for claim in found} == {claim.id for claim in opposite}
    assert {claim.verdict for claim in opposite} == {"fail"}


def test_steps_until_learned():
    trace = course(0.1, 0.95, 1)
    np.testing.assert_array_equal(trace.steps_to(0.9, 10), [30, 30, 30])
    assert np.isinf(trace.steps_to(0.99, 10)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 1}, "--seeds must be at least 2, got 1"),
        ({"pairs": 5}, r"--length must be even and at least 4 \* pairs = 20, got 16"),
        ({"vocabulary": 16}, "--vocabulary must be larger than --length = 16, got 16"),
        ({"widths": (16, 8)}, "--widths must be positive and increase"),
        ({"learning_rates": ()}, "--learning-rates must be positive"),
        ({"families": ("taylor",)}, "--families must name softmax, got taylor"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(CONFIG, **change).check()


@pytest.mark.slow
def test_attention_learns_what_a_convolution_does_not(run):
    families = ("softmax", "base_conv")
    found = run(experiment, dataclasses.replace(experiment.Config.quick(), widths=(32,), families=families))
    verdicts = {claim.id: claim.verdict for claim in experiment.claims(found)}
    assert verdicts["softmax-learns"] == verdicts["softmax-beats-convolution"] == "pass"
