"""Mechanisms whose state decays: by head, by token, by feature."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.linear._attend import attend, scaled
from attnjax.linear._run import Outputs


def retention_decay(heads: int) -> Float[Array, " K"]:
    """Logs of retention's decays, ``log(1 - 2^(-5 - h))`` for head h.

    Source: Sun et al., 2023, Retentive Network, arXiv 2307.08621.

    Args:
        heads: K.

    >>> from attnjax import linear
    >>> [round(float(x), 4) for x in jax.numpy.exp(linear.retention_decay(2))]
    [0.9688, 0.9844]
    """
    _positive("retention_decay", heads)
    return jnp.log1p(-(2.0 ** (-5 - jnp.arange(heads, dtype=jnp.float32))))


def lightning_decay(heads: int, layer: int, layers: int) -> Float[Array, " K"]:
    """Logs of lightning attention's decays, ``-slope_h (1 - l / (L - 1) + 1e-5)`` in layer l of L; slopes are ALiBi's.

    Source: Qin et al., 2024, Various Lengths, Constant Speed, arXiv 2405.17381, and the authors' code;
    ``2^(-8 (h + 1) / K)`` are the slopes where K is a power of two, else those of the next smaller power, filled up
    with every other one of the next greater.

    Args:
        heads: K.
        layer: from 0.
        layers: L, at least 2.

    Raises:
        ValueError: there is no such layer.

    >>> from attnjax import linear
    >>> [round(float(x), 3) for x in linear.lightning_decay(4, 0, 12)]
    [-0.25, -0.063, -0.016, -0.004]
    """
    _positive("lightning_decay", heads)
    if layers < 2 or not 0 <= layer < layers:
        raise ValueError(
            f"lightning_decay(layer={layer}, layers={layers}): want at least 2 layers, and 0 <= layer < layers"
        )
    slopes = jnp.asarray(_alibi(heads), jnp.float32)
    return -slopes * (1 - layer / (layers - 1) + 1e-5)


def _alibi(heads: int) -> list[float]:
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8 * (h + 1) / power) for h in range(power)]
    return slopes if power == heads else [*slopes, *_alibi(2 * power)[0::2][: heads - power]]


def _positive(name: str, heads: int) -> None:
    if heads < 1:
        raise ValueError(f"{name}(heads={heads}): want at least 1")


def retention(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    log_decay: Float[Array, " K"] | None = None,
    **run: Any,
) -> Outputs:
    """Retention, ``o_t = 1 / sqrt(H) sum_{s <= t} gamma^(t - s) <q_t, k_s> v_s``, with one decay for each head.

    Source: Sun et al., 2023, Retentive Network, arXiv 2307.08621; lightning attention is the same with the
    decays of ``lightning_decay``, arXiv 2405.17381. Rotations, the normalization of outputs and gates are the layer's.

    Args:
        q: queries ``[*B, T, N, H]``.
        k: keys ``[*B, T, K, H]``.
        v: values ``[*B, T, K, V]``.
        log_decay: ``log gamma``, by default ``retention_decay(K)``.
        run: form, chunk_size, state, return_state, segment_ids, lengths: as for ``attend``.

    Returns:
        As ``attend``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4))
    >>> linear.retention(x, x, x, chunk_size=4).shape
    (8, 2, 4)
    """
    heads = k.shape[-2]
    decay = retention_decay(heads) if log_decay is None else log_decay
    if decay.shape != (heads,):
        raise ValueError(f"log_decay: got shape {decay.shape}, want one number for each of K={heads} heads")
    return attend(scaled(q), k, v, log_decay=decay.reshape(*(1,) * (k.ndim - 2), heads), **run)


def gated_linear_attention(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    log_decay: Float[Array, "*#B #T #K #H"],
    **run: Any,
) -> Outputs:
    """Gated linear attention, ``S_t = Diag(exp(a_t)) S_{t-1} + k_t v_t^T``, ``o_t = S_t^T q_t / sqrt(H)``.

    Source: Yang et al., 2023, Gated Linear Attention Transformers, arXiv 2312.06635; there
    ``a = log_sigmoid(.) / 16``.

    Args:
        q: queries ``[*B, T, N, H]``.
        k: keys ``[*B, T, K, H]``.
        v: values ``[*B, T, K, V]``.
        log_decay: ``a``, one for each feature.
        run: form, chunk_size, state, return_state, segment_ids, lengths: as for ``attend``.

    Returns:
        As ``attend``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4))
    >>> linear.gated_linear_attention(x, x, x, -x).shape
    (8, 2, 4)
    """
    return attend(scaled(q), k, v, log_decay=log_decay, **run)


def light_net(
    q: Float[Array, "*B T N H"], k: Float[Array, "*B T K H"], v: Float[Array, "*B T K V"], **run: Any
) -> Outputs:
    """LightNet's additive recurrence: for each feature a softmax over the keys so far,

        o_t = 1 / sqrt(H) sum_h q_th sum_{s <= t} exp(k_sh) v_s / sum_{s <= t} exp(k_sh).

    Its last state does not depend on the order of the tokens; ``causal=False`` sees all of them. So one scan serves an
    image, or any grid, flattened in whatever order.

    Source: Qin et al., 2024, You Only Scan Once, arXiv 2405.21022. Deviation: the greatest k so far is kept in the
    state's log scale, where the authors keep the log of the sum, which drifts. Their encodings of positions on a grid
    (MD-TPE, MD-LRPE) are not here: give q, k and v that hold one already.

    Args:
        q: queries ``[*B, T, N, H]``; the authors' are ``silu`` of a projection.
        k: logits of keys ``[*B, T, K, H]``, of any size.
        v: values ``[*B, T, K, V]``.
        run: form, chunk_size, state, return_state, segment_ids, lengths, causal: as for ``attend``.

    Returns:
        As ``attend``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4))
    >>> bool(jnp.allclose(linear.light_net(x, 80 * x, x), 4 / 2))
    True
    """
    return attend(scaled(q), jnp.ones_like(k), v, log_write=k, normalize="feature", **run)


def latte(q: Float[Array, "*B T N L"], k: Float[Array, "*B T K L"], v: Float[Array, "*B T K V"], **run: Any) -> Outputs:
    """Latent attention: a softmax over L latents for each query, and one over the keys so far for each latent,

        o_t = sum_l softmax_l(q_t) sum_{s <= t} exp(k_sl) v_s / sum_{s <= t} exp(k_sl).

    Rows of weights sum to one. ``causal=False`` sees all keys: then it is efficient attention (Shen et al., 2021,
    arXiv 1812.01243), and the matrix of weights has rank L.

    Source: Dolga et al., 2024, Latent Attention for Linear Time Transformers, arXiv 2402.17512, and the authors' code
    (whose stable form does not scale q and k either).

    Args:
        q: logits over latents ``[*B, T, N, L]``.
        k: logits over tokens ``[*B, T, K, L]``.
        v: values ``[*B, T, K, V]``.
        run: form, chunk_size, state, return_state, segment_ids, lengths, causal: as for ``attend``.

    Returns:
        As ``attend``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4))
    >>> bool(jnp.allclose(linear.latte(x, x, x), x))
    True
    """
    return attend(jax.nn.softmax(q, -1), jnp.ones_like(k), v, log_write=k, normalize="feature", **run)


def aaren(
    query: Float[Array, "K H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    scale: float | int | None = None,
    **run: Any,
) -> Outputs:
    """Softmax attention of one query for each head over the keys so far, as a recurrence with a state of one feature,

        o_t = sum_{s <= t} softmax_s(scale <q, k_s>) v_s.

    Source: Feng et al., 2024, Attention as an RNN, arXiv 2405.13956.

    Args:
        query: ``[K, H]``; learned, the same for all tokens.
        k: keys ``[*B, T, K, H]``.
        v: values ``[*B, T, K, V]``.
        scale: by default 1 / sqrt(H).
        run: form ("scan" is the authors'), chunk_size, state, return_state, segment_ids, lengths: as for ``attend``.

    Returns:
        Outputs ``[*B, T, K, V]``, and the state if it is asked for.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4))
    >>> bool(jnp.allclose(linear.aaren(jnp.ones((2, 4)), x, x), x))
    True
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    logits = jnp.einsum("...h,...h->...", k, jnp.broadcast_to(query, k.shape)) * jnp.asarray(factor, k.dtype)
    one = jnp.ones_like(k[..., :1])
    return attend(one, one, v, log_write=logits, normalize="row", **run)


def wkv(
    k: Float[Array, "*B T C"],
    v: Float[Array, "*B T C"],
    rate: Float[Array, " C"],
    own: Float[Array, " C"],
    **run: Any,
) -> Any:
    """RWKV's weighted mean of values, for each channel,

        o_t = (sum_{s < t} exp(k_s - (t - 1 - s) w) v_s + exp(u + k_t) v_t) / (the same without v).

    With ``causal=False`` also keys after t, at their distance less one (as in Vision-RWKV, arXiv 2403.02308).

    Source: Peng et al., 2023, RWKV, arXiv 2305.13048. RWKV-6 is ``attend(..., exclusive=True, bonus=u)``.

    Args:
        k: logits ``[*B, T, C]``, of any size.
        v: values ``[*B, T, C]``.
        rate: ``w >= 0``.
        own: ``u``.
        run: form, chunk_size, state, return_state, segment_ids, lengths, causal: as for ``attend``.

    Returns:
        Outputs ``[*B, T, C]``, and the state if it is asked for.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 4))
    >>> bool(jnp.allclose(linear.wkv(x, x, jnp.ones(4), jnp.zeros(4)), 1.0))
    True
    """
    one = jnp.ones_like(k)[..., None]
    decay = -rate.reshape(*(1,) * (k.ndim - 1), -1)
    knobs = {"log_decay": decay, "log_write": k, "normalize": "row", "exclusive": True, "bonus": jnp.exp(own)[:, None]}
    found = attend(one, one, v[..., None], **knobs, **run)
    return (found[0][..., 0], found[1]) if isinstance(found, tuple) else found[..., 0]
