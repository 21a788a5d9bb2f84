"""One head, four ways: token by token, chunk by chunk, all pairs of tokens, and a prefix scan.

``q`` is ``[T, G, H]``: the query heads that share a state. All forms compute

    u_t = v_t                          or, with feedback, beta_t (v_t - E_t^T k_t),  E_t the state read before its write
    S_t = transition_t(S_{t-1}) + k_t u_t^T,      o_t = S_t^T q_t                     (or the state before the write)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.linear._poles import Poles, Read
from attnjax.linear._triangle import solve


class Tokens(NamedTuple):
    """What happens at each token of a head.

    Attributes:
        q: ``[T, G, H]``.
        k: ``[T, H]``.
        v: ``[T, V]``.
        poles: how the state evolves.
        beta: how far the state is corrected towards ``v``, ``[T]``, or None for plain writes.
        start: whether a token starts a segment, and so sees no earlier state, ``[T]``.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    poles: Poles
    beta: jax.Array | None
    start: jax.Array


RUN = 256
"""Tokens whose chunks are prepared at once on a CPU."""


class Reads(NamedTuple):
    """When the state is read: for the output, and to correct it."""

    output: Read
    feedback: Read


def recurrent(tokens: Tokens, state: jax.Array, reads: Reads) -> tuple[jax.Array, jax.Array]:
    """Token by token: O(T H V) time, one state of memory.

    Returns:
        Outputs ``[T, G, V]`` and the state ``[P, H, V]`` after the last token.
    """

    def step(state, token: Tokens):
        state = jnp.where(token.start, 0, state)
        evolved = token.poles.transition(state)
        at = {"before": state[0], "decayed": evolved[0]}
        u = token.v if token.beta is None else token.beta * (token.v - token.k @ at[reads.feedback])
        new = evolved + jnp.outer(token.k, u)[None]
        at["after"] = new[0]
        return new, token.q @ at[reads.output]

    state, out = lax.scan(step, state, tokens)
    return out, state


class _Chunk(NamedTuple):
    """What is known of a chunk before its state is: ``out = reads(q) @ state + weights @ (write - erase @ state)``.

    Attributes:
        write: ``u`` where the state is zero, ``[C, V]``.
        erase: what the state takes from it, ``[C, P, H]``, or None.
        weights: ``[G, C, C]``.
        reads: ``[C, G, P, H]``.
        left: writes on their way to the state at the end, ``[C, P, H]``.
        keep: ``[P, P, H]``: from the state at the start to the one at the end.
    """

    write: jax.Array
    erase: jax.Array | None
    weights: jax.Array
    reads: jax.Array
    left: jax.Array
    keep: jax.Array


def _chunk(tokens: Tokens, reads: Reads) -> _Chunk:
    q, k, v, poles, beta, start = tokens
    segment = jnp.cumsum(start)
    same = segment[:, None] == segment[None, :]
    first, last = (segment == 0)[:, None, None], (segment == segment[-1])[:, None, None]
    seen = lambda read: jnp.where(first, poles.reads(read), 0)
    write, erase = v, None
    if beta is not None:
        # (I + B) u = beta (v - reads(k) state), B the weights between writes: a triangle.
        between = beta[:, None] * poles.weights(k[None], k, reads.feedback, same)[0]
        known = seen(reads.feedback) * k[:, None, :]
        right = jnp.concatenate([v, known.reshape(len(k), -1)], 1) * beta[:, None]
        solved = solve(between, right)
        write, erase = solved[:, : v.shape[1]], solved[:, v.shape[1] :].reshape(known.shape)
    weights = poles.weights(jnp.moveaxis(q, 1, 0), k, reads.output, same)
    state, left = poles.carry()
    left = jnp.where(last, left, 0) * k[:, None, :]
    one = jnp.eye(poles.count, dtype=state.dtype)[..., None]
    keep = jnp.where(segment[-1] == 0, state, -one)  # less the identity
    return _Chunk(write, erase, weights, q[:, :, None, :] * seen(reads.output)[:, None], left, keep)


def _written(chunk: _Chunk, state: jax.Array) -> jax.Array:
    """``u`` of a chunk, ``[C, V]``."""
    return chunk.write if chunk.erase is None else chunk.write - jnp.einsum("cph,phv->cv", chunk.erase, state)


def _output(chunk: _Chunk, u: jax.Array, state: jax.Array) -> jax.Array:
    """Outputs of a chunk, ``[C, G, V]``."""
    return jnp.einsum("gcj,jv->cgv", chunk.weights, u) + jnp.einsum("cgph,phv->cgv", chunk.reads, state)


def _handed_over(chunk: _Chunk, u: jax.Array, state: jax.Array) -> jax.Array:
    """The state after a chunk."""
    kept = state + jnp.sum(chunk.keep[..., None] * state[None], 1)
    return kept + jnp.einsum("cph,cv->phv", chunk.left, u)


def chunked(tokens: Tokens, state: jax.Array, reads: Reads, size: int, most: int) -> tuple[jax.Array, jax.Array]:
    """Chunk by chunk, in products of matrices: only the states between chunks are computed one after another.

    Args:
        tokens: of one head.
        state: ``[P, H, V]``.
        reads: when the state is read.
        size: tokens in a chunk.
        most: chunks that are prepared at once, at most. What lies between their tokens is not kept for derivatives.

    Returns:
        Outputs ``[T, G, V]`` and the state ``[P, H, V]`` after the last token.
    """
    length = len(tokens.k)
    chunks = -(-length // size)
    runs = -(-chunks // most)
    each = -(-chunks // runs)  # as even as they come

    def run(state: jax.Array, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        prepared = jax.vmap(lambda part: _chunk(part, reads))(_cut(tokens, each, size))

        def step(state, chunk):
            u = _written(chunk, state)
            return _handed_over(chunk, u, state), (u, state)

        state, (u, states) = lax.scan(step, state, prepared)
        out = jax.vmap(_output)(prepared, u, states)
        return state, out.reshape(each * size, *out.shape[2:])

    tokens = _lengthened(tokens, runs * each * size)
    if runs == 1:
        state, out = run(state, tokens)
    else:
        state, out = lax.scan(jax.checkpoint(run, prevent_cse=False), state, _cut(tokens, runs, each * size))
        out = out.reshape(-1, *out.shape[2:])
    return out[:length], state


def _cut(tokens: Tokens, count: int, size: int) -> Tokens:
    return jax.tree.map(lambda x: x.reshape(count, size, *x.shape[1:]), tokens)


def _lengthened(tokens: Tokens, length: int) -> Tokens:
    """With tokens after the last that write nothing and forget nothing."""
    live = jnp.arange(length) < len(tokens.k)
    padded = jax.tree.map(lambda x: jnp.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1)), tokens)
    return padded if length == len(tokens.k) else padded._replace(poles=padded.poles.frozen(live))


def parallel(tokens: Tokens, state: jax.Array, reads: Reads) -> tuple[jax.Array, jax.Array]:
    """All pairs of tokens: one chunk of everything. O(T^2), to read and to check.

    Returns:
        Outputs ``[T, G, V]`` and the state ``[P, H, V]`` after the last token.
    """
    chunk = _chunk(tokens, reads)
    u = _written(chunk, state)
    return _output(chunk, u, state), _handed_over(chunk, u, state)


def scanned(tokens: Tokens, state: jax.Array, reads: Reads) -> tuple[jax.Array, jax.Array]:
    """A prefix scan over what each token does to the whole state, a matrix ``[P H, P H]``: O(T H^3) time.

    Returns:
        Outputs ``[T, G, V]`` and the state ``[P, H, V]`` after the last token.
    """

    def lift(token: Tokens):
        poles = jax.tree.map(lambda x: x[None], token.poles)
        carry, width = poles.carry(), token.k.shape[0]
        count = poles.count
        wide = lambda x: jnp.broadcast_to(x, (*x.shape[:-1], width))
        kept = wide(carry.state) + jnp.eye(count, dtype=carry.state.dtype)[..., None]
        move = jnp.einsum("prh,hg->phrg", kept, jnp.eye(width, dtype=kept.dtype))
        write = wide(carry.write[0]) * token.k[None]
        u = token.v
        if token.beta is not None:
            move -= jnp.einsum("ph,rg->phrg", write, token.beta * wide(poles.reads(reads.feedback)[0]) * token.k[None])
            u = token.beta * u
        size = count * width
        return jnp.where(token.start, 0, move).reshape(size, size), jnp.einsum("ph,v->phv", write, u).reshape(size, -1)

    def combine(first, then):
        (move, value), (move_then, value_then) = first, then
        return move_then @ move, move_then @ value + value_then

    moves, values = lax.associative_scan(combine, jax.vmap(lift)(tokens))
    flat = state.reshape(-1, state.shape[-1])
    after = (moves @ flat[None] + values).reshape(-1, *state.shape)
    before = jnp.where(tokens.start[:, None, None, None], 0, jnp.concatenate([state[None], after[:-1]]))
    evolved = jax.vmap(lambda token, state: token.poles.transition(state))(tokens, before)
    seen = {"before": before, "decayed": evolved, "after": after}[reads.output]
    return jnp.einsum("tgh,thv->tgv", tokens.q, seen[:, 0]), after[-1]


def run(form: str, tokens: Tokens, state: jax.Array, reads: Reads, size: int) -> tuple[jax.Array, jax.Array]:
    """The form of that name."""
    if form == "chunked":
        # A CPU is fastest where a run of chunks stays in its cache.
        tokens_at_once = RUN if jax.default_backend() == "cpu" else len(tokens.k)
        return chunked(tokens, state, reads, size, max(1, tokens_at_once // size))
    return {"recurrent": recurrent, "parallel": parallel, "scan": scanned}[form](tokens, state, reads)
