"""Products of many small matrices, one for each entry of a batch: what the toy models spend their time on.

XLA's CPU backend makes scalar code of a batch of small matrix products, and of any sum over an axis that is not the
last. With the batch last and the sum written out, every term is an elementwise product of long arrays: vector code, up
to ten times as fast. Differentiating such a sum would bring the slow sums back, so the product is a primitive: it is
bilinear, and its derivatives are products of the same kind.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from attnjax import _compat

LONGEST = 64
"""Sums with more terms than that are left to XLA: the program would grow with them."""

product_p = _compat.Primitive("small_products")


def product(a: Float[Array, "*R I J B"], b: Float[Array, "*R J K B"]) -> Float[Array, "*R I K B"]:
    """The matrix product of each pair, ``c_ik = sum_j a_ij b_jk``, with the batch as the last axis.

    Example:
        >>> import jax
        >>> a, b = jax.random.normal(jax.random.key(0), (2, 3, 3, 5))
        >>> bool(jnp.allclose(product(a, b)[..., 2], a[..., 2] @ b[..., 2], atol=1e-6))
        True
    """
    return product_p.bind(a, b)


def _written_out(a, b):
    rows, terms = a.shape[-3:-1]
    if terms > LONGEST:
        return _einsum(a, b)

    def row(i, c):
        total = functools.reduce(jnp.add, [a[..., i, j, None, :] * b[..., j, :, :] for j in range(terms)])
        return lax.dynamic_update_index_in_dim(c, total, i, axis=c.ndim - 3)

    # A loop: XLA would fuse a product into the next one and compute it again for each entry there.
    return lax.fori_loop(0, rows, row, jnp.zeros((*a.shape[:-2], *b.shape[-2:]), a.dtype))


def _einsum(a, b):
    return jnp.einsum("...ijb,...jkb->...ikb", a, b)


def _swap(a):
    return jnp.swapaxes(a, -3, -2)


def _batch(operands, axes):
    """A mapped axis leads."""
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    lead = lambda x, axis: jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
    return product(*map(lead, operands, axes)), 0


def _abstract(a, b):
    return _compat.output_aval((*a.shape[:-2], *b.shape[-2:]), a.dtype, (a, b))


product_p.def_impl(jax.jit(_written_out))
product_p.def_abstract_eval(_abstract)
ad.defbilinear(product_p, lambda ct, a, b: product(ct, _swap(b)), lambda ct, a, b: product(_swap(a), ct))
batching.primitive_batchers[product_p] = _batch
mlir.register_lowering(product_p, mlir.lower_fun(_einsum, multiple_results=False))
mlir.register_lowering(product_p, mlir.lower_fun(_written_out, multiple_results=False), platform="cpu")
