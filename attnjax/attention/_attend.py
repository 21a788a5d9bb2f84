"""The entry points: ``attend``, ``attention_weights``, ``explain``."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax import _explicit
from attnjax._typing import FloatScalar
from attnjax.attention import _forms, _validate
from attnjax.attention import statistics as _statistics
from attnjax.attention._plan import BlockSizes, Explanation, Request, choose, describe
from attnjax.attention._problem import Problem
from attnjax.attention.masks import Mask
from attnjax.attention.normalizers import Monoid, Normalizer
from attnjax.attention.scores import Score
from attnjax.attention.statistics import Statistic

Implementation = Literal["auto", "dense", "rows", "blocks", "cudnn", "pallas"]


def checked(q, k, v, mask, score, normalizer, scale, implementation, stats, block_sizes) -> Request:
    """The call, checked, with its defaults filled in."""
    _validate.arrays(q, k, v)
    score = _validate.score_of(score)
    return Request(
        q=q,
        k=k,
        v=v,
        mask=_validate.mask_of(mask),
        score=score,
        normalizer=_validate.normalizer_of(normalizer),
        scale=_validate.scale_of(scale, score, q.shape[-1]),
        stats=_statistics.named(stats),
        implementation=implementation,
        block_sizes=block_sizes,
    )


@functools.partial(
    jax.jit, static_argnames=("form", "block_q", "block_kv", "vectorized", "executor", "counter", "order")
)
def run(
    q, k, v, mask, score, normalizer, scale, stats,
    *, form, block_q, block_kv, vectorized, executor, counter=None, order=None,
):  # fmt: skip
    """Output and statistics of a call whose form has been chosen; ``counter`` runs the fold that counts keys."""
    layout = functools.partial(Problem, q, k, v, mask=mask, score=score, scale=scale)
    problem = layout(normalizer=normalizer, stats=stats, block_q=block_q, block_kv=block_kv, order=order)
    if normalizer.counts:
        problem.add_count(_forms.visible_count(problem, vectorized, counter))
    execution = _forms.Whole(problem) if form == "dense" else _forms.Streamed(problem, vectorized, executor)
    return _forms.gather(problem, execution, v.dtype)


def attend(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B S K H"],
    v: Float[Array, "*B S K V"],
    *,
    mask: Mask | None = None,
    score: Score | None = None,
    normalizer: Normalizer | None = None,
    scale: FloatScalar | None = None,
    implementation: Implementation = "auto",
    stats: str | Statistic | Sequence[str | Statistic] = (),
    block_sizes: BlockSizes | None = None,
) -> Any:
    """Attention: each query's average of the values, weighted by how well their keys answer it.

    ``o_t = sum_s w_ts v_s`` over the keys s that the mask shows to query t, with weights ``w_t = normalizer(score_t)``;
    by default ``w_ts = exp(s_ts) / sum_s' exp(s_ts')`` and ``s_ts = scale * <q_t, k_s>``. A query that sees no key gets
    exact zeros, and so do its gradients. Scores, weights and sums are float32 (float64 stays float64).

    Over several devices, ``jit`` may split the batch and the heads; kernels, which it cannot split, are left out then.
    A sequence that is split is gathered on every device: ``attnjax.parallel`` has attention that keeps it split.

    Args:
        q: queries ``[*B, T, N, H]``, floating point; leading batch axes are optional.
        k: keys ``[*B, S, K, H]`` of q's dtype; N is a multiple of K and query head n reads key/value head
            ``n // (N / K)``.
        v: values ``[*B, S, K, V]``.
        mask: which keys a query sees, from ``attnjax.masks``; None shows all.
        score: how well a key answers a query, from ``attnjax.scores``; a modification alone applies to the dot product.
        normalizer: how scores become weights, from ``attnjax.normalizers``; softmax by default.
        scale: factor of the dot product, ``1 / sqrt(H)`` by default; may be traced.
        implementation: ``"dense"`` (one T x S map), ``"rows"`` (blocks of queries against all keys), ``"blocks"``
            (streamed over visible tiles), ``"cudnn"``, ``"pallas"``, or ``"auto"``, whose choice ``explain`` tells.
        stats: statistics to return beside the output: names, or members of ``attnjax.statistics``.
        block_sizes: tile sizes of ``rows`` and ``blocks``; chosen from the mask and the shapes by default.

    Returns:
        The output ``[*B, T, N, V]`` in v's dtype; with ``stats``, a pair of it and a dictionary of arrays.

    Raises:
        ValueError: shapes, sizes or names that do not fit.
        TypeError: an argument of the wrong kind or dtype.
        NotImplementedError: a named implementation cannot do this; the message says which can.

    Source: Vaswani et al., 2017, Attention Is All You Need, arXiv 1706.03762; streaming: Rabe and Staats, 2021,
    Self-attention Does Not Need O(n^2) Memory, arXiv 2112.05682; grouped queries: Shazeer, 2019, Fast Transformer
    Decoding, arXiv 1911.02150, and Ainslie et al., 2023, GQA, arXiv 2305.13245.

    >>> import jax, jax.numpy as jnp
    >>> from attnjax import attend, masks
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 16, 4, 8))
    >>> attend(q, k, v, mask=masks.causal() & masks.window(8)).shape
    (16, 4, 8)
    """
    request = checked(q, k, v, mask, score, normalizer, scale, implementation, stats, block_sizes)
    plan = choose(request)
    call = functools.partial(
        run,
        form=plan.form,
        block_q=plan.block_q,
        block_kv=plan.block_kv,
        vectorized=plan.vectorized,
        executor=plan.executor,
    )
    arrays = {"q": q, "k": k, "v": v}
    row = _explicit.rows(arrays, "attnjax.parallel.ring_attend or all_to_all_attend")
    if row is not None:
        call = _explicit.automatic(call, arrays, (row, {stat.name: row for stat in request.stats}))
    output, found = call(*request.parts)
    return (output, found) if request.stats else output


def attention_weights(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B S K H"],
    *,
    mask: Mask | None = None,
    score: Score | None = None,
    normalizer: Normalizer | None = None,
    scale: FloatScalar | None = None,
) -> Float[Array, "*B N T S"]:
    """The attention map ``w_ts`` itself, densely; its rows are the weights with which ``attend`` sums the values.

    Args:
        q: queries ``[*B, T, N, H]``.
        k: keys ``[*B, S, K, H]``.
        mask: as in ``attend``.
        score: as in ``attend``.
        normalizer: as in ``attend``; of ``from_monoid`` the map is what it makes of unit values.
        scale: as in ``attend``.

    Returns:
        ``[*B, N, T, S]``, float32 (float64 for float64 input); 0 where a key is invisible.

    Raises:
        ValueError, TypeError: as ``attend``.

    >>> import jax.numpy as jnp
    >>> from attnjax import attention_weights
    >>> x = jnp.zeros((2, 1, 4))
    >>> print(attention_weights(x, x)[0])
    [[0.5 0.5]
     [0.5 0.5]]
    """
    request = checked(q, k, None, mask, score, normalizer, scale, "dense", (), None)
    return _weights(q, k, request.mask, request.score, request.normalizer, request.scale)


@jax.jit
def _weights(q, k, mask, score, normalizer, scale):
    *batch, keys, kv_heads, _ = k.shape
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    if isinstance(normalizer, Monoid):
        unit = jnp.broadcast_to(jnp.eye(keys, dtype=dtype)[:, None, :], (*batch, keys, kv_heads, keys))
        kinds = {"mask": mask, "score": score, "normalizer": normalizer, "scale": scale}
        output = attend(q.astype(dtype), k.astype(dtype), unit, implementation="dense", **kinds)
        return jnp.moveaxis(output, -2, -3)
    problem = Problem(
        q,
        k,
        jnp.zeros((*batch, keys, kv_heads, 1), q.dtype),
        mask=mask,
        score=score,
        normalizer=normalizer,
        scale=scale,
        stats=(),
        block_q=q.shape[-3],
        block_kv=keys,
    )
    if normalizer.counts:
        problem.add_count(_forms.visible_count(problem, True))
    return _forms.Whole(problem).weights()


def explain(
    q: Float[Array | jax.ShapeDtypeStruct, "*B T N H"],
    k: Float[Array | jax.ShapeDtypeStruct, "*B S K H"],
    v: Float[Array | jax.ShapeDtypeStruct, "*B S K V"],
    *,
    mask: Mask | None = None,
    score: Score | None = None,
    normalizer: Normalizer | None = None,
    scale: FloatScalar | None = None,
    implementation: Implementation = "auto",
    stats: str | Statistic | Sequence[str | Statistic] = (),
    block_sizes: BlockSizes | None = None,
) -> Explanation:
    """What ``attend`` would do with the same arguments, without doing it.

    Args:
        q, k, v: arrays, or ``jax.ShapeDtypeStruct``; only shapes and dtypes are used.
        mask, score, normalizer, scale, implementation, stats, block_sizes: as in ``attend``.

    Returns:
        An ``Explanation``: the form chosen and why faster ones were not, tiles and how many are visited, estimated
        floating-point operations and temporary bytes. It prints as a table.

    Raises:
        ValueError, TypeError, NotImplementedError: as ``attend``.

    >>> import jax, jax.numpy as jnp
    >>> from attnjax import explain, masks
    >>> x = jax.ShapeDtypeStruct((8192, 8, 64), jnp.float32)
    >>> plan = explain(x, x, x, mask=masks.causal(), implementation="blocks")
    >>> plan.tiles_visited < plan.tiles
    True
    """
    return describe(checked(q, k, v, mask, score, normalizer, scale, implementation, stats, block_sizes))
