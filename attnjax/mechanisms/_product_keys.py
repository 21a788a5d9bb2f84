"""Memory of many slots, found by two small code books."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def top_products(
    first: Float[Array, "*A M"], second: Float[Array, "*A M"], k: int
) -> tuple[Float[Array, "*A k"], Int[Array, "*A k"]]:
    """The k greatest of the M^2 sums ``first_i + second_j``, exactly, from the k greatest of each: O(M + k^2) of them.

    A sum that is among the k greatest has both of its terms among the k greatest of theirs.

    Source: Lample et al., 2019, Large Memory Layers with Product Keys, arXiv 1907.05242.

    Args:
        first, second: ``[*A, M]``.
        k: at most M.

    Returns:
        The sums, greatest first, and where they are, ``i M + j``, both ``[*A, k]``.

    Raises:
        ValueError: k is not from 1 to M.

    Example:
        >>> import jax.numpy as jnp
        >>> from attnjax import mechanisms
        >>> sums, slots = mechanisms.top_products(jnp.array([0.0, 1.0]), jnp.array([0.5, 0.0]), 2)
        >>> print(sums, slots)
        [1.5 1. ] [2 3]
    """
    size = first.shape[-1]
    if not 1 <= k <= size:
        raise ValueError(f"k: got {k}, want from 1 to M={size}, the size of a code book")
    rows, i = lax.top_k(first, k)
    columns, j = lax.top_k(second, k)
    flat = lambda x: x.reshape(*x.shape[:-2], k * k)
    sums, best = lax.top_k(flat(rows[..., :, None] + columns[..., None, :]), k)
    slots = flat(i[..., :, None] * size + j[..., None, :])
    return sums, jnp.take_along_axis(slots, best, -1)


def product_key_memory(
    q: Float[Array, "*B T N two_halves"],
    keys: Float[Array, "2 N M H"],
    values: Float[Array, "slots V"],
    k: int,
) -> Float[Array, "*B T N V"]:
    """Attention over M^2 slots, of which each query reads the k that answer it best,

        o = sum_{slots in top k} softmax(score) values,    score_ij = <q_1, keys_1i> + <q_2, keys_2j>,

    q_1 and q_2 being the halves of the query. Only 2 M scores are computed, and the k are exact: see ``top_products``.
    All heads read the same values.

    Source: Lample et al., 2019, Large Memory Layers with Product Keys, arXiv 1907.05242; as the memory of a hybrid
    stack: Chaudhary and Browning, 2025, Hydra, arXiv 2508.15099. Queries are not normalized here, nor heads added up.

    Args:
        q: queries ``[*B, T, N, 2 H]``.
        keys: two code books for each head, ``[2, N, M, H]``.
        values: ``[M^2, V]``, of slot ``i M + j``.
        k: slots that are read, at most M.

    Returns:
        ``[*B, T, N, V]``.

    Raises:
        ValueError: a shape does not fit, or k is not from 1 to M.

    Example:
        >>> import jax
        >>> from attnjax import mechanisms
        >>> shapes = (3, 2, 8), (2, 2, 5, 4), (25, 6)
        >>> q, keys, values = (jax.random.normal(jax.random.key(0), shape) for shape in shapes)
        >>> mechanisms.product_key_memory(q, keys, values, k=3).shape
        (3, 2, 6)
    """
    _, heads, size, half = keys.shape
    if q.shape[-2:] != (heads, 2 * half) or values.shape[0] != size**2:
        raise ValueError(
            f"product_key_memory: got q {q.shape}, keys {keys.shape}, values {values.shape}, want q [*B, T, N, 2 H], "
            f"keys [2, N, M, H] and values [M^2, V]: here N={heads}, 2 H={2 * half}, M^2={size**2}"
        )
    score = lambda x, book: jnp.einsum("...nh,nmh->...nm", x, book)
    found, slots = top_products(score(q[..., :half], keys[0]), score(q[..., half:], keys[1]), k)
    return jnp.einsum("...k,...kv->...v", jax.nn.softmax(found, -1), values[slots])
