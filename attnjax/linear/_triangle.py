"""The triangle of the delta rule, solved in products of matrices.

XLA's own solver of triangles waits forever for itself on a CPU of few cores, where several run at once.
"""

import jax
import jax.numpy as jnp

LEAF = 16
"""Rows that are substituted one after another."""


def solve(below: jax.Array, right: jax.Array) -> jax.Array:
    """``(I + B)^-1 R`` of a matrix B below the diagonal, ``[C, C]`` and ``[C, V]``.

    By substitution, 16 rows at a time: the sum of powers of B loses all digits where keys are alike, and the inverse
    of the whole some of them.
    """
    length = len(below)
    padded = -(-length // LEAF) * LEAF
    below = jnp.pad(below, [(0, padded - length)] * 2)
    right = jnp.pad(right, [(0, padded - length), (0, 0)])
    rows = [slice(n, n + LEAF) for n in range(0, padded, LEAF)]
    leaves = _inverse(jnp.stack([below[at, at] for at in rows]))
    found = leaves[0] @ right[rows[0]]
    for leaf, at in zip(leaves[1:], rows[1:], strict=True):
        found = jnp.concatenate([found, leaf @ (right[at] - below[at, : at.start] @ found)])
    return found[:length]


@jax.custom_jvp
def _inverse(below: jax.Array) -> jax.Array:
    """``(I + B)^-1`` of small matrices below the diagonal, ``[M, C, C]``."""
    found = jnp.broadcast_to(jnp.eye(below.shape[-1], dtype=below.dtype), below.shape)
    for j in range(below.shape[-1] - 1):
        found = found - below[:, :, j : j + 1] * found[:, j : j + 1]
    return found


@_inverse.defjvp
def _(primals, tangents):
    (below,), (along,) = primals, tangents
    found = _inverse(below)
    return found, -(found @ (along @ found))
