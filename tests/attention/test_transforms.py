"""Every JAX transformation of every implementation gives what the plain call gives."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from attnjax import BlockSizes, attend, masks, normalizers, scores, statistics
from tests.tolerances import assert_close

FORMS = ("dense", "blocks", "rows")
LENGTH, HEADS = 20, 8


@functools.cache
def inputs() -> tuple[jax.Array, ...]:
    """q, k, v, ALiBi slopes, segment ids, float32: eight sequences, eight heads."""
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (8, LENGTH, HEADS, 4)) for key in keys)
    ids = jnp.sort(jax.random.randint(keys[0], (8, LENGTH), 0, 3), axis=-1)
    return q, k, v, jnp.linspace(0.1, 0.8, HEADS), ids


def call(form: str, q, k, v, slopes, ids):
    """Causal attention within segments, with ALiBi."""
    return attend(
        q, k, v, mask=masks.causal() & masks.segments(ids), score=scores.alibi(slopes), implementation=form,
        block_sizes=BlockSizes(8, 6),
    )  # fmt: skip


def loss(form: str, *arrays) -> jax.Array:
    return (call(form, *arrays) ** 2).sum()


def gradients(form: str, *arrays):
    return jax.grad(functools.partial(loss, form), argnums=(0, 1, 2, 3))(*arrays)


@functools.cache
def plain() -> tuple:
    """Output and gradients of the dense form."""
    return jax.jit(lambda *x: (call("dense", *x), gradients("dense", *x)))(*inputs())


@pytest.mark.parametrize("form", FORMS)
def test_vmap(form):
    """Over everything; over q alone with k and v shared; over segment ids alone; gradients inside."""
    q, k, v, slopes, ids = inputs()
    mapped = jax.jit(
        lambda q, k, v, slopes, ids: {
            "all": jax.vmap(functools.partial(call, form), (0, 0, 0, None, 0))(q, k, v, slopes, ids),
            "q": jax.vmap(functools.partial(call, form), (0, None, None, None, None))(q, k[0], v[0], slopes, ids[0]),
            "ids": jax.vmap(functools.partial(call, form), (None, None, None, None, 0))(q[0], k[0], v[0], slopes, ids),
            "heads": jax.vmap(functools.partial(call, form), (2, 2, 2, 0, None), 2)(
                *(x[:, :, :, None] for x in (q, k, v)), slopes[:, None], ids
            )[:, :, :, 0],
            "gradients": jax.vmap(functools.partial(gradients, form), (0, 0, 0, None, 0))(q, k, v, slopes, ids),
            "shared gradients": jax.vmap(functools.partial(gradients, form), (0, None, None, None, None))(
                q, k[0], v[0], slopes, ids[0]
            ),
        }
    )(q, k, v, slopes, ids)
    one_by_one = jax.jit(
        lambda q, k, v, slopes, ids: {
            "q": call("dense", q, *(jnp.broadcast_to(x[:1], x.shape) for x in (k, v)), slopes, ids[:1] + 0 * ids),
            "ids": call("dense", *(jnp.broadcast_to(x[:1], x.shape) for x in (q, k, v)), slopes, ids),
            "shared gradients": jax.lax.map(lambda q: gradients("dense", q, k[0], v[0], slopes, ids[0]), q),
        }
    )(q, k, v, slopes, ids)
    output, (dq, dk, dv, dslopes) = plain()
    assert_close(mapped["all"], output)
    assert_close(mapped["heads"], output)
    for name in ("q", "ids"):
        assert_close(mapped[name], one_by_one[name])
    assert_close(mapped["gradients"][:3], (dq, dk, dv), kind="derivative")
    assert_close(mapped["gradients"][3].sum(0), dslopes, kind="derivative")
    assert_close(mapped["shared gradients"], one_by_one["shared gradients"], kind="derivative")


@pytest.mark.parametrize("form", FORMS)
def test_jit_checkpoint_scan_linearize(form):
    """The same gradients through ``jax.checkpoint`` in a scan over sequences; ``linearize`` equals jvp; jit equals not."""
    *arrays, slopes, ids = inputs()
    some = tuple(x[:2] for x in arrays)

    def scanned_loss(q, k, v, slopes):
        one = jax.checkpoint(lambda total, x: (total + loss(form, *x[:3], slopes, x[3]), None))
        return jax.lax.scan(one, 0.0, (q, k, v, ids[:2]))[0]

    @jax.jit
    def everything(q, k, v, slopes):
        function = lambda *x: call(form, *x, ids[:2])
        tangents = (k, v, q, slopes**2)
        linear = jax.linearize(function, q, k, v, slopes)[1](*tangents)
        return (
            jax.grad(scanned_loss, (0, 1, 2, 3))(q, k, v, slopes),
            linear,
            jax.jvp(function, (q, k, v, slopes), tangents),
        )

    scanned, linear, (output, tangent) = everything(*some, slopes)
    whole, (dq, dk, dv, _) = plain()
    assert_close(output, whole[:2])
    assert_close(scanned[:3], (dq[:2], dk[:2], dv[:2]), kind="derivative")
    assert_close(linear, tangent, kind="derivative")
    assert_close(call(form, *some, slopes, ids[:2]), whole[:2])  # not jitted


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_shard_map_over_batch_and_heads(form, check_vma):
    """Eight devices, two axes; the gradient outside the map and inside it."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    array, slope, rows = PartitionSpec("data", None, "model", None), PartitionSpec("model"), PartitionSpec("data")
    specs = (array, array, array, slope, rows)
    shard = functools.partial(jax.shard_map, mesh=mesh, in_specs=specs, check_vma=check_vma)
    forward = shard(functools.partial(call, form), out_specs=array)

    def inside(*arrays):
        *moved, slopes = gradients(form, *arrays)
        # Slopes are replicated over "data": their gradient is summed there, by the check or by hand.
        return *moved, slopes if check_vma else jax.lax.psum(slopes, "data")

    @jax.jit
    def everything(*arrays):
        outside = jax.grad(lambda *x: (forward(*x) ** 2).sum(), (0, 1, 2, 3))(*arrays)
        return forward(*arrays), outside, shard(inside, out_specs=(array, array, array, slope))(*arrays)

    output, outside, within = everything(*inputs())
    want, derivatives = plain()
    assert_close(output, want)
    assert_close(outside, derivatives, kind="derivative")
    assert_close(within, derivatives, kind="derivative")


@pytest.mark.filterwarnings("ignore:.*pmap.*:DeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
def test_pmap(form):
    """One sequence on each of eight devices."""
    axes = (0, 0, 0, None, 0)
    both = jax.pmap(lambda *x: (call(form, *x), gradients(form, *x)), in_axes=axes)
    output, (dq, dk, dv, dslopes) = both(*inputs())
    want, derivatives = plain()
    assert_close(output, want)
    assert_close((dq, dk, dv, dslopes.sum(0)), derivatives, kind="derivative")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", ["blocks", "rows"])
def test_hessian_of_a_small_one(form):
    """The whole Hessian, in every composition of modes, equals that of the dense form."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5, 2, 2)))

    def of(form, x):
        return (attend(*x, mask=masks.causal(), implementation=form, block_sizes=BlockSizes(2, 2)) ** 3).sum()

    @jax.jit
    def hessians(x):
        f = functools.partial(of, form)
        return jax.hessian(functools.partial(of, "dense"))(x), jax.hessian(f)(x), jax.jacrev(jax.grad(f))(x)

    dense, forward_over_reverse, reverse_over_reverse = hessians(x)
    assert_close(forward_over_reverse, dense, kind="second")
    assert_close(reverse_over_reverse, dense, kind="second")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes(dtype):
    """The output has the values' dtype; sums are float32, so half precision costs its own rounding only."""
    arrays = [x[:2].astype(dtype) for x in inputs()[:3]]
    slopes, ids = inputs()[3], inputs()[4][:2]

    @jax.jit
    def everything(*arrays):
        wide = [x.astype(jnp.float32) for x in arrays]
        of = lambda form, *x: (call(form, *x, slopes, ids), gradients(form, *x, slopes, ids)[:3])
        return of("dense", *wide), {form: of(form, *arrays) for form in FORMS}

    (output, derivatives), forms = everything(*arrays)
    for got, moved in forms.values():
        assert got.dtype == dtype
        assert all(x.dtype == dtype for x in moved)
        assert_close(got, output)
        assert_close(moved, derivatives, kind="derivative")


@pytest.mark.parametrize("normalizer", [normalizers.softmax(), normalizers.sigmoid(), normalizers.signed_softmax()])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_bits_again(form, normalizer):
    """Two calls, output and every gradient."""
    q, k, v, slopes, ids = (x[:2] if x.ndim > 1 else x for x in inputs())

    @jax.jit
    def both(q, k, v, slopes):
        of = lambda *x: attend(
            *x[:3], mask=masks.segments(ids), score=scores.alibi(x[3]), normalizer=normalizer, implementation=form,
            block_sizes=BlockSizes(7, 7),
        )  # fmt: skip
        return of(q, k, v, slopes), jax.grad(lambda *x: (of(*x) ** 2).sum(), (0, 1, 2, 3))(q, k, v, slopes)

    jax.tree.map(np.testing.assert_array_equal, both(q, k, v, slopes), both(q, k, v, slopes))


def test_no_component_has_the_structure_of_another():
    """A jit cache compares structures, and takes another's program for an equal one when the hashes happen to meet."""
    of = [masks, scores, normalizers, statistics]
    kinds = {value for module in of for value in vars(module).values() if dataclasses.is_dataclass(value)}
    parts = [object.__new__(kind) for kind in kinds]
    for part in parts:
        for field in dataclasses.fields(part):
            object.__setattr__(part, field.name, 0)
    parts = [part for part in parts if not jax.tree_util.all_leaves([part])]
    assert len(parts) > 25
    for one, other in itertools.combinations(parts, 2):
        assert jax.tree.structure(one) != jax.tree.structure(other), f"{one} and {other}"
