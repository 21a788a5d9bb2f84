"""Checks of arguments: every message names the argument, what was got, and what is wanted."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from attnjax.attention import scores
from attnjax.attention.masks import Mask
from attnjax.attention.normalizers import Normalizer, softmax
from attnjax.attention.scores import Score

IMPLEMENTATIONS = ("auto", "dense", "rows", "blocks", "cudnn", "pallas")


def arrays(q: Any, k: Any, v: Any | None) -> None:
    """Ranks, dtypes and shapes of queries, keys and values.

    Raises:
        TypeError: an array is not floating point, or the dtypes differ.
        ValueError: a rank or a size does not fit.
    """
    given = {"q": q, "k": k} | ({} if v is None else {"v": v})
    for name, x in given.items():
        if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
            got = f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else type(x).__name__
            raise TypeError(f"{name}: got {got}, want a floating-point array; convert it, e.g. {name}.astype(float32)")
        if x.ndim < 3:
            raise ValueError(
                f"{name}: got shape {x.shape}, want [*B, {'T, N, H' if name == 'q' else 'S, K, H or V'}] (at least 3 "
                f"axes: length, heads, width); add axes of size 1 where there is one head"
            )
        if 0 in x.shape:
            raise ValueError(f"{name}: got shape {x.shape}, want every axis at least 1")
    for name, x in given.items():
        if x.ndim != q.ndim or x.shape[:-3] != q.shape[:-3]:
            raise ValueError(f"{name}: got batch shape {x.shape[:-3]}, want q's, {q.shape[:-3]}; broadcast one of them")
        if x.dtype != q.dtype:
            raise TypeError(f"{name}: got {x.dtype}, want q's dtype, {q.dtype}; convert one of them")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"k: got head dimension H={k.shape[-1]}, want q's, {q.shape[-1]}")
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(
            f"k: got K={k.shape[-2]} key/value heads, want a divisor of q's N={q.shape[-2]} query heads (grouped-query "
            f"attention shares each key/value head among N / K query heads)"
        )
    if v is not None and v.shape[-3:-1] != k.shape[-3:-1]:
        raise ValueError(f"v: got [S, K]={list(v.shape[-3:-1])}, want k's, {list(k.shape[-3:-1])}")


def mask_of(mask: Any) -> Mask | None:
    """The mask, checked."""
    if mask is None or isinstance(mask, Mask):
        return mask
    raise TypeError(
        f"mask: got {type(mask).__name__}, want a mask from attnjax.masks (causal(), window(...), ...) or None; wrap a "
        f"Boolean array, True where visible, in masks.from_array()"
    )


def score_of(score: Any) -> Score:
    """The score as a chain that starts from queries and keys."""
    if score is None:
        return scores.dot_product()
    if not isinstance(score, Score):
        raise TypeError(
            f"score: got {type(score).__name__}, want a score from attnjax.scores; wrap a function in "
            f"scores.from_function()"
        )
    return score if score.starts else scores.dot_product() >> score


def normalizer_of(normalizer: Any) -> Normalizer:
    """The normalizer; softmax by default."""
    if normalizer is None:
        return softmax()
    if not isinstance(normalizer, Normalizer):
        raise TypeError(
            f"normalizer: got {type(normalizer).__name__}, want one from attnjax.normalizers (softmax(), ...)"
        )
    return normalizer


def scale_of(scale: Any, score: Score, width: int) -> Any:
    """The scale; ``1 / sqrt(H)`` by default."""
    if not score.uses_scale:
        if scale is not None:
            raise ValueError(f"scale={scale}: this score does not use a scale; leave it out and scale inside the score")
        return 1.0
    if scale is None:
        return 1 / np.sqrt(width).item()
    if jnp.ndim(scale) != 0:
        raise ValueError(
            f"scale: got shape {jnp.shape(scale)}, want a scalar; for one per head multiply in scores.from_function()"
        )
    if isinstance(scale, (bool, str)):
        raise TypeError(f"scale: got {scale!r}, want a number or None for 1/sqrt(H)")
    if isinstance(scale, (int, float, np.number)) and not (scale != 0 and np.isfinite(scale)):
        raise ValueError(
            f"scale={scale}: want a finite number other than 0 (every score would be the same); None is 1/sqrt(H)"
        )
    return scale
