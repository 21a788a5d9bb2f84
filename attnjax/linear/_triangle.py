"""The triangle of the delta rule, solved in products of matrices.

XLA's own solver of triangles waits forever for itself on a CPU of few cores, where several run at once.
"""

import jax
import jax.numpy as jnp

LEAF = 16
"""Rows that are substituted one after another."""


@jax.custom_jvp
def inverse(below: jax.Array) -> jax.Array:
    """``(I + B)^-1`` of a matrix B below the diagonal, ``[C, C]``.

    By substitution in leaves of 16 rows, and from halves above them, ``[[X_1, 0], [-X_2 B_21 X_1, X_2]]``: the sum of
    powers of B loses all digits where keys are alike.
    """
    length, size = len(below), LEAF
    padded = LEAF << max(0, -(-length // LEAF) - 1).bit_length()
    below = jnp.pad(below, [(0, padded - length)] * 2)
    blocks = lambda size: below.reshape(padded // size, size, padded // size, size)
    leaves = jnp.stack([blocks(LEAF)[n, :, n] for n in range(padded // LEAF)])
    found = jnp.broadcast_to(jnp.eye(LEAF, dtype=below.dtype), leaves.shape)
    for j in range(LEAF - 1):
        found = found - leaves[:, :, j : j + 1] * found[:, j : j + 1]
    while size < padded:
        early, late = found[0::2], found[1::2]
        across = jnp.stack([blocks(size)[n, :, n - 1] for n in range(1, padded // size, 2)])
        joint = -(late @ (across @ early))
        found = jnp.concatenate(
            [jnp.concatenate([early, jnp.zeros_like(joint)], 2), jnp.concatenate([joint, late], 2)], 1
        )
        size *= 2
    return found[0, :length, :length]


@inverse.defjvp
def _(primals, tangents):
    (below,), (along,) = primals, tangents
    found = inverse(below)
    return found, -(found @ (along @ found))
