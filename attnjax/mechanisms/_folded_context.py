"""Segments one after another, each beside what is left of those before."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from attnjax.attention import attend, masks
from attnjax.linear import _validate

Remember = Literal["outputs", "inputs"]


class FoldedContext(NamedTuple):
    """Projections of ``folded_context``.

    Attributes:
        query: ``[D, N, H]``.
        key: ``[D, K, H]``.
        value: ``[D, K, V]``.
        out: ``[N, V, D]``.
    """

    query: Float[Array, "D N H"]
    key: Float[Array, "D K H"]
    value: Float[Array, "D K V"]
    out: Float[Array, "N V D"]

    @classmethod
    def init(cls, key: Key[Array, ""], channels: int, heads: int, width: int) -> "FoldedContext":
        """Normal, of variance one over the number of inputs; as many key/value heads, all of one width.

        Args:
            key: random key.
            channels: D.
            heads: N = K.
            width: H = V.
        """
        keys = jax.random.split(key, 4)
        inward = lambda i: jax.random.normal(keys[i], (channels, heads, width)) * channels**-0.5
        outward = jax.random.normal(keys[3], (heads, width, channels)) * (heads * width) ** -0.5
        return cls(inward(0), inward(1), inward(2), outward)


class Memory(NamedTuple):
    """What is left of the segments so far.

    Attributes:
        states: ``[*B, R, D]``, the latest last.
        filled: how many of them there are yet, up to R.
    """

    states: Float[Array, "*B R D"]
    filled: Int[Array, ""]


def folded_context(
    x: Float[Array, "*B T D"],
    parameters: FoldedContext,
    *,
    segment: int,
    memory: int,
    pool: int = 1,
    remember: Remember = "outputs",
    state: Memory | None = None,
    return_state: bool = False,
) -> Any:
    """Causal attention by segments, whose keys and values are those of a memory and of the segment itself,

        y_s = x_s + W_o attend(W_q x_s, W_k [m_{s-1}; x_s], W_v [m_{s-1}; x_s]),
        m_s = last R of [m_{s-1}; pool(y_s)].

    What this layer has made of a segment is what it sees of it later, so that each token depends on all before it, at
    constant memory: with ``remember="inputs"``, where m holds ``pool(x_s)`` as in Transformer-XL, it is the R pools
    before its segment, and no others, that a layer adds.

    With ``memory=0`` this is attention in blocks; remembering inputs, with ``memory >= T``, it is causal attention.

    Source: Paeng et al., 2024, Folded Context Condensation in Path Integral Formalism for Infinite Context
    Transformers, arXiv 2405.04620; inputs: Dai et al., 2019, Transformer-XL, arXiv 1901.02860. Deviation: from its
    abstract; how states are condensed, by the mean, and all else is a choice made here. Positions and norms are the
    caller's.

    Args:
        x: token states ``[*B, T, D]``.
        parameters: see ``FoldedContext``.
        segment: tokens in a segment; need not divide T.
        memory: R, states that are kept.
        pool: how many consecutive states are averaged to make one of them; divides ``segment``.
        remember: see above.
        state: what came before; None for nothing.
        return_state: also return the memory after the last segment, to go on from; T must be whole segments.

    Returns:
        ``[*B, T, D]``, and a ``Memory`` if it is asked for.

    Raises:
        ValueError: a shape or size does not fit.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from attnjax import mechanisms
        >>> parameters = mechanisms.FoldedContext.init(jax.random.key(0), channels=8, heads=2, width=4)
        >>> x = jnp.ones((24, 8))
        >>> y, state = mechanisms.folded_context(x, parameters, segment=6, memory=2, return_state=True)
        >>> y.shape, state.states.shape
        ((24, 8), (2, 8))
    """
    _check(x, parameters, segment, memory, pool, state)
    _validate.choice("remember", remember, Remember)
    *batch, length, channels = x.shape
    whole = length // segment
    if return_state and length % segment:
        raise ValueError(
            f"return_state: got T={length}, want a multiple of segment={segment}: a memory is of whole ones"
        )
    state = Memory(jnp.zeros((*batch, memory, channels), x.dtype), jnp.int32(0)) if state is None else state

    def step(state: Memory, part: Array) -> tuple[Memory, Array]:
        out = _attend(parameters, state, part)
        left = (out if remember == "outputs" else part).reshape(*batch, segment // pool, pool, channels).mean(-2)
        states = lax.slice_in_dim(jnp.concatenate([state.states, left], -2), segment // pool, None, axis=-2)
        return Memory(states, jnp.minimum(state.filled + segment // pool, memory)), out

    parts = jnp.moveaxis(x[..., : whole * segment, :].reshape(*batch, whole, segment, channels), -3, 0)
    state, out = lax.scan(step, state, parts)
    out = jnp.moveaxis(out, 0, -3).reshape(*batch, whole * segment, channels)
    if length % segment:
        out = jnp.concatenate([out, _attend(parameters, state, x[..., whole * segment :, :])], -2)
    return (out, state) if return_state else out


def _attend(parameters: FoldedContext, state: Memory, part: Array) -> Array:
    """Outputs of one segment."""
    slots = state.states.shape[-2]
    context = jnp.concatenate([state.states, part], -2)
    of = lambda y, weight: jnp.einsum("...td,dnh->...tnh", y, weight)
    q, k, v = of(part, parameters.query), of(context, parameters.key), of(context, parameters.value)
    # Slots fill from the end: the first ones are empty until there are enough states.
    seen = attend(q, k, v, mask=masks.causal(offset=slots) & ~masks.sinks(slots - state.filled))
    return part + jnp.einsum("...tnv,nvd->...td", seen, parameters.out).astype(part.dtype)


def _check(x: Array, parameters: FoldedContext, segment: int, memory: int, pool: int, state: Memory | None) -> None:
    if segment < 1 or memory < 0 or pool < 1 or segment % pool:
        raise ValueError(
            f"folded_context(segment={segment}, memory={memory}, pool={pool}): want at least 1 token in a segment, a "
            f"memory of at least 0 states, and a pool that divides segment"
        )
    if parameters.query.shape[0] != x.shape[-1]:
        raise ValueError(f"parameters: got D={parameters.query.shape[0]} channels, want x's, D={x.shape[-1]}")
    wanted = (*x.shape[:-2], memory, x.shape[-1])
    if state is not None and state.states.shape != wanted:
        raise ValueError(f"state: got states of shape {state.states.shape}, want [*B, R, D] = {list(wanted)}")
