"""Rotary position encoding."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Real


def rotary(
    x: Float[Array, "*B T N H"], positions: Real[Array, "..."], *, base: float = 10000.0
) -> Float[Array, "*B T N H"]:
    """Rotate each pair of features of ``x`` by an angle proportional to its position.

    With ``theta_i = base**(-2 i / H)`` for ``i = 0 .. H/2 - 1`` and ``m`` the position,

        (y_i, y_{i + H/2}) = R(m theta_i) (x_i, x_{i + H/2}),    R(a) = [[cos a, -sin a], [sin a, cos a]].

    Queries and keys rotated this way have ``<y_m, y_n>`` depend on ``m - n`` only. Position 0 is left as it is.

    Args:
        x: queries or keys, with an even head dimension H.
        positions: position of each row, ``[T]`` or ``[*B, T]`` (batch axes may be 1), in tokens; integers or any reals.
        base: wavelength scale, > 0; wavelengths run from 2 pi to nearly 2 pi base tokens.

    Returns:
        The rotated array, in the shape and dtype of ``x``; angles are computed in float32 (float64 for float64 ``x``).

    Raises:
        ValueError: if H is odd, ``base`` is not positive, or ``positions`` does not end in ``x``'s T.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones((3, 1, 2))
        >>> [round(float(v), 4) for v in rotary(x, jnp.arange(3))[1, 0]]  # cos 1 - sin 1, cos 1 + sin 1
        [-0.3012, 1.3818]

    Source: Su, Lu, Pan, Murtadha, Wen, Liu, 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding",
        Eq. (15), arXiv:2104.09864.
    Deviation: feature i is paired with i + H/2 (half-split); the paper pairs 2i with 2i + 1. The two differ by a
        fixed permutation of the features, which learned projections absorb.
    """
    _check(x, positions, base)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    half = x.shape[-1] // 2
    theta = jnp.asarray(base, dtype) ** (-jnp.arange(half, dtype=dtype) / half)
    at = positions.astype(dtype).reshape((1,) * (x.ndim - 2 - positions.ndim) + positions.shape)
    angle = at[..., None, None] * theta.reshape((1,) * (x.ndim - 1) + (half,))  # [*B, T, 1, H/2]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = x[..., :half].astype(dtype), x[..., half:].astype(dtype)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)


def _check(x: Array, positions: Array, base: float) -> None:
    if x.ndim < 3:
        raise ValueError(f"x: got shape {x.shape}, wanted [*B, T, N, H] (at least three axes).")
    if x.shape[-1] % 2:
        raise ValueError(f"x: got head dimension {x.shape[-1]}, wanted an even number; features rotate in pairs.")
    if not base > 0:
        raise ValueError(f"base: got {base}, wanted a positive number such as 10000.")
    if positions.ndim < 1 or positions.shape[-1] != x.shape[-3] or positions.ndim > x.ndim - 2:
        raise ValueError(
            f"positions: got shape {positions.shape}, wanted [T] or [*B, T] with T = {x.shape[-3]} "
            f"for x of shape {x.shape}."
        )
