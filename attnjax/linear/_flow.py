"""Attention as a flow from sources (keys) to sinks (queries) that is conserved at both ends."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from attnjax.attention import _validate as attention
from attnjax.linear import _validate
from attnjax.linear._attend import attend
from attnjax.linear._run import Form, State

Two = tuple[jax.Array, jax.Array]
Sums = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""Of the first argument over keys beside the second over queries, ``[*B, T or 1, N, 2 H]``, added to the third."""


class Flows(NamedTuple):
    """What runs into queries and out of keys.

    Attributes:
        incoming: ``I``, into each query, ``[*B, T, N]``.
        outgoing: ``O``, out of each key, ``[*B, S, N]``.
        sinks: into each query if one unit runs out of each key, ``[*B, T, N]``; one in the mean.
        sources: out of each key if one unit runs into each query, ``[*B, S, N]``; n / m in the mean of n queries and m
            keys.
    """

    incoming: jax.Array
    outgoing: jax.Array
    sinks: jax.Array
    sources: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlowState:
    """Sums over the tokens so far; a pytree, to be passed back as it came.

    Attributes:
        count: number of tokens, ``[*B, N]``.
        ends: sums of ``phi(k)`` and of ``phi(q)``, ``[*B, N, 2 H]``.
        conserved: sums of ``phi(k) / O`` and of ``phi(q) / I``, ``[*B, N, 2 H]``.
        log_competition: log of the sum of ``exp(sources)``, ``[*B, N]``.
        memory: the state of ``attend``.
    """

    count: jax.Array
    ends: jax.Array
    conserved: jax.Array
    log_competition: jax.Array
    memory: State


def flows(
    q: Float[Array, "*B T N H"], k: Float[Array, "*B S K H"], causal: bool = True, eps: float | int = 1e-6
) -> Flows:
    """Flows of capacities ``phi(q_i) . phi(k_j)``, phi = sigmoid, before and after the other end is conserved:

        I_i = phi(q_i) . mean_j phi(k_j),                   O_j = phi(k_j) . mean_i phi(q_i),
        sinks_i = phi(q_i) . mean_j (phi(k_j) / O_j),       sources_j = n / m phi(k_j) . mean_i (phi(q_i) / I_i),

    for n queries and m keys. Causal means are over the tokens so far.

    Source: Wu et al., 2022, Flowformer, arXiv 2202.06258; what ``flow_attention`` is made of.

    Args:
        q: queries ``[*B, T, N, H]``.
        k: keys ``[*B, S, K, H]``; S is T if causal.
        causal: False lets all of them see each other.
        eps: added to features and to their means.

    >>> import jax, jax.numpy as jnp
    >>> from attnjax import linear
    >>> q, k = jax.random.normal(jax.random.key(0), (2, 5, 1, 4))
    >>> round(float(linear.flows(q, k, causal=False).sinks.mean()), 3)
    1.0
    """
    attention.arrays(q, k, None)
    if causal:
        _validate.arrays(q, k, k)
    return _all_flows(q, k, causal, eps)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _all_flows(q: Array, k: Array, causal: bool, eps: float | int) -> Flows:
    queries, keys = jnp.ones(q.shape[:-2], bool), jnp.ones(k.shape[:-2], bool)
    q, k = _features(q, k, queries, keys)
    sums = _prefixes(jnp.zeros(q.shape[:-2], bool)) if causal else _totals
    return _flows(q, k, sums, _counts(q, k, queries, keys, sums, None), (None, None), eps)[0]


def flow_attention(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B S K H"],
    v: Float[Array, "*B S K V"],
    *,
    causal: bool = True,
    clip: float | int | None = 1.0,
    eps: float | int = 1e-6,
    form: Form = "chunked",
    chunk_size: int = 64,
    state: FlowState | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "*#B T"] | None = None,
    lengths: Int[Array, "*#B"] | None = None,
) -> Float[Array, "*B T N V"] | tuple[Float[Array, "*B T N V"], FlowState]:
    """Flow-Attention: keys compete for what they give, and queries are allotted what they get,

        o_i = sigmoid(sinks_i) mean_j (c_j phi(q_i) . phi(k_j) / I_i v_j),    c_j = exp(sources_j) / mean exp(sources),

    with phi = sigmoid and the ``flows`` I, sinks and sources. Causal means are over the tokens so far: rows of weights
    do not sum to ``sigmoid(sinks_i)`` then, and row t is not the bidirectional one of the first t tokens.

    Source: Wu et al., 2022, Flowformer: Linearizing Transformers with Conservation Flows, arXiv 2202.06258, and the
    authors' code. Deviation: eps is added to means, where theirs is added to sums; the state, and segments, are ours.

    Args:
        q: queries ``[*B, T, N, H]``.
        k: keys ``[*B, S, K, H]``; N is a multiple of K; S is T if causal.
        v: values ``[*B, S, K, V]``.
        causal: False lets all tokens see each other, T and S being any numbers.
        clip: bound on ``sources``. The authors' 1 is their mean if there are as many queries as keys: it binds for
            about half of the keys, and takes half of the competition's spread and of its gradient. None: no bound.
        eps: added to features and to their means. With 0 flows are conserved exactly.
        form: of the last product, as for ``attend``.
        chunk_size: likewise.
        state: what came before.
        return_state: also return the state after the last token.
        segment_ids: ``[*B, T]``: where they change, everything begins anew.
        lengths: ``[*B]``: later tokens are neither queries nor keys, and their outputs are zero; S is T.

    Returns:
        Outputs ``[*B, T, N, V]`` in q's dtype, and the state if it is asked for.

    Raises:
        ValueError: a shape does not fit, or a state or segments are given without ``causal``.
        TypeError: a dtype does not fit.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4))
    >>> bool(jnp.allclose(linear.flow_attention(x, x, x), jax.nn.sigmoid(1.0), atol=1e-4))
    True
    """
    attention.arrays(q, k, v)
    if causal or lengths is not None:
        _validate.arrays(q, k, v)
    if not causal and (state is not None or return_state or segment_ids is not None):
        raise ValueError("causal=False: want neither state, return_state nor segment_ids: every token sees all")
    *batch, length = q.shape[:-2]
    segments = _validate.by_batch("segment_ids", segment_ids, (*batch, length), "[*B, T]")
    lengths = _validate.by_batch("lengths", lengths, tuple(batch), "[*B]")
    shape = (*batch, q.shape[-2], 2 * q.shape[-1])
    if state is not None and (not isinstance(state, FlowState) or state.ends.shape != shape):
        got = f"ends of shape {state.ends.shape}" if isinstance(state, FlowState) else type(state).__name__
        raise ValueError(f"state: got {got}, want the FlowState that the same call returned, ends {list(shape)}")
    out, last = _attended(q, k, v, segments, lengths, state, causal, clip, eps, form, chunk_size)
    return (out, last) if return_state else out


@functools.partial(jax.jit, static_argnums=(6, 7, 8, 9, 10))
def _attended(
    q: Array,
    k: Array,
    v: Array,
    segments: Array | None,
    lengths: Array | None,
    state: FlowState | None,
    causal: bool,
    clip: float | int | None,
    eps: float | int,
    form: Form,
    chunk_size: int,
) -> tuple[Array, FlowState | None]:
    """Outputs, and if causal the state; compiled as one."""
    queries, keys = jnp.ones(q.shape[:-2], bool), jnp.ones(k.shape[:-2], bool)
    if lengths is not None:
        queries = keys = lax.broadcasted_iota(jnp.int32, queries.shape, queries.ndim - 1) < lengths[..., None]
    start = jnp.zeros(queries.shape, bool)
    if segments is not None:
        start = start.at[..., 1:].set((segments[..., 1:] != segments[..., :-1]) & queries[..., 1:])
    dtype = q.dtype
    v = jnp.repeat(v, q.shape[-2] // k.shape[-2], axis=-2)
    q, k = _features(q, k, queries, keys)
    sums = _prefixes(start) if causal else _totals
    number, others = _counts(q, k, queries, keys, sums, state and state.count)
    before = (None, None) if state is None else (state.ends, state.conserved)
    (incoming, _, sinks, sources), (ends, conserved) = _flows(q, k, sums, (number, others), before, eps)
    q = q / (incoming * _divisor(number))[..., None]
    allotted = jnp.where(queries[..., None], jax.nn.sigmoid(sinks), 0)[..., None]
    sources = sources if clip is None else jnp.minimum(sources, clip)
    sources = jnp.where(keys[..., None], sources, -jnp.inf)
    if causal:
        total = _running(jnp.logaddexp, sources, start, state and state.log_competition)
    else:
        total = jax.nn.logsumexp(sources, -2, keepdims=True)
    # Where nothing is alive the total is -inf, too.
    competition = jnp.exp(sources - jnp.where(jnp.isneginf(total), 0, total)) * number
    given = competition[..., None] * v.astype(q.dtype)
    if not causal:
        out = jnp.einsum("...tnh,...nhv->...tnv", q, jnp.einsum("...snh,...snv->...nhv", k, given))
        return (allotted * out).astype(dtype), None
    out, memory = attend(
        q, k, given, form=form, chunk_size=chunk_size, segment_ids=segments, lengths=lengths,
        state=state and state.memory, return_state=True,
    )  # fmt: skip
    end = lambda x: lax.index_in_dim(x, -1, start.ndim - 1, keepdims=False)
    last = FlowState(end(number), end(ends), end(conserved), end(total), memory)
    return (allotted * out).astype(dtype), last


def _features(q: Array, k: Array, queries: Array, keys: Array) -> Two:
    """Of queries and keys that are alive, ``[*B, T]`` and ``[*B, S]``; as many heads of keys as of queries."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    k = jnp.repeat(k, q.shape[-2] // k.shape[-2], axis=-2)
    of = lambda x, live: jnp.where(live[..., None, None], jax.nn.sigmoid(x.astype(dtype)), 0)
    return of(q, queries), of(k, keys)


def _counts(q: Array, k: Array, queries: Array, keys: Array, sums: Sums, before: Array | None) -> Two:
    """Numbers of keys and of queries that each token sees, ``[*B, T or 1, N]``."""
    one = lambda x, live: jnp.where(live[..., None, None], jnp.ones_like(x[..., :1]), 0)
    found = sums(one(k, keys), one(q, queries), None if before is None else jnp.stack([before, before], -1))
    return found[..., 0], found[..., 1]


def _divisor(x: Array) -> Array:
    return jnp.where(x == 0, 1, x)


def _flows(q: Array, k: Array, sums: Sums, counts: Two, before: Any, eps: float | int) -> tuple[Flows, Two]:
    """The flows, and the sums they are made of: of features, and of features over flows."""
    of_keys, of_queries = map(_divisor, counts)
    along = lambda x, y: jnp.einsum("...h,...h->...", x + eps, jnp.broadcast_to(y, x.shape) + eps)

    def means(total: Array) -> Two:
        keys, queries = jnp.split(total, 2, -1)
        return keys / of_keys[..., None], queries / of_queries[..., None]

    ends = sums(k, q, before[0])
    keys, queries = means(ends)
    incoming, outgoing = _divisor(along(q, keys)), _divisor(along(k, queries))
    conserved = sums(k / outgoing[..., None], q / incoming[..., None], before[1])
    keys, queries = means(conserved)
    return Flows(incoming, outgoing, along(q, keys), along(k, queries) * (of_queries / of_keys)), (ends, conserved)


def _totals(k: Array, q: Array, before: None) -> Array:
    return jnp.concatenate([k.sum(-3, keepdims=True), q.sum(-3, keepdims=True)], -1)


def _prefixes(start: Array) -> Sums:
    return lambda k, q, before: _running(jnp.add, jnp.concatenate([k, q], -1), start, before)


def _running(combine: Callable[[Array, Array], Array], x: Array, start: Array, before: Array | None) -> Array:
    """``combine`` of all that came so far, anew at each start: a scan of ``x`` ``[*B, T, N, ...]`` along T."""
    axis = start.ndim - 1
    start = start.reshape(*start.shape, *(1,) * (x.ndim - start.ndim))
    if before is not None:
        x = jnp.concatenate([jnp.expand_dims(before, axis), x], axis)
        start = jnp.concatenate([jnp.zeros_like(lax.slice_in_dim(start, 0, 1, axis=axis)), start], axis)

    def later(first, then):
        (x, s), (y, t) = first, then
        return jnp.where(t, y, combine(x, y)), s | t

    found, _ = lax.associative_scan(later, (x, start), axis=axis)
    return found if before is None else lax.slice_in_dim(found, 1, None, axis=axis)
