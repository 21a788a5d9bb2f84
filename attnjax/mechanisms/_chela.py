"""CHELA: convolutions, short and long in one kernel, and linear attention in chunks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from attnjax import linear
from attnjax.linear import Form
from attnjax.mechanisms._gated_attention import GatedAttention, gated_attention


class Chela(NamedTuple):
    """Parameters of ``chela``.

    Attributes:
        short: kernel of a few taps ``[S, D]``.
        long: kernel of many ``[L, D]``.
        gates: the rest.
    """

    short: Float[Array, "S D"]
    long: Float[Array, "L D"]
    gates: GatedAttention

    @classmethod
    def init(
        cls, key: Key[Array, ""], channels: int, features: int, width: int, length: int, short: int = 4
    ) -> "Chela":
        """Kernels normal, of unit norm in expectation.

        Args:
            key: random key.
            channels: D.
            features: H, of queries and keys.
            width: V, of values.
            length: L, taps of the long kernel.
            short: S, taps of the short one.
        """
        keys = jax.random.split(key, 3)
        draw = lambda i, taps: jax.random.normal(keys[i], (taps, channels)) * taps**-0.5
        return cls(draw(0, short), draw(1, length), GatedAttention.init(keys[2], channels, features, width))


def short_long_kernel(short: Float[Array, "S D"], long: Float[Array, "L D"]) -> Float[Array, "L D"]:
    """One kernel that convolves as both together do: the short one added to the first taps of the long one.

    Source: Liu et al., 2024, Short-Long Convolutions Help Hardware-Efficient Linear Attention to Focus on Long
    Sequences, arXiv 2406.08128.

    Args:
        short: ``[S, D]``.
        long: ``[L, D]``, L at least S.

    Raises:
        ValueError: the short kernel is the longer one, or their channels differ.

    Example:
        >>> import jax.numpy as jnp
        >>> from attnjax import mechanisms
        >>> print(mechanisms.short_long_kernel(jnp.ones((2, 1)), jnp.ones((4, 1)))[:, 0])
        [2. 2. 1. 1.]
    """
    if short.shape[0] > long.shape[0] or short.shape[1:] != long.shape[1:]:
        raise ValueError(
            f"short_long_kernel: got short {short.shape} and long {long.shape}, want [S, D] and [L, D] with S <= L"
        )
    return long.at[: short.shape[0]].add(short)


def chela(
    x: Float[Array, "*B T D"],
    parameters: Chela,
    *,
    form: Form = "chunked",
    chunk_size: int = 64,
    segment_ids: Int[Array | np.ndarray, "*#B T"] | None = None,
    max_segments: int | None = None,
    residual: Float[Array, "*B T D"] | None = None,
) -> Float[Array, "*B T D"]:
    """Linear attention over what convolutions have mixed, causal, in O(T (log T + C)) time: ``gated_attention`` with

        x' = silu((short + long) * x),
        o_t = sum_{s <= t} <phi(q_t), phi(k_s)> v_s / sum_{s <= t} <phi(q_t), phi(k_s)>.

    Source: Liu et al., 2024, Short-Long Convolutions Help Hardware-Efficient Linear Attention to Focus on Long
    Sequences, arXiv 2406.08128. Deviation: from its abstract: the kernels' parameters are plain, ``phi`` is
    ``elu + 1``, weights sum to one, and the gates are Mega's.

    Args:
        x: inputs ``[*B, T, D]``.
        parameters: see ``Chela``; of a long kernel with more than T taps the first T are used.
        form, chunk_size: of ``linear.attend``.
        segment_ids: ``[*B, T]``: where they change, nothing of the tokens before is seen.
        max_segments: as for ``linear.long_convolution``.
        residual: as for ``gated_attention``.

    Returns:
        ``[*B, T, D]``.

    Raises:
        ValueError: a shape or size does not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from attnjax import mechanisms
        >>> parameters = mechanisms.Chela.init(jax.random.key(0), channels=8, features=4, width=16, length=10)
        >>> mechanisms.chela(jnp.ones((10, 8)), parameters, chunk_size=4).shape
        (10, 8)
    """
    kernel = short_long_kernel(parameters.short, parameters.long)[: x.shape[-2]]
    mixed = jax.nn.silu(linear.long_convolution(x, kernel, segment_ids=segment_ids, max_segments=max_segments))

    ids = None if segment_ids is None else jnp.asarray(segment_ids)

    def attention(q: Array, k: Array, v: Array) -> Any:
        return linear.linear_attention(q, k, v, form=form, chunk_size=chunk_size, segment_ids=ids)

    return gated_attention(x, mixed, parameters.gates, attention, residual=residual)
