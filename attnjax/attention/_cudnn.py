"""cuDNN's fused attention, through ``jax.nn``: forward and reverse; every other derivative is streamed."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import _compat
from attnjax.attention import masks, normalizers, scores
from attnjax.attention._tiles import Plan


@dataclasses.dataclass(frozen=True)
class Settings:
    """The part of a call that cuDNN is told."""

    scale: float
    causal: bool
    window: tuple[int, int] | None


def _static(value: Any) -> Any:
    """A concrete scalar as a Python number; None for a traced value or an array of several."""
    if _compat.is_traced(value) or np.ndim(value) != 0:
        return None
    return np.asarray(value).item()


def settings(request: Any) -> Settings | str:
    """How to ask cuDNN for this call, or why it cannot be asked."""
    scale = _static(request.scale)
    if scale is None:
        return "the scale must be a number known before tracing"
    if type(request.score) is not type(scores.dot_product()):
        return "only the plain scaled dot product is supported as a score"
    plain = normalizers.softmax()
    if jax.tree.structure(request.normalizer) != jax.tree.structure(plain):
        return "only plain softmax is supported as a normalizer"
    if request.stats:
        return "statistics are not available"
    if request.q.dtype not in (jnp.float16, jnp.bfloat16):
        return f"dtype {request.q.dtype} is not supported, float16 and bfloat16 are"
    widths = {request.q.shape[-1], request.v.shape[-1]}
    if len(widths) > 1 or max(widths) > 256 or max(widths) % 8:
        return f"head dimensions {sorted(widths)} are not supported: H = V, a multiple of 8, at most 256"
    return _mask_settings(request, scale)


def _mask_settings(request: Any, scale: float) -> Settings | str:
    mask = request.mask
    if mask is None:
        return Settings(scale, False, None)
    numbers = [_static(x) for x in jax.tree.leaves(mask)]
    if isinstance(mask, type(masks.causal())) and numbers == [0]:
        return Settings(scale, True, None)
    if isinstance(mask, type(masks.window(0))) and request.q.shape[-3] == request.k.shape[-3]:
        left, right = numbers
        if left is not None and right == 0:
            return Settings(scale, True, (left, 0))
    return "only causal() and, where T = S, window(left) with numbers known before tracing are supported as masks"


def refusal(request: Any) -> str | None:
    """Why cuDNN cannot run this call here, or None."""
    if jax.default_backend() != "gpu":
        return f"it needs an NVIDIA GPU and this is {jax.default_backend()}; use implementation='auto'"
    found = settings(request)
    return f"{found}; use implementation='blocks'" if isinstance(found, str) else None


@dataclasses.dataclass(frozen=True)
class Fused:
    """A fold by ``jax.nn.dot_product_attention``: its output and logsumexp are the sums taken at that log scale."""

    settings: Settings
    backend: str = "cudnn"

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array, residual: bool) -> Any:
        knobs: dict[str, Any] = {
            "scale": self.settings.scale,
            "is_causal": self.settings.causal,
            "local_window_size": self.settings.window,
            "implementation": self.backend,
            "return_residual": residual,
        }
        return jax.nn.dot_product_attention(q, k, v, **knobs)

    def run(self, q: jax.Array, k: jax.Array, v: jax.Array, *_: jax.Array) -> tuple[jax.Array, ...]:
        """Log scale (the logsumexp), sums of weighted values at it (the output), and masses at it (ones)."""
        output, lse = self.attend(_flat(q, 2), _flat(k, 1), _flat(v, 1), True)
        rows = q.shape[:-1]
        dtype = jnp.float32
        return lse.reshape(rows).astype(dtype), output.reshape(*rows, -1), jnp.ones(rows, dtype)

    def backward(self, scale: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, *rest: jax.Array):
        """Cotangents of q, k, v. That of the mass is implied: the masses sum to one at this scale."""
        total = rest[-2]
        flat = _flat(q, 2), _flat(k, 1), _flat(v, 1)
        _, pull = jax.vjp(lambda q, k, v: self.attend(q, k, v, False), *flat)
        found = pull(total.reshape(flat[0].shape[:-1] + (v.shape[-1],)).astype(q.dtype))
        return tuple(g.reshape(x.shape) for g, x in zip(found, (q, k, v), strict=True))

    def __call__(self, plan: Plan, kinds: jax.Array, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return self.run(*arrays)

    def tangent(self, live: tuple[int, ...]) -> "_Tangent | None":
        return _Tangent(self) if live == (0, 1, 2) else None

    def transpose(self, linear: tuple[int, ...], operands: int, complete: bool) -> None:
        return None

    def batch(self, axes: tuple[int | None, ...], plan: Plan) -> "_Batched":
        return _Batched(self, axes, (0,) * len(plan.outputs))

    def across(self) -> "Fused":
        return self  # jax.nn has told jit how


def _flat(x: jax.Array, heads: int) -> jax.Array:
    """``[*B, T, K, G, H]`` or ``[*B, S, K, H]`` as ``[B, length, heads, H]``."""
    lead = x.ndim - (4 if heads == 2 else 3)
    points = int(np.prod(x.shape[:lead]))
    return x.reshape(points, x.shape[lead], -1, x.shape[-1])


@dataclasses.dataclass(frozen=True)
class _Tangent:
    """Tangents of q, k and v are streamed; their transpose is the backward pass."""

    fused: Fused

    def __call__(self, plan: Plan, kinds: jax.Array, arrays: Sequence[jax.Array]) -> None:
        return None

    def tangent(self, live: tuple[int, ...]) -> None:
        return None

    def transpose(self, linear: tuple[int, ...], operands: int, complete: bool) -> "_Backward | None":
        return _Backward(self.fused) if complete and linear == tuple(range(operands - 3, operands)) else None

    def batch(self, axes: tuple[int | None, ...], plan: Plan) -> "_Batched":
        return _Batched(self, axes, (0,) * len(plan.outputs))

    def across(self) -> "_Tangent":
        return self  # jax.nn has told jit how


@dataclasses.dataclass(frozen=True)
class _Backward:
    """Cotangents of q, k and v."""

    fused: Fused

    def __call__(self, plan: Plan, kinds: jax.Array, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        return self.fused.backward(*arrays)

    def tangent(self, live: tuple[int, ...]) -> None:
        return None

    def transpose(self, linear: tuple[int, ...], operands: int, complete: bool) -> None:
        return None

    def batch(self, axes: tuple[int | None, ...], plan: Plan) -> "_Batched":
        return _Batched(self, axes, (0,) * len(plan.outputs))

    def across(self) -> "_Backward":
        return self  # jax.nn has told jit how


@dataclasses.dataclass(frozen=True)
class _Batched:
    """One of the above under ``vmap``; results without a mapped axis are summed over it."""

    inner: Any
    in_axes: tuple[int | None, ...]
    out_axes: tuple[int | None, ...]

    def __call__(self, plan: Plan, kinds: jax.Array, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...] | None:
        outs = jax.vmap(lambda *arrays: self.inner(plan, kinds, arrays), in_axes=self.in_axes)(*arrays)
        if outs is None:
            return None
        return tuple(o.sum(0) if a is None else jnp.moveaxis(o, 0, a) for o, a in zip(outs, self.out_axes, strict=True))

    def tangent(self, live: tuple[int, ...]) -> "_Batched | None":
        inner = self.inner.tangent(live)
        axes = (0, *self.in_axes, *(self.in_axes[i] for i in live))  # the log scale comes first
        return None if inner is None else _Batched(inner, axes, self.out_axes[1:])

    def transpose(self, linear: tuple[int, ...], operands: int, complete: bool) -> "_Batched | None":
        inner = self.inner.transpose(linear, operands, complete)
        known = tuple(a for i, a in enumerate(self.in_axes) if i not in linear)
        moving = tuple(self.in_axes[i] for i in linear)
        return None if inner is None else _Batched(inner, (*known, *self.out_axes), moving)

    def batch(self, axes: tuple[int | None, ...], plan: Plan) -> "_Batched":
        return _Batched(self, axes, (0,) * len(plan.outputs))

    def across(self) -> "_Batched":
        return self  # jax.nn has told jit how


def fused(request: Any, backend: str = "cudnn") -> Fused:
    """The fused fold of a call that ``refusal`` lets through."""
    found = settings(request)
    assert isinstance(found, Settings)
    return Fused(found, backend)
