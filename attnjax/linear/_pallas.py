"""Chunks by the kernels of ``pallas_kernels``."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from attnjax.linear._forms import Reads, Tokens
from attnjax.linear._poles import Decay, Keep
from attnjax.linear._step import Chunk, Kind, step
from attnjax.linear._walk import Route, trace, walk
from pallas_kernels import Target
from pallas_kernels import linear as kernels


@dataclasses.dataclass(frozen=True)
class Fused:
    """Runs a walk in a kernel.

    Attributes:
        target: what it is compiled for.
        required: whether a walk that no kernel runs is an error; its derivatives are a loop instead.
    """

    target: Target
    required: bool = True

    def __call__(self, route: Route, arrays: Sequence[jax.Array]) -> list[jax.Array] | None:
        try:
            return kernels.walk(route, arrays, self.target)
        except kernels.Unsupported as error:
            if self.required:
                raise NotImplementedError(f"form='pallas': no kernel runs {error}; use form='chunked'") from error
            return None

    def derived(self) -> "Fused":
        return Fused(self.target, required=False)


def chunked(
    tokens: Tokens, state: jax.Array, reads: Reads, size: int, segmented: bool, target: Target
) -> tuple[jax.Array, jax.Array]:
    """``_forms.chunked`` in a kernel.

    Args:
        tokens: of one head.
        state: ``[1, H, V]``.
        reads: when the state is read.
        size: C, 16 times a power of two.
        segmented: whether any segment starts.
        target: what is compiled for.

    Returns:
        Outputs ``[T, G, V]`` and the state ``[1, H, V]`` after the last token.
    """
    q, k, v, poles, beta, start = tokens
    log = poles.log if isinstance(poles, Decay) else None
    length, groups = q.shape[:2]
    chunks = -(-length // size)
    assert isinstance(poles, Keep | Decay)

    def cut(x: jax.Array) -> jax.Array:
        """``[T, ...]`` to matrices of chunks; what is added writes nothing and forgets nothing."""
        x = jnp.pad(x, [(0, chunks * size - length)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(chunks, *((1, size) if x.ndim == 1 else (size, *x.shape[1:])))

    numbers = None if log is None else log.astype(jnp.float32)
    flags = start.astype(jnp.float32) if segmented else None
    maybe = lambda x: None if x is None else cut(x)
    heads = tuple(cut(q[:, g]) for g in range(groups))
    parts = Chunk(heads, cut(k), cut(v), maybe(numbers), maybe(beta), maybe(flags))
    leaves, structure = jax.tree.flatten(parts)
    by = None if log is None else "token" if log.ndim == 1 else "feature"
    kind = Kind(groups, by, beta is not None, segmented, reads)

    def one(state: jax.Array, *arrays: jax.Array) -> list[jax.Array]:
        state, out = step(kind, state, jax.tree.unflatten(structure, arrays))
        return [state, *out]

    made = trace(one, [state[0]], [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in leaves])
    last, *out = walk(Route(made, executor=Fused(target)), [state[0], *leaves])
    return jnp.stack([x.reshape(chunks * size, -1)[:length] for x in out], 1), last[None]
