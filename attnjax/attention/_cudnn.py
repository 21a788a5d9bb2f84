"""cuDNN's fused attention, through ``jax.nn``: forward and reverse; every other derivative is streamed."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import _compat
from attnjax.attention import masks, normalizers, scores
from attnjax.attention._tiles import Kernel


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

    def kernel(self) -> Kernel:
        return Kernel(self.run, (0, 1, 2), self.backward)

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array, residual: bool) -> Any:
        knobs: dict[str, Any] = {
            "scale": self.settings.scale,
            "is_causal": self.settings.causal,
            "local_window_size": self.settings.window,
            "implementation": self.backend,
            "return_residual": residual,
        }
        return jax.nn.dot_product_attention(q, k, v, **knobs)

    def _flat(self, x: jax.Array, heads: int) -> jax.Array:
        """``[*B, T, K, G, H]`` or ``[*B, S, K, H]`` as ``[B, length, heads, H]``."""
        lead = x.ndim - (4 if heads == 2 else 3)
        points = int(np.prod(x.shape[:lead]))
        return x.reshape(points, x.shape[lead], -1, x.shape[-1])

    def run(self, q: jax.Array, k: jax.Array, v: jax.Array, *_: jax.Array) -> tuple[jax.Array, ...]:
        """Log scale (the logsumexp), sums of weighted values at it (the output), and masses at it (ones)."""
        output, lse = self._attend(self._flat(q, 2), self._flat(k, 1), self._flat(v, 1), True)
        rows = q.shape[:-1]
        dtype = jnp.float32
        return lse.reshape(rows).astype(dtype), output.reshape(*rows, -1).astype(dtype), jnp.ones(rows, dtype)

    def backward(self, scale: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, *rest: jax.Array):
        """Cotangents of q, k, v. That of the mass is implied: the masses sum to one at this scale."""
        total = rest[-2]
        flat = self._flat(q, 2), self._flat(k, 1), self._flat(v, 1)
        _, pull = jax.vjp(lambda q, k, v: self._attend(q, k, v, False), *flat)
        found = pull(total.reshape(flat[0].shape[:-1] + (v.shape[-1],)).astype(q.dtype))
        return tuple(g.reshape(x.shape) for g, x in zip(found, (q, k, v), strict=True))


def fused(request: Any, backend: str = "cudnn") -> Fused:
    """The fused fold of a call that ``refusal`` lets through."""
    found = settings(request)
    assert isinstance(found, Settings)
    return Fused(found, backend)
