"""Every implementation against the loops and against each other, over the registry of ``cases.py``."""

import functools

import jax
import numpy as np
import pytest

from attnjax import attend, attention_weights
from tests.attention.cases import CASES, MASKS, NORMALIZERS, SCORES, SIZES, Case
from tests.tolerances import assert_close


def forms_of(case: Case) -> tuple[str, ...]:
    return ("dense", "blocks", "rows") if case.streams else ("dense", "rows")


def call(case: Case, form: str, floats, integers) -> jax.Array:
    arrays = floats | integers
    return attend(*(arrays[x] for x in "qkv"), **case.knobs(arrays), implementation=form, block_sizes=case.blocks)


ROUNDING = 1e-12
"""Inputs are of order one: a derivative below this is a sum that cancels, and is compared in absolute terms."""


def assert_near(got: dict, want: dict, kind: str) -> None:
    """``assert_close`` for each entry, by name."""
    for name in want:
        print(name)
        if np.max(np.abs(want[name])) < ROUNDING:
            assert np.max(np.abs(got[name])) < ROUNDING
        else:
            assert_close(got[name], want[name], kind=kind)


def derivatives(function, floats, tangents, cotangent) -> dict:
    """Value, jvp, every gradient and the Hessian-vector product of ``<cotangent, function>``."""
    output, moved = jax.jvp(function, (floats,), (tangents,))
    loss = lambda floats: (function(floats) * cotangent).sum()
    gradient, product = jax.jvp(jax.grad(loss), (floats,), (tangents,))
    return {"value": output, "jvp": moved, "gradient": gradient, "hvp": product}


def gradients(function, floats, tangents, cotangent) -> dict:
    """Value and every gradient."""
    output, pull_back = jax.vjp(function, floats)
    return {"value": output, "gradient": pull_back(cotangent)[0]}


@functools.cache
def found(case: Case) -> dict:
    """Everything about a case, from one compilation."""
    floats, integers = case.draw()
    tangents, _ = case.draw(seed=1)
    tangents = {name: tangents[name] - floats[name] for name in floats}
    cotangent = np.random.default_rng(2).standard_normal((*case.size.batch, case.size.t, case.size.n, case.size.v))

    @jax.jit
    def everything(floats, integers, tangents, cotangent):
        forms = {}
        for form in forms_of(case):
            function = lambda x, form=form: call(case, form, x, integers)
            # rows is blocks with one long tile: where blocks runs, its gradient will do.
            first_order = form == "rows" and case.streams
            forms[form] = (gradients if first_order else derivatives)(function, floats, tangents, cotangent)
        arrays = floats | integers
        return forms, attention_weights(arrays["q"], arrays["k"], **case.knobs(arrays))

    forms, weights = everything(floats, integers, tangents, cotangent)
    return {"forms": forms, "weights": weights, "loops": case.loops(floats | integers)}


def test_the_cases_use_every_entry_and_every_size():
    for name, table in (("mask", MASKS), ("score", SCORES), ("normalizer", NORMALIZERS)):
        assert {getattr(case, name) for case in CASES} == set(table)
    assert {case.size for case in CASES} >= set(SIZES)
    lengths = {case.size.t for case in CASES}, {case.size.s for case in CASES}
    assert all(x >= {1, 7, 63, 100, 257} for x in lengths)
    assert {case.size.n // case.size.k for case in CASES} >= {1, 2, 8}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case):
    """Values equal the loops'; blocks and rows equal dense in values and derivatives; masked rows are zeros."""
    forms, weights, loops = (found(case)[x] for x in ("forms", "weights", "loops"))
    flat = lambda x: np.reshape(x, (case.size.flat, *np.shape(x)[len(case.size.batch) :]))
    assert_close(flat(weights), loops.weights)
    for form, got in forms.items():
        print(form)
        assert got["value"].dtype == np.float64
        assert_close(flat(got["value"]), loops.output)
        unseen = ~np.isfinite(loops.scores).any(-1).swapaxes(1, 2)  # [B, T, N]
        np.testing.assert_array_equal(flat(got["value"])[unseen], 0)
        for name, kind in (("gradient", "derivative"), ("hvp", "second")):
            if name in got:
                assert_near(got[name], forms["dense"][name], kind)
                np.testing.assert_array_equal(flat(got[name]["q"])[unseen], 0)
                assert all(np.isfinite(x).all() for x in jax.tree.leaves(got[name]))
        if "jvp" in got:
            assert_near({"jvp": got["jvp"]}, {"jvp": forms["dense"]["jvp"]}, "derivative")
            np.testing.assert_array_equal(flat(got["jvp"])[unseen], 0)
