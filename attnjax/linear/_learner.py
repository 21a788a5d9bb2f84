"""One head of a memory that is trained while it is read.

    Z_t = eta_t Z_{t-1} - theta_t grad l_t(W),    A_t = (1 - alpha_t) A_{t-1} + Z_t,    W_t = image(A_t),

read by ``o_t = apply(W_t, q_t)``. In a chunk all gradients are taken at the W before it (at the initial one in a
segment that began inside it), and what is left is linear in (A, Z): two prefix scans over a pytree.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Apply = Callable[[Any, jax.Array], jax.Array]


class Rule(NamedTuple):
    """What is learned, and how; hashable, for a program is compiled for each.

    Attributes:
        apply: ``(parameters, [H]) -> [V]``, the memory.
        pull: ``(read [V], value [V], threshold []) -> [V]``, the gradient of the loss with respect to what is read.
        image: ``A -> W``, the parameters of what is descended in.
    """

    apply: Apply
    pull: Callable[[jax.Array, jax.Array, Any], jax.Array]
    image: Callable[[Any], Any]


def error(read: jax.Array, value: jax.Array, threshold: Any = None) -> jax.Array:
    """The gradient of half the squared error."""
    return read - value


def identity(tree: Any) -> Any:
    """Parameters are what is descended in."""
    return tree


class Tokens(NamedTuple):
    """What happens at each token of a head.

    Attributes:
        q: ``[T, G, H]``.
        k: ``[T, H]``.
        v: ``[T, V]``.
        rate: ``[T]``.
        momentum: ``[T]`` or None.
        forget: ``[T]`` or None.
        threshold: ``[T]`` or None: of the pull.
        shrink: ``[T]`` or None: how far parameters are moved towards zero after the step.
        start: whether a token starts a segment, ``[T]``, or None where none does.
        live: whether it is stored, ``[T]``.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    rate: jax.Array
    momentum: jax.Array | None
    forget: jax.Array | None
    threshold: jax.Array | None
    shrink: jax.Array | None
    start: jax.Array | None
    live: jax.Array


@functools.partial(jax.jit, static_argnums=(3, 4))
def all_heads(tokens: Tokens, initial: Any, state: Any, rule: Rule, size: int) -> tuple[jax.Array, Any]:
    """Heads along a first axis; outputs ``[B K, T, G, V]`` and the state (A, Z) after the last token."""
    return jax.vmap(lambda tokens, initial, state: _one_head(tokens, initial, state, rule, size))(
        tokens, initial, state
    )


def _one_head(tokens: Tokens, initial: Any, state: Any, rule: Rule, size: int) -> tuple[jax.Array, Any]:
    length = len(tokens.k)
    padded = lambda x: jnp.pad(x, [(0, -length % size)] + [(0, 0)] * (x.ndim - 1))  # nothing more is live
    chunks = jax.tree.map(lambda x: padded(x).reshape(-1, size, *x.shape[1:]), tokens)
    step = jax.checkpoint(lambda state, chunk: _chunk(state, chunk, initial, rule), prevent_cse=False)
    state, out = lax.scan(step, state, chunks)
    return out.reshape(-1, *out.shape[2:])[:length], state


def _chunk(state: Any, tokens: Tokens, initial: Any, rule: Rule) -> tuple[Any, jax.Array]:
    before, speed = state
    live = tokens.live
    keep = jnp.ones_like(tokens.rate) if tokens.forget is None else jnp.where(live, 1 - tokens.forget, 1)
    start = jnp.zeros_like(live) if tokens.start is None else tokens.start
    writes = jax.tree.map(
        lambda g: -_wide(jnp.where(live, tokens.rate, 0), g) * g, _gradients(before, tokens, initial, rule)
    )
    if tokens.momentum is not None:
        kept = jnp.where(start, 0, jnp.where(live, tokens.momentum, 1))
        speeds = _sums(kept, writes, speed)
        speed = _last(speeds)
        writes = jax.tree.map(lambda z: jnp.where(_wide(live, z), z, 0), speeds)
    if tokens.start is not None:
        writes = jax.tree.map(lambda z, first: z + _wide(jnp.where(start, keep, 0), z) * first[None], writes, initial)
    keep = jnp.where(start, 0, keep)
    if tokens.shrink is None:
        after = _sums(keep, writes, before)
    else:
        after = _shrunk_sums(keep, writes, before, jnp.where(live, tokens.shrink, 0))

    def read(a, queries):
        params = rule.image(a)
        return jax.vmap(lambda q: rule.apply(params, q))(queries)

    out = jax.vmap(read)(after, tokens.q)
    return (_last(after), speed), jnp.where(_wide(live, out), out, 0)


def _gradients(before: Any, tokens: Tokens, initial: Any, rule: Rule) -> Any:
    """Of every token's loss, at the memory before the chunk or, in a later segment, at the initial one."""

    def gradient(params, k, v, threshold):
        read, back = jax.vjp(lambda params: rule.apply(params, k), params)
        return back(rule.pull(read, v, threshold))[0]

    each = jax.vmap(gradient, in_axes=(None, 0, 0, 0))
    old = rule.image(before)
    if tokens.start is None:
        return each(old, tokens.k, tokens.v, tokens.threshold)
    begun, new = jnp.cumsum(tokens.start) > 0, rule.image(initial)
    at = jax.tree.map(lambda new, old: jnp.where(_wide(begun, new[None]), new[None], old[None]), new, old)
    return jax.vmap(gradient)(at, tokens.k, tokens.v, tokens.threshold)


def _sums(decay: jax.Array, writes: Any, first: Any) -> Any:
    """``x_t = decay_t x_{t-1} + writes_t`` of every leaf, for all t."""

    def later(one, then):
        (a, x), (b, y) = one, then
        return a * b, jax.tree.map(lambda x, y: _wide(b, x) * x + y, x, y)

    decays, sums = lax.associative_scan(later, (decay, writes))
    return jax.tree.map(lambda x, first: x + _wide(decays, x) * first[None], sums, first)


def _shrunk_sums(decay: jax.Array, writes: Any, first: Any, shrink: jax.Array) -> Any:
    """Likewise, every entry moved towards zero after each step: one after another."""

    def step(x, token):
        decay, write, shrink = token
        x = jax.tree.map(lambda x, y: soft_threshold(decay * x + y, shrink), x, write)
        return x, x

    return lax.scan(step, first, (decay, writes, shrink))[1]


def soft_threshold(x: jax.Array, by: jax.Array) -> jax.Array:
    """``sign(x) max(|x| - by, 0)``."""
    return x - jnp.clip(x, -by, by)


def _wide(numbers: jax.Array, like: jax.Array) -> jax.Array:
    return numbers.reshape(-1, *(1,) * (like.ndim - 1))


def _last(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[-1], tree)
