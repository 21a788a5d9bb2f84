"""Selective state spaces, and the attention that hides in them."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.linear import _validate
from attnjax.linear._attend import attend
from attnjax.linear._poles import Decay
from attnjax.linear._run import Form, Outputs


def state_space(
    c: Float[Array, "*B T N H"],
    b: Float[Array, "*B T K H"],
    x: Float[Array, "*B T K V"],
    step: Float[Array, "*B T K"],
    rate: Float[Array, " K"],
    skip: Float[Array, " K"] | None = None,
    **run: Any,
) -> Outputs:
    """A selective state space with one decay for each head (Mamba-2), ``S_t = exp(d_t A) S_{t-1} + d_t b_t x_t^T``,
    ``y_t = S_t^T c_t + D x_t``.

    Source: Dao and Gu, 2024, Transformers are SSMs, arXiv 2405.21060. Convolutions, gates and norms are the layer's.

    Args:
        c: readers ``[*B, T, N, H]`` (H is their state size).
        b: writers ``[*B, T, K, H]``.
        x: inputs ``[*B, T, K, V]``; with a skip N must be K.
        step: ``d > 0``, as ``softplus`` gives it.
        rate: ``A < 0``.
        skip: ``D``, or None.
        run: form, chunk_size, state, return_state, segment_ids, lengths: as for ``attend``.

    Returns:
        As ``attend``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4))
    >>> linear.state_space(x, x, x, jnp.ones((8, 2)), -jnp.ones(2)).shape
    (8, 2, 4)
    """
    decay = step * rate.reshape(*(1,) * (step.ndim - 1), -1)
    found = attend(c, b * step[..., None].astype(b.dtype), x, log_decay=decay, **run)
    if skip is None:
        return found
    if c.shape[-2] != x.shape[-2]:
        raise ValueError(f"skip: got N={c.shape[-2]} readers for K={x.shape[-2]} heads of inputs, want as many")
    direct = skip.reshape(*(1,) * (x.ndim - 2), -1, 1).astype(x.dtype) * x
    return (found[0] + direct, found[1]) if isinstance(found, tuple) else found + direct


def selective_state_space(
    c: Float[Array, "*B T H"],
    b: Float[Array, "*B T H"],
    x: Float[Array, "*B T D"],
    step: Float[Array, "*B T D"],
    rate: Float[Array, "D H"],
    skip: Float[Array, " D"] | None = None,
    form: Form = "scan",
    **run: Any,
) -> Any:
    """A selective state space with a decay for each channel and each of its H states (Mamba's S6),

        h_t = exp(d_t A) h_{t-1} + d_t b_t x_t,    y_t = <c_t, h_t> + D x_t,    for each channel of x.

    The states of a channel are one head with one value: every form costs as many states as tokens, channels and
    states, O(T D H). "scan" holds all of them at once; "recurrent" one token's, one after the other; "chunked" the
    weights of chunks, O(T D C), and pays only where C is not much above H.

    Source: Gu and Dao, 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, arXiv 2312.00752. The
    convolution, projections and the gate are the layer's.

    Args:
        c: readers, the same for all channels, ``[*B, T, H]``.
        b: writers, likewise.
        x: inputs ``[*B, T, D]``.
        step: ``d > 0``, as ``softplus`` gives it, ``[*B, T, D]``.
        rate: ``A < 0``, ``[D, H]``.
        skip: ``D``, or None.
        form: as for ``attend``.
        run: chunk_size, state, return_state, segment_ids, lengths: as for ``attend``.

    Returns:
        Outputs ``[*B, T, D]``, and the state if it is asked for.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2))
    >>> linear.selective_state_space(jnp.ones((8, 4)), jnp.ones((8, 4)), x, x, -jnp.ones((2, 4))).shape
    (8, 2)
    """
    q, k, decay = by_channel(c, b, step, rate)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    found = attend(q.astype(wide), k.astype(wide), x[..., None].astype(wide), log_decay=decay, form=form, **run)
    out, state = found if isinstance(found, tuple) else (found, None)
    out = out[..., 0].astype(x.dtype)
    if skip is not None:
        out = out + jnp.broadcast_to(skip.astype(x.dtype), x.shape) * x
    return out if state is None else (out, state)


def by_channel(c: Array, b: Array, step: Array, rate: Array) -> tuple[Array, Array, Array]:
    """Readers, writes and logs of decays of all channels ``[*B, T, D, H]``."""
    if rate.shape != (step.shape[-1], b.shape[-1]):
        raise ValueError(f"rate: got shape {rate.shape}, want [D, H], here {[step.shape[-1], b.shape[-1]]}")
    _validate.not_positive("rate", rate)
    decay = step[..., None] * jnp.broadcast_to(rate, (*step.shape, rate.shape[-1]))
    wide = lambda x: jnp.broadcast_to(x[..., None, :], decay.shape)
    return wide(c), step[..., None] * wide(b), decay


def hidden_attention(
    c: Float[Array, "*B T H"], b: Float[Array, "*B T H"], step: Float[Array, "*B T D"], rate: Float[Array, "D H"]
) -> Float[Array, "*B D T T"]:
    """The matrix of each channel with which ``selective_state_space`` multiplies its inputs,

        W_ij = sum_h c_ih exp(A_h (d_{j+1} + ... + d_i)) d_j b_jh    for j <= i.

    Its rows do not sum to one, and may be negative. A second scan, from the other end, adds
    ``jnp.flip(W, (-2, -1))`` of arrays in reverse order. O(D T^2) memory.

    Source: Ali et al., 2024, The Hidden Attention of Mamba Models, arXiv 2403.01590, and the authors' code (which needs
    O(T^3) time, in float16).

    Args:
        c: readers ``[*B, T, H]``.
        b: writers ``[*B, T, H]``.
        step: ``d > 0``, ``[*B, T, D]``.
        rate: ``A < 0``, ``[D, H]``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> one = jnp.ones((3, 1))
    >>> print(linear.hidden_attention(one, one, one, jnp.log(jnp.full((1, 1), 0.5)))[0])
    [[1.   0.   0.  ]
     [0.5  1.   0.  ]
     [0.25 0.5  1.  ]]
    """
    q, k, decay = by_channel(c, b, step, rate)
    *batch, length, channels, features = decay.shape
    flat = lambda x: jnp.moveaxis(x, -2, -3).reshape(-1, length, features)
    same = jnp.ones((length, length), bool)
    found = jax.vmap(lambda q, k, log: Decay(log).weights(q[None], k, "after", same)[0])(*map(flat, (q, k, decay)))
    return found.reshape(*batch, channels, length, length)


Sign = Literal["keep", "abs", "clip"]


def hidden_rollout(
    layers: Sequence[Float[Array, "*B D T T"]], sign: Sign = "keep", residual: float | int = 1.0
) -> Float[Array, "*B T T"]:
    """What each token takes from each at the bottom, by products of the layers' matrices,

        R = P_L ... P_1,    P_l = (mean_d W_l + r I) / its row sums.

    Source: Ali et al., 2024, The Hidden Attention of Mamba Models, arXiv 2403.01590, after Abnar and Zuidema, 2020,
    arXiv 2005.00928. The authors' code keeps signs: where a row sums to about zero, its quotient is then as large as
    you like; and weighs matrices by gradients before it, for their attribution.

    Args:
        layers: matrices of all channels, from the first layer to the last.
        sign: of each channel's entries: "keep" them, take "abs", or "clip" negative ones.
        residual: ``r``, what goes around the layer.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> print(linear.hidden_rollout([jnp.array([[[1.0, 0.0], [2.0, 1.0]]])] * 2))
    [[1.   0.  ]
     [0.75 0.25]]
    """
    if sign not in get_args(Sign):
        raise ValueError(f"sign: got {sign!r}, want one of {list(get_args(Sign))}")
    if not layers:
        raise ValueError("layers: got none, want at least one")
    change = {"keep": lambda x: x, "abs": jnp.abs, "clip": jax.nn.relu}[sign]

    def shares(matrix: Array) -> Array:
        mean = change(matrix).mean(-3)
        mean = mean + residual * jnp.broadcast_to(jnp.eye(mean.shape[-1], dtype=mean.dtype), mean.shape)
        return mean / mean.sum(-1, keepdims=True)

    found = shares(layers[0])
    for matrix in layers[1:]:
        found = shares(matrix) @ found
    return found
