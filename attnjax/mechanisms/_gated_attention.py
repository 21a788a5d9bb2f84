"""A gated unit around an attention of one head; Mega and CHELA are two choices of what it attends with."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


class GatedAttention(NamedTuple):
    """Parameters of ``gated_attention``.

    Attributes:
        value, value_bias: ``[D, V]``, ``[V]``.
        shared, shared_bias: of what queries and keys are made of, ``[D, H]``, ``[H]``.
        gains, offsets: of queries (row 0) and keys (row 1), ``[2, H]``.
        reset, reset_bias: ``[D, V]``, ``[V]``.
        update, update_bias: ``[D, D]``, ``[D]``.
        candidate, candidate_bias: ``[D, D]``, ``[D]``.
        hidden: ``[V, D]``.
    """

    value: Float[Array, "D V"]
    value_bias: Float[Array, " V"]
    shared: Float[Array, "D H"]
    shared_bias: Float[Array, " H"]
    gains: Float[Array, "2 H"]
    offsets: Float[Array, "2 H"]
    reset: Float[Array, "D V"]
    reset_bias: Float[Array, " V"]
    update: Float[Array, "D D"]
    update_bias: Float[Array, " D"]
    candidate: Float[Array, "D D"]
    candidate_bias: Float[Array, " D"]
    hidden: Float[Array, "V D"]

    @classmethod
    def init(cls, key: Key[Array, ""], channels: int, features: int, width: int) -> "GatedAttention":
        """Weights and gains normal with standard deviation .02, as the authors', biases and offsets zero.

        Args:
            key: random key.
            channels: D.
            features: H, of queries and keys.
            width: V, of values.
        """
        keys = jax.random.split(key, 7)
        draw = lambda i, *shape: 0.02 * jax.random.normal(keys[i], shape)
        return cls(
            draw(0, channels, width), jnp.zeros(width), draw(1, channels, features), jnp.zeros(features),
            draw(2, 2, features), jnp.zeros((2, features)), draw(3, channels, width), jnp.zeros(width),
            draw(4, channels, channels), jnp.zeros(channels), draw(5, channels, channels), jnp.zeros(channels),
            draw(6, width, channels),
        )  # fmt: skip


def gated_attention(
    x: Float[Array, "*B T D"],
    mixed: Float[Array, "*B T D"],
    parameters: GatedAttention,
    attention: Callable[[Array, Array, Array], Array],
    *,
    residual: Float[Array, "*B T D"] | None = None,
) -> Float[Array, "*B T D"]:
    """Attention of one head between a reset gate r and an update gate u, queries and keys of ``mixed``, values of x,

        z = silu(W_z x'),  q = a_q z + b_q,  k = a_k z + b_k,  v = silu(W_v x),  r = silu(W_r x'),  u = sigmoid(W_u x'),
        y = u silu(W_h x' + U_h (r o)) + (1 - u) x,    o = attention(q, k, v),

    where x' is ``mixed`` and every W has a bias.

    Source: Ma et al., 2022, Mega, arXiv 2209.10655, whose x' is a moving average; the unit: Hua et al., 2022,
    Transformer Quality in Linear Time, arXiv 2202.10447. Norms and dropout are the layer's.

    Args:
        x: inputs ``[*B, T, D]``.
        mixed: ``x'``, what the tokens before have added to them, ``[*B, T, D]``.
        parameters: see ``GatedAttention``.
        attention: ``attention(q [*B, T, 1, H], k [*B, T, 1, H], v [*B, T, 1, V]) -> [*B, T, 1, V]``.
        residual: what is kept where u is 0; x by default. Where x is normalized first, it is what x was before.

    Returns:
        ``[*B, T, D]``.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from attnjax import linear, mechanisms
        >>> parameters = mechanisms.GatedAttention.init(jax.random.key(0), channels=8, features=4, width=16)
        >>> x = jnp.ones((10, 8))
        >>> mechanisms.gated_attention(x, x, parameters, linear.linear_attention).shape
        (10, 8)
    """
    p = parameters
    if mixed.shape != x.shape or p.value.shape[0] != x.shape[-1]:
        raise ValueError(
            f"gated_attention: got x {x.shape}, mixed {mixed.shape} and parameters of D={p.value.shape[0]} channels, "
            f"want mixed of x's shape, and its D"
        )
    of = lambda y, weight, bias: jnp.einsum("...d,de->...e", y, weight) + _wide(bias, y)
    z = jax.nn.silu(of(mixed, p.shared, p.shared_bias))
    q, k = (z * _wide(gain, z) + _wide(offset, z) for gain, offset in zip(p.gains, p.offsets, strict=True))
    v = jax.nn.silu(of(x, p.value, p.value_bias))
    o = attention(q[..., None, :], k[..., None, :], v[..., None, :])[..., 0, :]
    reset = jax.nn.silu(of(mixed, p.reset, p.reset_bias))
    update = jax.nn.sigmoid(of(mixed, p.update, p.update_bias))
    hidden = jnp.einsum("...v,vd->...d", reset * o, p.hidden)
    candidate = jax.nn.silu(of(mixed, p.candidate, p.candidate_bias) + hidden)
    kept = x if residual is None else residual
    return kept + update * (candidate - kept)


def _wide(x: Array, like: Array) -> Array:
    """With as many axes as another."""
    return jnp.expand_dims(x, tuple(range(like.ndim - x.ndim)))
