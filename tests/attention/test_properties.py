"""What attention must do whatever its inputs are: causality, isolation, equivariance, nothing hidden."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnjax import BlockSizes, attend, masks, normalizers
from tests.attention.cases import NORMALIZERS, ROWS_ONLY, SCORES, Sizes
from tests.tolerances import assert_close

FORMS = ("dense", "blocks", "rows")
STREAMING = ("dense", "blocks")


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("form", FORMS)
def test_no_gradient_from_the_future(form):
    """d o_t / d (k_s, v_s) is exactly 0 for s > t, and so is d o_t / d q_u for u != t."""
    q, k, v = random(3, 9, 2, 4)

    @jax.jit
    def jacobians(q, k, v):
        # One head at a time would do; summing over heads and width hides nothing, as zeros are exact.
        of = lambda *x: (attend(
            *x, mask=masks.causal(), implementation=form, block_sizes=BlockSizes(4, 4)
        ) ** 2).sum((1, 2))  # fmt: skip
        return jax.jacrev(of, (0, 1, 2))(q, k, v)

    dq, dk, dv = jacobians(q, k, v)
    future = np.triu(np.ones((9, 9), bool), 1)
    for d in (dk, dv):
        assert not np.any(np.asarray(d)[future])
        assert np.any(np.asarray(d)[~future])
    assert not np.any(np.asarray(dq)[~np.eye(9, dtype=bool)])


@pytest.mark.parametrize("form", FORMS)
def test_segments_are_isolated_bit_for_bit(form):
    """Other numbers in one segment change no bit of another's outputs or gradients."""
    q, k, v = random(3, 24, 2, 4)
    ids = jnp.repeat(jnp.arange(3), 8)
    mine = ids == 1

    @jax.jit
    def of(*x):
        f = lambda *x: attend(
            *x, mask=masks.segments(ids), implementation=form, block_sizes=BlockSizes(5, 7)
        )  # fmt: skip
        return f(*x), jax.grad(lambda *x: (f(*x) ** 2).sum(), (0, 1, 2))(*x)

    other = [jnp.where(mine[:, None, None], x, 1e3 * x[::-1]) for x in (q, k, v)]
    for one, two in zip(jax.tree.leaves(of(q, k, v)), jax.tree.leaves(of(*other)), strict=True):
        np.testing.assert_array_equal(one[mine], two[mine])


@pytest.mark.parametrize("poison", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["softmax", "sigmoid", "signed softmax"])
def test_nan_in_a_query_stays_in_its_own_rows(form, name, poison):
    """It is visible there (not turned into numbers), and nowhere else."""
    q, k, v = random(3, 13, 2, 4)
    bad = q.at[5, 1, 2].set(poison)
    of = functools.partial(
        attend, mask=masks.causal(), normalizer=NORMALIZERS[name].make({}, None), implementation=form,
        block_sizes=BlockSizes(4, 4),
    )  # fmt: skip
    clean, got = np.asarray(of(q, k, v)), np.asarray(of(bad, k, v))
    touched = np.zeros(got.shape, bool)
    touched[5, 1] = True
    np.testing.assert_array_equal(got[~touched], clean[~touched])
    if name != "sigmoid" or np.isnan(poison):  # the sigmoid of an infinite score is a number
        assert np.isnan(got[touched]).all()


@pytest.mark.parametrize("form", FORMS)
def test_nan_in_an_invisible_key_or_value_has_no_effect(form):
    """Padding may hold anything in keys that no query sees, as long as their values are finite numbers."""
    q, k, v = random(3, 12, 2, 4)
    of = functools.partial(attend, mask=masks.lengths(kv_lengths=9), implementation=form, block_sizes=BlockSizes(4, 4))
    np.testing.assert_array_equal(of(q, k.at[9:].set(jnp.nan), v), of(q, k, v))


@settings(max_examples=15)
@given(st.permutations(range(10)), st.sampled_from(sorted(set(NORMALIZERS))))
def test_permutations_without_a_mask(order, name):
    """Permuting keys with their values changes nothing; permuting queries permutes the rows."""
    q, k, v = random(3, 10, 2, 4)
    order = np.array(order)
    normalizer = NORMALIZERS[name].make({"sink": jnp.ones(2), "zeros": 3 + jnp.ones(2), "bias": -jnp.ones(2),
                                         "coefficient": jnp.ones(2)}, Sizes((), 10, 10, 2, 2, 4, 4))  # fmt: skip
    forms = ("rows",) if name in ROWS_ONLY else ("blocks",)
    for form in forms:
        of = functools.partial(attend, normalizer=normalizer, implementation=form, block_sizes=BlockSizes(4, 4))
        assert_close(of(q, k[order], v[order]), of(q, k, v))
        assert_close(of(q[order], k, v), of(q, k, v)[order])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["softmax with a sink", "sigmoid", "signed softmax", "log-n softmax"])
def test_tiles_do_not_matter(name):
    """Any tiles give the same output and gradient, in float64 to rounding."""
    q, k, v = (random(33, 4, 4).astype(jnp.float64), *random(2, 50, 2, 4).astype(jnp.float64))
    normalizer = NORMALIZERS[name].make({"sink": jnp.ones(4), "coefficient": jnp.ones(4)}, None)
    tiles = [BlockSizes(33, 50), BlockSizes(1, 1), BlockSizes(8, 50), BlockSizes(32, 49), BlockSizes(11, 10)]

    @jax.jit
    def all_tiles(q, k, v):
        def of(blocks):
            f = lambda *x: attend(
                *x, mask=masks.window(20, 5), normalizer=normalizer, implementation="blocks", block_sizes=blocks
            )
            output, pull_back = jax.vjp(f, q, k, v)
            return output, pull_back(output)

        return [of(blocks) for blocks in tiles]

    first, *others = all_tiles(q, k, v)
    for output, gradient in others:
        assert_close(output, first[0])
        assert_close(gradient, first[1], kind="derivative")


def test_auto_is_one_of_the_forms():
    """``auto`` gives the bits of the form that ``explain`` names."""
    from attnjax import explain

    for length in (32, 600):
        q, k, v = random(3, length, 1, 4)
        plan = explain(q, k, v, mask=masks.causal())
        named = attend(q, k, v, mask=masks.causal(), implementation=plan.implementation)
        np.testing.assert_array_equal(attend(q, k, v, mask=masks.causal()), named)
    rows = explain(q, k, v, normalizer=normalizers.sparsemax())
    assert rows.implementation == "rows"


def test_every_score_runs_at_its_default_tiles():
    """Without ``block_sizes`` too."""
    size = Sizes((), 40, 40, 2, 2, 4, 4)
    rng = np.random.default_rng(0)
    q, k, v = random(3, 40, 2, 4)
    for name in ("dot product", "alibi", "relative bias"):
        entry = SCORES[name]
        arrays = {key: jnp.asarray(x, jnp.float32) for key, x in entry.draw(rng, size).items()}
        both = [attend(q, k, v, score=entry.make(arrays, size), implementation=form) for form in STREAMING]
        assert_close(*both)


def test_bfloat16_gradients_are_as_good_in_many_tiles_as_in_one():
    """Sums over tiles are float32, whatever the dtype of what is summed."""
    arrays = jax.random.normal(jax.random.key(0), (4, 1024, 1, 16), jnp.bfloat16)

    def gradients(q, k, v, cotangent, size):
        of = lambda *x: attend(*x, mask=masks.causal(), implementation="blocks", block_sizes=BlockSizes(size, size))
        return jax.vjp(of, q, k, v)[1](cotangent)

    exact = gradients(*(x.astype(jnp.float32) for x in arrays), 1024)

    def errors(size):
        found = gradients(*arrays, size)
        return [float(jnp.linalg.norm(x - y) / jnp.linalg.norm(y)) for x, y in zip(found, exact, strict=True)]

    assert max(errors(32)) < 1.5 * max(errors(1024))
