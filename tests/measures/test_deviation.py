"""The two papers on the rounding of tiled attention, and that the emulation emulates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, normalizers
from attnjax.measures import Deviation, compare, deviation, emulate, golden, sweep
from tests.tolerances import assert_close


@pytest.mark.parametrize("tile", [None, 1, 7, 16, 100, 257, 300])
@pytest.mark.parametrize("tie_factor", [None, 2.0])
def test_without_rounding_it_is_attention(getkey, tile, tie_factor):
    q, k, v = jax.random.normal(getkey(), (3, 257, 8))
    reference = normalizers.softmax(tie_factor=tie_factor).reference
    got = emulate(q, k, v, tile=tile, dtype=jnp.float32, reference=reference)
    assert_close(got, golden(q, k, v))
    assert_close(got, attend(*(x[:, None] for x in (q, k, v)), implementation="dense")[:, 0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("tile", [None, 32])
def test_every_output_is_a_number_of_the_narrow_type(getkey, dtype, tile):
    q, k, v = jax.random.normal(getkey(), (3, 64, 8))
    out = emulate(q, k, v, tile=tile, dtype=dtype, accumulator=jnp.float32)
    np.testing.assert_array_equal(out, out.astype(dtype).astype(jnp.float32))


def test_wasserstein_distance_of_shifted_and_of_permuted_entries():
    x = np.linspace(0, 1, 12).reshape(3, 4)
    assert compare(x + 0.25, x) == pytest.approx(Deviation(0.25, 0.25, 0.25, 0.25))
    assert compare(x[::-1], x).wasserstein == 0


def test_mistakes_are_named():
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match="tile=0: want a number of keys from 1 up, or None for the untiled form"):
        emulate(x, x, x, tile=0)
    with pytest.raises(ValueError, match=r"got: shape \(4, 2\), want that of the golden output, \(2, 4\)"):
        compare(np.ones((4, 2)), np.ones((2, 4)))


# Golden et al., 2024, Is Flash Attention Stable?, arXiv 2405.02803.

LENGTHS, TILES = (256, 1024, 4096), (16, 64, 256)


@functools.cache
def excess() -> dict:
    """RMS deviation of the tiled form over the untiled one's, in bfloat16, by length, tile and accumulator."""
    found = {
        (one.length, one.tile, one.accumulator): one.found.rms
        for one in sweep(jax.random.key(0), lengths=LENGTHS, tiles=(None, *TILES))
    }
    for key, value in found.items():
        print(key, f"{value:.2e}")
    return {key: value / found[key[0], None, "bfloat16"] for key, value in found.items()}


def test_tiled_attention_in_bfloat16_deviates_more_than_untiled():
    for length in LENGTHS:
        for tile in TILES:
            if tile < length:
                assert excess()[length, tile, "bfloat16"] > 1.1


def test_the_excess_grows_with_the_number_of_tiles():
    by_length = [excess()[length, 16, "bfloat16"] for length in LENGTHS]
    by_tile = [excess()[4096, tile, "bfloat16"] for tile in (256, 64, 16)]
    assert by_length == sorted(by_length)
    assert by_tile == sorted(by_tile)
    assert by_length[0] < 2
    assert by_length[-1] > 5


def test_the_excess_vanishes_with_float32_accumulators():
    for length in LENGTHS:
        for tile in TILES:
            assert excess()[length, tile, "float32"] < 1.05


# Qiu and Yao, 2025, Why Low-Precision Transformer Training Fails, arXiv 2510.04212.

STABLE = normalizers.softmax(tie_factor=2.0).reference
HALF_STEP = 2.0**-7
"""Half the distance of neighboring bfloat16 numbers between 2 and 4."""


def with_tied_maxima(seed: int, copies: int, low: float, high: float, sign: float = -1.0):
    """256 keys, of which ``copies`` share each row's greatest score, ``low`` to ``high``; others are around 0.

    Values are bfloat16 numbers between 1 and 2 in absolute value, all of one sign.
    """
    rng = np.random.default_rng(seed)
    q = np.concatenate([8 * rng.uniform(low, high, (32, 1)), rng.standard_normal((32, 63))], axis=1)
    k = np.concatenate([np.zeros((256, 1)), 0.3 * rng.standard_normal((256, 63))], axis=1)
    k[:copies] = np.eye(64)[0]
    arrays = (jnp.asarray(x, jnp.bfloat16).astype(jnp.float32) for x in (q, k, sign * rng.uniform(1, 2, (256, 512))))
    return tuple(arrays)


@functools.cache
def biases(copies: int, *, low=13.0, high=16.0, sign=-1.0, **knobs) -> tuple[float, float]:
    """Mean signed error of O, and that of delta = rowsum(dO * O) for a dO of ones."""
    errors = []
    for seed in range(8):
        q, k, v = with_tied_maxima(seed, copies, low, high, sign)
        errors.append(np.asarray(emulate(q, k, v, **knobs), np.float64) - golden(q, k, v))
    error = np.stack(errors)
    print(f"mean signed error of O {error.mean():+.2e}, of delta {error.sum(-1).mean():+.2e}")
    return error.mean(), error.sum(-1).mean()


@pytest.mark.parametrize("tile", [64, 256])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_two_tied_maxima_bias_the_output_and_delta(tile, sign):
    """Predicted: v_1 + v_2, of bfloat16 numbers from 1 to 2, is half a step off in every second case; the little that
    the other keys add, of the same sign, makes all of those round away from 0; O is half of that sum."""
    predicted = sign * HALF_STEP / 2 / 2
    of_output, of_delta = biases(2, tile=tile, sign=sign)
    assert of_output == pytest.approx(predicted, rel=0.05)
    assert of_delta == pytest.approx(512 * predicted, rel=0.05)


@pytest.mark.parametrize("tile", [64, 256])
def test_the_modified_maximum_removes_the_bias_of_two_tied_maxima(tile):
    plain, modified = biases(2, tile=tile), biases(2, tile=tile, reference=STABLE)
    assert abs(modified[0]) < abs(plain[0]) / 8
    assert abs(modified[1]) < abs(plain[1]) / 8


def test_float32_accumulators_have_no_such_bias():
    assert abs(biases(2, tile=64, accumulator=jnp.float32)[0]) < HALF_STEP / 4 / 10


def test_three_tied_maxima_stay_biased():
    """A limit of the modification: the row's sum 3 P + rest is itself half a step off in every second case, and the
    rest makes it round up; so the bias changes its sign and does not go away."""
    plain, modified = biases(3, tile=64)[0], biases(3, tile=64, reference=STABLE)[0]
    assert plain < -HALF_STEP / 10
    assert modified > HALF_STEP / 10


def test_the_modified_maximum_of_large_logits_loses_no_row():
    """m + 16 at most; twice the maximum, as in the paper's code, makes all exponentials of logits of 100 underflow."""

    def unbounded(scores):
        top = scores.max(axis=1)
        tied = (scores > (top - 1e-3)[:, None]).sum(axis=1) > 1
        return jnp.where(tied, 2 * top, top)

    for logit in (80.0, 100.0, 1000.0):
        q, k, v = with_tied_maxima(0, 2, logit, logit)
        for tile in (64, 256):
            assert deviation(q, k, v, tile=tile, reference=STABLE).max_abs < 2 * HALF_STEP
    q, k, v = with_tied_maxima(0, 2, 100.0, 100.0)
    np.testing.assert_array_equal(emulate(q, k, v, tile=64, reference=unbounded), 0)


@pytest.mark.parametrize("form", ["dense", "blocks"])
def test_the_modified_maximum_changes_nothing_in_float32(form):
    """In attend itself, values and gradients, with tied maxima positive, negative and large."""
    for low, high in ((13.0, 16.0), (-16.0, -13.0), (90.0, 100.0)):
        q, k, v = (x[:, None, :16] for x in with_tied_maxima(0, 2, low, high))

        def loss(q, k, v, tie_factor):
            normalizer = normalizers.softmax(tie_factor=tie_factor)
            out = attend(q, k, v, normalizer=normalizer, implementation=form, scale=0.125)
            return (out @ jnp.cos(jnp.arange(16.0))).sum(), out

        runs = [jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v, factor) for factor in (None, 2.0)]
        assert_close(runs[1][1], runs[0][1])
        # Softmax over two equal scores: gradients of q and k are differences that cancel, so they are compared to v's.
        assert_close(runs[1][0][2], runs[0][0][2])
        for got, want in zip(runs[1][0][:2], runs[0][0][:2], strict=True):
            np.testing.assert_allclose(got, want, atol=1e-4 * float(jnp.abs(want).max() + 1))
