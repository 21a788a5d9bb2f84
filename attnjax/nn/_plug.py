"""``attend`` in the calling convention of Flax's own multi-head layers."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

import attnjax
from attnjax import masks, scores

from ._attention import Implementation


def as_attention_fn(
    *,
    mask: Any = None,
    score: Any = None,
    normalizer: Any = None,
    scale: float | None = None,
    implementation: Implementation = "auto",
    block_sizes: Any = None,
) -> Callable[..., Array]:
    """``attnjax.attend`` as the ``attention_fn`` of ``flax.nnx.MultiHeadAttention`` and of Linen's.

    The knobs given here are fixed; what the Flax layer passes at each call joins them: its boolean mask (shape
    ``[*B, N or 1, T, S]``) and ``is_causal`` are intersected with ``mask``, its bias is added to the scores.

    Args:
        mask, score, normalizer, scale, implementation, block_sizes: as in ``attnjax.attend``.

    Returns:
        A function ``(query, key, value, bias=None, mask=None, ...)`` of arrays ``[*B, T, N, H]``. It raises
        ``NotImplementedError`` where Flax asks for dropout on the weights, for the weights to be sown, for a matmul
        ``precision`` or for an einsum of one's own: none of these reaches into a streamed attention.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from attnjax import masks, normalizers
        >>> fn = as_attention_fn(mask=masks.causal() & masks.window(4), normalizer=normalizers.softmax_plus_one())
        >>> layer = nnx.MultiHeadAttention(2, 8, decode=False, attention_fn=fn, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((1, 6, 8))).shape
        (1, 6, 8)

    Deviation: rows that see no key give zeros; Flax's function gives them the mean of all values.
    """
    fixed: dict[str, Any] = dict(
        normalizer=normalizer, scale=scale, implementation=implementation, block_sizes=block_sizes
    )
    own_mask, own_score = mask, score

    def attention_fn(
        query: Array,
        key: Array,
        value: Array,
        bias: Array | None = None,
        mask: Array | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: Array | None = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
        is_causal: bool = False,
        qk_attn_weights_einsum: Callable[..., Array] | None = None,
        attn_weights_value_einsum: Callable[..., Array] | None = None,
    ) -> Array:
        del broadcast_dropout, dropout_rng
        _refuse(dropout_rate > 0 and not deterministic, "dropout_rate", dropout_rate, "dropout_rate=0 or deterministic")
        _refuse(module is not None, "sow_weights", True, "False; ask attnjax.attend for stats=, or attention_weights")
        _refuse(precision is not None, "precision", precision, "None; set jax.default_matmul_precision around the call")
        einsums = (qk_attn_weights_einsum, attn_weights_value_einsum)
        _refuse(any(e is not None for e in einsums), "an einsum of one's own", einsums, "None")
        dtype = jnp.result_type(query, key, value) if dtype is None else dtype
        query, key, value = (a.astype(dtype) for a in (query, key, value))
        seen = _both(own_mask, None if mask is None else masks.from_array(jnp.asarray(mask, bool)))
        seen = _both(seen, masks.causal() if is_causal else None)
        total = own_score if bias is None else (own_score or scores.dot_product()) >> scores.bias(bias)
        return attnjax.attend(query, key, value, mask=seen, score=total, **fixed)

    return attention_fn


def _both(one: Any, other: Any) -> Any:
    """Intersection of two masks, either of which may be None (everything)."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _refuse(condition: bool, name: str, got: Any, wanted: str) -> None:
    if condition:
        raise NotImplementedError(f"{name}: got {got!r}, wanted {wanted}.")
