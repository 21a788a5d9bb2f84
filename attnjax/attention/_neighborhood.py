"""Neighborhoods on a grid: the predicate of ``masks.neighborhood``."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Neighborhood:
    """A validated neighborhood; every field has one entry for each dimension of the grid."""

    shape: tuple[int, ...]
    window: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    causal: tuple[bool, ...]

    @classmethod
    def checked(cls, shape: Any, window: Any, stride: Any, dilation: Any, causal: Any) -> "Neighborhood":
        """Spread single numbers over the dimensions and refuse what does not fit."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not 1 <= len(shape) <= 3 or any(n < 1 for n in shape):
            raise ValueError(f"neighborhood(shape={shape}): want 1 to 3 positive lengths")

        def spread(name: str, value: Any) -> tuple:
            values = tuple(value) if isinstance(value, Sequence) else (value,) * len(shape)
            if len(values) != len(shape):
                raise ValueError(f"neighborhood({name}={value}): want one number or {len(shape)}, as shape={shape} has")
            return values

        made = cls(
            shape=shape,
            window=spread("window", window),
            stride=spread("stride", stride),
            dilation=spread("dilation", dilation),
            causal=spread("causal", causal),
        )
        for length, w, st, d in zip(made.shape, made.window, made.stride, made.dilation, strict=True):
            if d < 1 or w < 1 or w * d > length:
                raise ValueError(
                    f"neighborhood(window={w}, dilation={d}): want at least 1 each and window * dilation <= {length}, "
                    f"the length of that dimension of shape={shape}"
                )
            if not 1 <= st <= w:
                raise ValueError(f"neighborhood(stride={st}): want 1 <= stride <= window={w}")
        return made

    def visible(self, t: Int[Array, "bq 1"], s: Int[Array, "1 bk"]) -> Bool[Array, "bq bk"]:
        """Whether key ``s`` is in the neighborhood of query ``t`` along every dimension."""
        inside = None
        later = 1
        for axis in reversed(range(len(self.shape))):
            length = self.shape[axis]
            i, j = (t // later) % length, (s // later) % length
            here = self._along(axis, i, j)
            inside = here if inside is None else inside & here
            later *= length
        return inside  # pyright: ignore[reportReturnType]

    def _along(self, axis: int, i, j):
        window, stride, d = self.window[axis], self.stride[axis], self.dilation[axis]
        # One residue class of the dilation is a line of its own, of this many points.
        residue, point, key = i % d, i // d, j // d
        points = (self.shape[axis] - residue + d - 1) // d
        if self.causal[axis]:
            leader = jnp.minimum((point // stride) * stride + stride - 1, points - 1)
            near = (key <= point) & (key > leader - window)
        else:
            leader = jnp.minimum((point // stride) * stride + stride // 2, points - 1)
            start = jnp.maximum(jnp.minimum(leader - window // 2, points - window), 0)
            near = (key >= start) & (key < start + window)
        return near & (j % d == residue)
