"""Kernels against the streamed form, interpreted: values and derivatives of every case that they run."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from attnjax import BlockSizes, attend, explain, masks, scores
from pallas_kernels import Target, compile_for
from tests.attention.cases import CASES
from tests.attention.test_conformance import derivatives
from tests.kernels.targets import TPU, assert_case, assert_learned_scores
from tests.tolerances import assert_close


@pytest.mark.parametrize("case", [c for c in CASES if c.streams], ids=str)
def test_case(case):
    """Value, jvp, gradient and Hessian-vector product, all by kernels, equal those of the dense form."""
    assert_case(case, TPU, derivatives)


@contextlib.contextmanager
def hunting():
    """Eager runs in memory that begins as NaN, with reads and writes watched for races."""
    params = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True, out_of_bounds_reads="raise")
    with compile_for(Target("tpu", interpret=params)), jax.disable_jit():
        yield
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    assert not interpret_pallas_call.races.races_found


def test_no_pass_reads_what_was_not_written_or_races():
    """Forward and gradients in order of rows, of columns (grouped heads, an own total), and of single tiles."""
    assert_learned_scores(256, BlockSizes(128, 128), hunting)


def test_rows_kept_on_the_chip_read_nothing_unwritten():
    """The fused backward pass: gradients of queries stay on the chip while columns are walked through."""
    q, k, v, cotangent = jax.random.normal(jax.random.key(0), (4, 300, 2, 16))

    def gradients(form):
        sizes = BlockSizes(128, 128)
        of = lambda *x: (attend(*x, mask=masks.window(70), implementation=form, block_sizes=sizes) * cotangent).sum()
        return jax.grad(of, (0, 1, 2))(q, k, v)

    want = gradients("blocks")
    with hunting():
        got = gradients("pallas")
    jax.tree.map(lambda a, b: assert_close(a, b, kind="derivative"), got, want)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_inputs(dtype):
    q, k, v, cotangent = jax.random.normal(jax.random.key(0), (4, 300, 4, 32), dtype)

    def of(form, *x):
        mask = masks.causal() & masks.window(200)
        function = lambda *x: attend(*x, mask=mask, implementation=form, block_sizes=BlockSizes(128, 128))
        output, pull = jax.vjp(function, *x)
        return output, pull(cotangent.astype(output.dtype))

    want = of("blocks", *(x.astype(jnp.float32) for x in (q, k, v)))
    with compile_for(TPU):
        got = of("pallas", q, k, v)
    assert all(x.dtype == dtype for x in jax.tree.leaves(got))
    for a, b, kind in zip(jax.tree.leaves(got), jax.tree.leaves(want), ["value", *["derivative"] * 3], strict=True):
        assert_close(a, b, kind=kind)


def test_groups_of_tiles_with_full_partial_and_empty_ones():
    """Steps of four tiles: full at once, by halves where they are mixed, and cut off at the end."""
    q, k, v, cotangent = jax.random.normal(jax.random.key(0), (4, 7 * 128, 1, 8))
    hidden = jnp.arange(7 * 128) // 128 != 1  # a whole column of tiles is empty
    mask = masks.causal() & masks.from_array(hidden[None])

    def of(form):
        function = lambda *x: attend(*x, mask=mask, implementation=form, block_sizes=BlockSizes(128, 128))
        output, pull = jax.vjp(function, q, k, v)
        return output, pull(cotangent)

    want = of("blocks")
    with compile_for(TPU):
        got = of("pallas")
    jax.tree.map(lambda a, b: assert_close(a, b, kind="derivative"), got, want)


def test_exponentials_in_16_bits_are_asked_for():
    """They round the difference to the greatest score to 8 bits: worse than the default, and not by more than that."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 256, 2, 32), jnp.bfloat16)
    exact = attend(*(x.astype(jnp.float32) for x in (q, k, v)), implementation="dense")
    error = {}
    for exponential in ("float32", "bfloat16"):
        with compile_for(Target("tpu", interpret=True, exponential=exponential)):
            found = attend(q, k, v, implementation="pallas")
        error[exponential] = float(jnp.sqrt(jnp.mean((found - exact) ** 2) / jnp.mean(exact**2)))
    print(error)
    assert error["float32"] < 0.004 < error["bfloat16"] < 0.02


def test_the_same_bits_twice():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 256, 2, 16))
    with compile_for(TPU):
        of = lambda: jax.grad(lambda *x: attend(*x, mask=masks.causal(), implementation="pallas").sum(), (0, 1, 2))(
            q, k, v
        )
        jax.tree.map(np.testing.assert_array_equal, of(), of())


def test_statistics_and_traced_segments():
    """What a mask leaves is found while the program runs; rows that see nothing are zeros."""
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 260, 2, 16))
    ids = jnp.sort(jax.random.randint(jax.random.key(1), (2, 260), 0, 4), axis=-1)
    kv_ids = jnp.where(ids == 2, 9, ids)

    @jax.jit
    def blocks(ids, kv_ids):
        return of("blocks", ids, kv_ids)

    @jax.jit
    def kernels(ids, kv_ids):
        return of("pallas", ids, kv_ids)

    def of(form, ids, kv_ids):
        mask = masks.segments(ids, kv_ids)
        sizes = BlockSizes(128, 128)
        return attend(
            q, k, v, mask=mask, implementation=form, stats=("logsumexp", "entropy", "key_mass"), block_sizes=sizes
        )

    want = blocks(ids, kv_ids)
    with compile_for(TPU):
        got = kernels(ids, kv_ids)
    seen = np.asarray(ids != 2)
    assert not np.asarray(got[0])[~seen].any()
    assert_close(got[0], want[0])
    for name in ("entropy", "key_mass"):
        assert_close(got[1][name], want[1][name])
    assert_close(got[1]["logsumexp"][seen], want[1]["logsumexp"][seen])


def test_vmap_is_one_more_axis_of_the_grid():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 3, 130, 2, 8))
    one = lambda form: lambda q, k, v: attend(q, k, v, mask=masks.causal(), implementation=form).sum()
    with compile_for(TPU):
        got = jax.vmap(jax.grad(one("pallas"), (0, 1, 2)), in_axes=(0, None, 0))(q, k[0], v)
    want = jax.vmap(jax.grad(one("blocks"), (0, 1, 2)), in_axes=(0, None, 0))(q, k[0], v)
    jax.tree.map(lambda a, b: assert_close(a, b, kind="derivative"), got, want)


X = jnp.ones((2048, 2, 16))
SORTED = scores.from_function(lambda score, batch, head, t, s: jnp.sort(score, axis=1))
"""Not the same for tiles of another size, and no kernel sorts."""


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (
            {"score": SORTED},
            NotImplementedError,
            ["no kernel runs", "'sort'", "'blocks'"],
        ),
        (
            {"block_sizes": BlockSizes(2048, 1024)},
            ValueError,
            ["tiles of 2048 x 1024 need", "windows", "v5e has 128 MiB", "1,048,576 entries", "block_sizes"],
        ),
        ({"block_sizes": BlockSizes(100, 128)}, ValueError, ["BlockSizes(q=100)", "no multiple of 128"]),
    ],
)
def test_message(arguments, kind, words):
    with pytest.raises(kind) as caught, compile_for(Target("tpu")):
        attend(X, X, X, implementation="pallas", **arguments)
    assert all(word in str(caught.value) for word in words)


def test_auto_on_a_tpu_takes_the_kernels_that_there_are():
    with compile_for(Target("tpu")):
        plain = explain(X, X, X, mask=masks.causal())
        unsorted = explain(X, X, X, score=SORTED)
        odd = explain(X, X, X, block_sizes=BlockSizes(100, 100))
    assert plain.implementation == "pallas"
    assert (unsorted.implementation, odd.implementation) == ("blocks", "blocks")
    assert "pallas: BlockSizes(q=100) is no multiple of 128" in odd.reasons
    assert any(reason.startswith("pallas: no kernel runs the operation 'sort'") for reason in unsorted.reasons)


@pytest.mark.parametrize(
    ("generation", "length", "mask", "rows"),
    [
        ("v6e", 16384, masks.causal(), 1024),
        ("v6e", 4096, masks.causal(), 512),  # too many of its entries would be hidden
        ("v6e", 16384, masks.window(1000), 512),
        ("7x", 2048, None, 1024),
        ("v5e", 16384, masks.causal(), 512),
    ],
)
def test_taller_tiles_where_they_cost_less(generation, length, mask, rows):
    x = jax.ShapeDtypeStruct((length, 1, 128), jnp.bfloat16)
    with compile_for(Target("tpu", generation)):
        plan = explain(x, x, x, mask=mask)
    assert (plan.implementation, plan.block_q, plan.block_kv) == ("pallas", rows, 512)


@pytest.mark.usefixtures("x64")
def test_double_precision_is_refused():
    x = jnp.ones((4, 2, 8))
    with compile_for(TPU), pytest.raises(NotImplementedError, match="dtype float64 is not supported"):
        attend(x, x, x, implementation="pallas")


def test_tiles_that_do_not_fit_print_the_budget():
    x = jnp.ones((1024, 1, 1024), jnp.bfloat16)
    sizes = BlockSizes(1024, 1024)
    with (
        compile_for(Target("tpu", "v4")),
        pytest.raises(ValueError, match=r"tiles of 1024 x 1024 need .* v4 has 16 MiB"),
    ):
        attend(x, x, x, implementation="pallas", block_sizes=sizes)


def test_targets_are_checked():
    with pytest.raises(ValueError, match="platform: got 'cuda'"):
        Target("cuda")
    with pytest.raises(ValueError, match=r"generation: got 'v3', want one of \['v4'"):
        Target("tpu", "v3")
    with pytest.raises(ValueError, match="exponential: got 'float16', want 'float32' or 'bfloat16'"):
        Target("tpu", exponential="float16")
