"""Exponential moving averages of several decays for each channel."""

from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attnjax import _compat
from attnjax.linear import _validate
from attnjax.linear._attend import attend
from attnjax.linear._convolutions import long_convolution
from attnjax.linear._run import State

AverageForm = Literal["fourier", "scan", "recurrent", "chunked", "parallel"]
Averaged = Float[Array, "*B T D"] | tuple[Float[Array, "*B T D"], Float[Array, "*B D H"]]


def moving_average(
    x: Float[Array, "*B T D"],
    weight: Float[Array, "D H"],
    damping: Float[Array, "D H"],
    expand: Float[Array, "D H"],
    read: Float[Array, "D H"],
    *,
    form: AverageForm = "fourier",
    chunk_size: int = 64,
    state: Float[Array, "*B D H"] | None = None,
    return_state: bool = False,
    segment_ids: Int[Array | np.ndarray, "*#B T"] | None = None,
) -> Averaged:
    """Multi-dimensional damped exponential moving average: each channel is H averages of its own, read together,

        h_t = alpha (beta x_t) + (1 - alpha delta) h_{t-1},        y_t = sum_h eta_h h_th / sqrt(H).

    Forms, all of which give the same numbers up to rounding: "fourier" convolves with ``moving_average_kernel``, in
    O(T (log T + H) D) time, and cannot begin anew at segments; the others are forms of ``attend``, each channel a head
    with H features.

    Source: Ma et al., 2022, Mega, arXiv 2209.10655. Deviation: divided by ``sqrt(H)``, as the authors'
    code does. One with two directions is two of these, one of them over reversed tokens.

    Args:
        x: inputs ``[*B, T, D]``.
        weight: ``alpha [D, H]``, from 0 to 1.
        damping: ``delta [D, H]``, from 0 to 1.
        expand: ``beta [D, H]``.
        read: ``eta [D, H]``.
        form: see above.
        chunk_size: of "chunked".
        state: ``h`` before the first token, ``[*B, D, H]``; None for zeros.
        return_state: also return h after the last token.
        segment_ids: ``[*B, T]``: where they change, h begins anew.

    Returns:
        ``[*B, T, D]`` in x's dtype, and the state if it is asked for.

    Raises:
        ValueError: a shape does not fit, a known weight or damping is not from 0 to 1, or the form has no segments.

    Example:
        >>> import jax.numpy as jnp
        >>> from attnjax import linear
        >>> half, one = jnp.full((1, 1), 0.5), jnp.ones((1, 1))
        >>> print(linear.moving_average(jnp.ones((3, 1)), half, one, one, one, form="scan")[:, 0])
        [0.5   0.75  0.875]
    """
    _check(x, weight, damping, expand, read)
    _validate.choice("form", form, AverageForm)
    *batch, _, channels = x.shape
    wanted = (*batch, *weight.shape)
    if state is not None and state.shape != wanted:
        raise ValueError(f"state: got shape {state.shape}, want [*B, D, H] = {list(wanted)}")
    if form == "fourier":
        if segment_ids is not None:
            others = [name for name in get_args(AverageForm) if name != form]
            raise ValueError(f"form='fourier': a convolution by FFT has no segments, want one of {others}")
        return _by_fourier(x, weight, damping, expand, read, state, return_state)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    over_tokens = lambda y: jnp.broadcast_to(y.astype(dtype), (*x.shape, y.shape[-1]))
    out, last = attend(
        over_tokens(_scaled(read)), over_tokens(weight * expand), x.astype(dtype)[..., None],
        log_decay=jnp.expand_dims(_log_decay(weight, damping), tuple(range(x.ndim - 1))),
        form=form, chunk_size=chunk_size, state=None if state is None else State(state[..., None, :, None]),
        return_state=True, segment_ids=None if segment_ids is None else jnp.asarray(segment_ids),
    )  # fmt: skip
    out = out[..., 0].astype(x.dtype)
    return (out, last.value[..., 0, :, 0]) if return_state else out


def moving_average_kernel(
    length: int,
    weight: Float[Array, "D H"],
    damping: Float[Array, "D H"],
    expand: Float[Array, "D H"],
    read: Float[Array, "D H"],
) -> Float[Array, "L D"]:
    """What ``moving_average`` convolves with,

        kernel_j = sum_h eta_h alpha_h beta_h (1 - alpha_h delta_h)^j / sqrt(H).

    Source: Ma et al., 2022, Mega, arXiv 2209.10655.

    Args:
        length: L.
        weight, damping, expand, read: as for ``moving_average``.

    Returns:
        ``[L, D]``.

    Example:
        >>> import jax.numpy as jnp
        >>> from attnjax import linear
        >>> half, one = jnp.full((1, 1), 0.5), jnp.ones((1, 1))
        >>> print(linear.moving_average_kernel(3, half, one, one, one)[:, 0])
        [0.5   0.25  0.125]
    """
    amount = _scaled(read) * weight * expand
    return jnp.sum(amount[None] * _powers(jnp.arange(length), weight, damping), -1)


def _log_decay(weight: Array, damping: Array) -> Array:
    """``log(1 - alpha delta)``, of a decay of zero that of a rounding error: its own would be no number to add."""
    product = (weight * damping).astype(jnp.promote_types(weight.dtype, jnp.float32))
    return jnp.log1p(-jnp.minimum(product, 1 - jnp.finfo(product.dtype).eps))


def _powers(exponents: Array, weight: Array, damping: Array) -> Array:
    """``(1 - alpha delta)^j``, ``[L, D, H]``."""
    log = _log_decay(weight, damping)
    return jnp.exp(exponents.astype(log.dtype)[:, None, None] * log[None])


def _scaled(read: Array) -> Array:
    return read * read.shape[-1] ** -0.5


def _by_fourier(
    x: Array, weight: Array, damping: Array, expand: Array, read: Array, state: Array | None, return_state: bool
) -> Any:
    length, dtype = x.shape[-2], jnp.promote_types(x.dtype, jnp.float32)
    out = long_convolution(x, moving_average_kernel(length, weight, damping, expand, read))
    powers = lambda exponents: jnp.expand_dims(_powers(exponents, weight, damping), tuple(range(x.ndim - 2)))
    wide = lambda y: jnp.expand_dims(y, tuple(range(x.ndim - 1)))  # [D, H] beside [*B, T, D, H]
    # Sums of products, not products of matrices: as exact on every device.
    if state is not None:
        left = state.astype(dtype)[..., None, :, :] * powers(jnp.arange(1, length + 1)) * wide(_scaled(read))
        out = out + jnp.sum(left, -1).astype(x.dtype)
    if not return_state:
        return out
    written = x.astype(dtype)[..., None] * powers(jnp.arange(length - 1, -1, -1)) * wide(weight * expand)
    last = jnp.sum(written, -3)
    return out, last if state is None else last + state.astype(dtype) * powers(jnp.array([length]))[..., 0, :, :]


def _check(x: Array, *parameters: Array) -> None:
    names = ("weight", "damping", "expand", "read")
    shape = parameters[0].shape
    if len(shape) != 2 or shape[0] != x.shape[-1]:
        raise ValueError(f"weight: got shape {shape}, want [D, H], D={x.shape[-1]}")
    for name, given in zip(names, parameters, strict=True):
        if given.shape != shape:
            raise ValueError(f"{name}: got shape {given.shape}, want weight's, {shape}")
    for name, given in zip(names[:2], parameters[:2], strict=True):
        outside = np.empty(0) if _compat.is_traced(given) else np.asarray(given)
        outside = outside[~((outside >= 0) & (outside <= 1))]
        if outside.size:
            raise ValueError(f"{name}: got {float(outside[0])}, want numbers from 0 to 1, such as jax.nn.sigmoid(...)")
