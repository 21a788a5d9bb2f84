"""Linear attention of images, and the local parts beside it; how concentrated rows of weights are."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attnjax.linear import _validate
from attnjax.linear._attend import attend
from attnjax.linear._run import Outputs


def enhanced_linear_attention(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    temperature: Float[Array, " N"] | None = None,
    floor: float | int = 100.0,
    causal: bool = False,
    **run: Any,
) -> Outputs:
    """L2ViT's enhanced linear attention, ``o_t = tau sum_s w_ts v_s / max(sum_s w_ts, floor)``,
    ``w_ts = <relu(q_t), relu(k_s)>``. Rows of weights sum to tau, or less where the floor binds.

    Source: Zheng, 2025, The Linear Attention Resurrection in Vision Transformer, arXiv 2501.16182, and the author's
    code. Deviation: it may be causal.

    Args:
        q: queries ``[*B, T, N, H]``; not scaled.
        k: keys ``[*B, T, K, H]``.
        v: values ``[*B, T, K, V]``.
        temperature: ``tau``, ``[N]``, by default (and at first, where it is learned) 1 / sqrt(H).
        floor: of the divisor, an absolute number: of 256 normal tokens of 64 features it never binds, of short or
            sparse rows it does.
        causal: whether tokens see only those so far.
        run: form, chunk_size, state, return_state, segment_ids, lengths: as for ``attend``.

    Returns:
        As ``attend``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4))
    >>> print(linear.enhanced_linear_attention(x, x, x)[0, 0, 0])  # 1 / 2 of 32 / 100
    0.16
    """
    _validate.arrays(q, k, v)
    if floor <= 0:
        raise ValueError(f"floor: got {floor}, want a positive number: rows may sum to zero")
    heads = q.shape[-2]
    if temperature is not None and temperature.shape != (heads,):
        raise ValueError(f"temperature: got shape {temperature.shape}, want one number for each of N={heads} heads")
    tau = jnp.full((heads,), q.shape[-1] ** -0.5) if temperature is None else temperature
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    features, keys, values = (x.astype(dtype) for x in (jax.nn.relu(q), jax.nn.relu(k), v))
    found = attend(features, keys, jnp.concatenate([values, jnp.ones_like(values[..., :1])], -1), causal=causal, **run)
    sums, state = found if isinstance(found, tuple) else (found, None)
    tau = tau.reshape(*(1,) * (q.ndim - 2), heads, 1).astype(dtype)
    out = (tau * sums[..., :-1] / jnp.maximum(sums[..., -1:], floor)).astype(q.dtype)
    return out if state is None else (out, state)


def injective_attention(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    causal: bool = False,
    **run: Any,
) -> Outputs:
    """InLine attention: scores less their mean, plus 1/n,

        w_ij = (<q_i, k_j> - <q_i, mean k>) / (n sqrt(H)) + 1 / n,
        o_i = mean v + q_i^T (mean k v^T - mean k mean v^T) / sqrt(H).

    Rows sum to one and may be negative. Unlike weights that are divided by their sum, they differ for q and 3 q.

    Source: Han et al., 2024, Bridging the Divide: Reconsidering Softmax and Linear Attention, arXiv 2412.06590, and the
    authors' code. Deviation: the causal form is ours, row t that of the first t tokens; the state, and segments, too.

    Args:
        q: queries ``[*B, T, N, H]``.
        k: keys ``[*B, T, K, H]``.
        v: values ``[*B, T, K, V]``.
        causal: whether n, and all means, are of the tokens so far.
        run: form, chunk_size, state, return_state, segment_ids, lengths: as for ``attend``.

    Returns:
        As ``attend``.

    >>> import jax, jax.numpy as jnp
    >>> from attnjax import linear
    >>> q, k = jax.random.normal(jax.random.key(0), (2, 5, 1, 4))
    >>> print(linear.weights(q, k, linear.injective_attention).sum(-1).round(3))
    [[1. 1. 1. 1. 1.]]
    """
    _validate.arrays(q, k, v)
    dtype, heads = q.dtype, q.shape[-2]
    q, k, v = (x.astype(jnp.promote_types(dtype, jnp.float32)) for x in (q, k, v))
    one = lambda x: jnp.ones_like(x[..., :1])
    widen = lambda x: jnp.concatenate([x, one(x)], -1)
    # One state holds sums of k v^T, k, v and 1; each query reads the first two, and a constant the others.
    score = jnp.concatenate([q, jnp.zeros_like(one(q))], -1)
    constant = jnp.concatenate([jnp.zeros_like(q), one(q)], -1)
    readers = jnp.stack([score, constant], -2).reshape(*q.shape[:-2], 2 * heads, -1)
    found = attend(readers, widen(k), widen(v), causal=causal, **run)
    sums, state = found if isinstance(found, tuple) else (found, None)
    sums = sums.reshape(*q.shape[:-1], 2, -1)
    count = jnp.maximum(sums[..., 1, -1:], 1)  # of tokens after the last it is 0
    (products, keys), values = jnp.split(sums[..., 0, :] / count, [v.shape[-1]], -1), sums[..., 1, :-1] / count
    out = (values + (products - keys * values) * q.shape[-1] ** -0.5).astype(dtype)
    return out if state is None else (out, state)


def local_residual(x: Float[Array, "*B R C D"], kernel: Float[Array, "*B r c D"]) -> Float[Array, "*B R C D"]:
    """What InLine attention adds for each token of an image: a weighted sum of the values around it, by channel, with
    weights that depend on the image (a network's of the mean token). Outside of the image they are zero.

    Source: Han et al., 2024, Bridging the Divide, arXiv 2412.06590, and the authors' code, where r = c = 3.

    Args:
        x: values of all heads in rows and columns ``[*B, R, C, D]``.
        kernel: weights of each image ``[*B, r, c, D]``, r and c odd.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> print(linear.local_residual(jnp.ones((2, 3, 1)), jnp.ones((3, 3, 1)))[..., 0])
    [[4. 6. 4.]
     [4. 6. 4.]]
    """
    images = x.reshape(-1, *x.shape[-3:])
    return jax.vmap(_depthwise)(images, kernel.reshape(-1, *kernel.shape[-3:])).reshape(x.shape)


def local_concentration(
    x: Float[Array, "*B R C D"],
    kernels: Float[Array, "2 r c D"],
    biases: Float[Array, "2 D"],
    scale: Float[Array, " D"],
    shift: Float[Array, " D"],
) -> Float[Array, "*B R C D"]:
    """L2ViT's local concentration module, ``conv_2(scale gelu(conv_1(x)) + shift)``, by channel; to be added to what
    was normalized to give x.

    Source: Zheng, 2025, The Linear Attention Resurrection in Vision Transformer, arXiv 2501.16182, and the author's
    code, where r = c = 7. Deviation: batch normalization as it is after training, ``scale = weight / sqrt(var + eps)``
    and ``shift = bias - mean scale``.

    Args:
        x: tokens in rows and columns ``[*B, R, C, D]``.
        kernels: of both convolutions ``[2, r, c, D]``, r and c odd.
        biases: ``[2, D]``.
        scale: ``[D]``.
        shift: ``[D]``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x, kernels, biases = jnp.zeros((1, 3, 1)), jnp.ones((2, 1, 3, 1)), jnp.zeros((2, 1))
    >>> print(linear.local_concentration(x, kernels, biases, scale=jnp.ones(1), shift=jnp.ones(1))[0, :, 0])
    [2. 3. 2.]
    """
    images, wide = x.reshape(-1, *x.shape[-3:]), lambda y: y[None, None, None]
    first, second = (jax.vmap(_depthwise, (0, None)) for _ in range(2))
    hidden = jax.nn.gelu(first(images, kernels[0]) + wide(biases[0]), approximate=False)
    return (second(hidden * wide(scale) + wide(shift), kernels[1]) + wide(biases[1])).reshape(x.shape)


def _depthwise(x: Array, kernel: Array) -> Array:
    found = lax.conv_general_dilated(
        x[None], kernel[:, :, None], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )  # fmt: skip
    return found[0]


class Concentration(NamedTuple):
    """Of rows of weights.

    Attributes:
        mass: of the greatest weights.
        entropy: in nats.
    """

    mass: jax.Array
    entropy: jax.Array


def concentration(weights: Float[Array, "*A S"], count: int) -> Concentration:
    """How far each row of weights, divided by its sum, concentrates on a few keys.

    Source: Zheng, 2025, The Linear Attention Resurrection in Vision Transformer, arXiv 2501.16182, who misses it in
    linear attention.

    Args:
        weights: ``[*A, S]``, at least zero, some of each row positive.
        count: how many of the greatest are summed, 1 to S.

    Returns:
        Two arrays ``[*A]``.

    Raises:
        ValueError: a count out of range.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> print(linear.concentration(jnp.array([0.5, 0.25, 0.25]), 1).mass)
    0.5
    """
    if not 1 <= count <= weights.shape[-1]:
        raise ValueError(f"count: got {count}, want 1 to {weights.shape[-1]}, the number of keys")
    shares = weights / weights.sum(-1, keepdims=True)
    return Concentration(lax.top_k(shares, count)[0].sum(-1), jax.scipy.special.entr(shares).sum(-1))
