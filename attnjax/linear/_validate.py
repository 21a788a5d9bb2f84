"""Checks of arguments: every message names the argument, what was got, and what is wanted."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import _compat
from attnjax.attention import _validate as attention


def arrays(q: Any, k: Any, v: Any) -> None:
    """Ranks, dtypes and shapes of queries, keys and values.

    Raises:
        TypeError: an array is not floating point, or the dtypes differ.
        ValueError: a rank or a size does not fit.
    """
    attention.arrays(q, k, v)
    if q.shape[-3] != k.shape[-3]:
        raise ValueError(f"k: got {k.shape[-3]} tokens, want q's, T={q.shape[-3]}: each token has a query and a key")


def by_token(name: str, x: Any, k: jax.Array, features: bool) -> jax.Array | None:
    """Numbers by token and head, or feature of a head, at least float32 and of full shape.

    Raises:
        TypeError: it is not a floating-point array.
        ValueError: its shape does not broadcast.
    """
    if x is None:
        return None
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: got {getattr(x, 'dtype', type(x).__name__)}, want a floating-point array")
    shape = k.shape if features and x.ndim == k.ndim else k.shape[:-1]
    wanted = f"[*B, T, K]{' or [*B, T, K, H]' if features else ''}, here {list(k.shape[:-1])}" + (
        f" or {list(k.shape)}" if features else ""
    )
    if x.ndim != len(shape) or any(a not in (1, b) for a, b in zip(x.shape, shape, strict=True)):
        raise ValueError(f"{name}: got shape {tuple(x.shape)}, want {wanted}, or 1 along any axis")
    return jnp.broadcast_to(x.astype(jnp.promote_types(x.dtype, jnp.float32)), shape)


def not_positive(name: str, x: Any) -> None:
    """Known logs of decays are at most zero.

    Raises:
        ValueError: one is positive, or not a number.
    """
    if x is not None and not _compat.is_traced(x) and not np.all(np.asarray(x) <= 0):
        worst = float(np.max(np.asarray(x)))
        raise ValueError(
            f"{name}: got {worst}, want at most 0 (it is the log of a decay: jax.nn.log_sigmoid(...), jnp.log1p(-...))"
        )


def not_negative(name: str, x: Any) -> None:
    """Known strengths are at least zero.

    Raises:
        ValueError: one is negative, or not a number.
    """
    if x is not None and not _compat.is_traced(x) and not np.all(np.asarray(x) >= 0):
        raise ValueError(f"{name}: got {float(np.min(np.asarray(x)))}, want at least 0")


def choice(name: str, value: Any, allowed: Any) -> None:
    """One of the values of a ``Literal``.

    Raises:
        ValueError: it is none of them.
    """
    if value not in get_args(allowed):
        raise ValueError(f"{name}: got {value!r}, want one of {list(get_args(allowed))}")


def chunk_size(size: Any) -> None:
    """A positive whole number.

    Raises:
        ValueError: it is none.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"chunk_size: got {size!r}, want a positive int; 64 to 128 are fast")


def by_batch(name: str, x: Any, shape: tuple[int, ...], letters: str) -> jax.Array | None:
    """Whole numbers, of full shape.

    Raises:
        TypeError: they are not integers.
        ValueError: the shape does not broadcast.
    """
    if x is None:
        return None
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name}: got {x.dtype}, want integers")
    if x.ndim != len(shape) or any(a not in (1, b) for a, b in zip(x.shape, shape, strict=True)):
        raise ValueError(
            f"{name}: got shape {tuple(x.shape)}, want {letters}, here {list(shape)}, or 1 along a batch axis"
        )
    return jnp.broadcast_to(x, shape)


def state(given: Any, shape: tuple[int, ...], scaled: bool) -> None:
    """A state of the right shape.

    Raises:
        ValueError: it has another.
    """
    value, scale = getattr(given, "value", None), getattr(given, "log_scale", None)
    if value is None or tuple(value.shape) != shape:
        got = f"value of shape {tuple(value.shape)}" if value is not None else type(given).__name__
        raise ValueError(
            f"state: got {got}, want the State that the same call returned, value [*B, K, P, H, V] = {list(shape)} "
            f"(normalize adds a column to V)"
        )
    wanted = (*shape[:-3], shape[-2]) if scaled else None
    got = None if scale is None else tuple(scale.shape)
    if got != wanted:
        raise ValueError(f"state: got log_scale of shape {got}, want {wanted} (it is there if log_write is given)")
