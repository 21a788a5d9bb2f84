"""Attention over a sequence that is split over devices: round a ring, or heads exchanged for sequence."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from attnjax import _compat
from attnjax._typing import FloatScalar
from attnjax.attention import _plan
from attnjax.attention._attend import checked, run
from attnjax.attention._plan import BlockSizes, Request
from attnjax.attention.masks import Mask, _And
from attnjax.attention.normalizers import Normalizer
from attnjax.attention.scores import Score
from attnjax.attention.statistics import Statistic
from attnjax.parallel._layout import Layout
from attnjax.parallel._placement import Placement, contiguous
from attnjax.parallel._split import Split

Implementation = Literal["auto", "blocks", "pallas"]


def ring_attend(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B S K H"],
    v: Float[Array, "*B S K V"],
    *,
    layout: Layout,
    placement: Placement | None = None,
    mask: Mask | None = None,
    score: Score | None = None,
    normalizer: Normalizer | None = None,
    scale: FloatScalar | None = None,
    implementation: Implementation = "auto",
    stats: str | Statistic | Sequence[str | Statistic] = (),
    block_sizes: BlockSizes | None = None,
) -> Any:
    """``attend`` over a sequence that is split over devices, of which keys and values go round a ring.

    Every device keeps its queries. At each hop it folds them over the keys that it holds, while these are already on
    their way to the next device; what is accumulated is merged at its log scale. Derivatives go round likewise: the
    cotangents of keys and values travel with them and come home. Per device nothing is larger than its share of the
    arrays and one tile of scores. Hops that a mask makes useless to all devices, as a window does, are left out.
    Call it with whole (global) arrays, in ``jit`` or not. A fold by verbs of your own (``normalizers.from_monoid``) is
    carried along the keys and cannot begin anywhere: for that one each device gets all keys and values.

    Args:
        q: queries ``[*B, T, N, H]``, in the placement's order along T, as every array is that has an axis of queries or
            keys (segment ids, biases); T and S are multiples of the placement's pieces.
        k: keys ``[*B, S, K, H]``. Key/value heads are split over the axes of ``heads``;
            where these are more, each head is repeated.
        v: values ``[*B, S, K, V]``.
        layout: the mesh axes that ``"batch"`` (the first axis), ``"sequence"`` and ``"heads"`` are split over.
        placement: where tokens lie, from ``contiguous`` or ``zigzag``; contiguous by default.
            Use ``zigzag`` where the mask is causal.
        mask, score, normalizer, scale, stats: as for ``attend``; positions are those of the text.
        implementation: on each device: ``"blocks"``, ``"pallas"``, or ``"auto"``, which takes kernels where they run.
        block_sizes: tiles, at most; shortened to divide a piece of the sequence.

    Returns:
        As ``attend``: ``[*B, T, N, V]``, split as q is, and statistics if asked for.

    Raises:
        ValueError: a length, a number of heads or a batch that the mesh does not divide, or as for ``attend``.
        NotImplementedError: as for ``attend``.

    Source: Liu et al., 2023, Ring Attention with Blockwise Transformers, arXiv 2310.01889.

    >>> import jax
    >>> from attnjax import masks, parallel
    >>> mesh = jax.make_mesh((1,), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> layout = parallel.layout(mesh, {"sequence": "context"})
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 16, 4, 8))
    >>> parallel.ring_attend(q, k, v, layout=layout, mask=masks.causal()).shape
    (16, 4, 8)
    """
    request = _request(q, k, v, mask, score, normalizer, scale, implementation, stats, block_sizes)
    axes = layout.axes("sequence")
    if len(axes) != 1:
        raise ValueError(f"layout: got {axes} for 'sequence', want one mesh axis, which the ring goes along")
    devices = layout.size("sequence")
    placement = placement or contiguous(devices)
    if placement.pieces % devices:
        raise ValueError(f"placement: got {placement}, want one of {devices} devices, as the mesh axis {axes[0]!r} has")
    request, outer = _split_heads(request, layout, ("heads",))
    first, hops = _arc(request, placement, devices)
    make = lambda inner: Split(layout.mesh, outer, axes[0], first, hops, inner, placement)
    return _run(request, make, placement, layout, devices)


def all_to_all_attend(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B S K H"],
    v: Float[Array, "*B S K V"],
    *,
    layout: Layout,
    placement: Placement | None = None,
    mask: Mask | None = None,
    score: Score | None = None,
    normalizer: Normalizer | None = None,
    scale: FloatScalar | None = None,
    implementation: Implementation = "auto",
    stats: str | Statistic | Sequence[str | Statistic] = (),
    block_sizes: BlockSizes | None = None,
) -> Any:
    """``attend`` over a sequence that is split over devices, which exchange it for heads.

    Each device gets all tokens of some heads, attends, and gets its own tokens of all heads back: two exchanges, whose
    bytes per device do not grow with the number of devices, but no more devices than heads. The layout's axes for
    ``"heads"`` and ``"sequence"`` together split the heads while attention runs. Call it with whole (global) arrays.

    Args:
        q: queries ``[*B, T, N, H]``, in the placement's order along T, as every array is that has an axis of queries or
            keys (segment ids, biases); T and S are multiples of the placement's pieces.
        k: keys ``[*B, S, K, H]``. Where the axes of ``heads`` and ``sequence`` are more devices
            than K, each key/value head is repeated.
        v: values ``[*B, S, K, V]``.
        layout: the mesh axes that ``"batch"`` (the first axis), ``"sequence"`` and ``"heads"`` are split over.
        placement: where tokens lie, from ``contiguous`` or ``zigzag``; by default
            they lie as they are read.
        mask, score, normalizer, scale, stats: as for ``attend``; positions are those of the text.
        implementation: on each device: ``"blocks"``, ``"pallas"``, or ``"auto"``, which takes kernels where they run.
        block_sizes: tiles, at most; shortened to divide a piece of the sequence.

    Returns:
        As ``attend``: ``[*B, T, N, V]``, split as q is, and statistics if asked for.

    Raises:
        ValueError: a length, a number of heads or a batch that the mesh does not divide, or as for ``attend``.
        NotImplementedError: as for ``attend``.

    Source: Jacobs et al., 2023, DeepSpeed Ulysses, arXiv 2309.14509.

    >>> import jax
    >>> from attnjax import masks, parallel
    >>> mesh = jax.make_mesh((1,), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> layout = parallel.layout(mesh, {"sequence": "context"})
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 16, 4, 8))
    >>> parallel.all_to_all_attend(q, k, v, layout=layout, mask=masks.causal()).shape
    (16, 4, 8)
    """
    request = _request(q, k, v, mask, score, normalizer, scale, implementation, stats, block_sizes)
    request, outer = _split_heads(request, layout, ("heads", "sequence"))
    make = lambda inner: Split(layout.mesh, outer, inner=inner, placement=placement)
    return jax.tree.map(lambda x: _constrained(x, layout, q.ndim - 3), _run(request, make, placement, layout, 1))


def _request(q, k, v, mask, score, normalizer, scale, implementation, stats, block_sizes) -> Request:
    if implementation not in ("auto", "blocks", "pallas"):
        raise ValueError(f"implementation: got {implementation!r}, want one of ['auto', 'blocks', 'pallas']")
    return checked(q, k, v, mask, score, normalizer, scale, implementation, stats, block_sizes)


def _split_heads(request: Request, layout: Layout, names: tuple[str, ...]) -> tuple[Request, tuple]:
    """The mesh axes of each outer dimension of the grid; key/value heads are repeated if there are too few."""
    *batch, _, kv_heads, _ = request.k.shape
    heads = request.q.shape[-2]
    axes = tuple(a for name in names for a in layout.axes(name))
    parts = int(np.prod([layout.size(name) for name in names], dtype=int))
    wide = lambda x: x
    if kv_heads % parts:
        if parts % kv_heads or heads % parts:
            raise ValueError(
                f"heads: got N={heads} query heads and K={kv_heads} key/value heads for {parts} devices ({axes}); want "
                f"K a multiple of {parts}, or a divisor of it with N a multiple; ring_attend splits heads over the "
                "axes of 'heads' alone"
            )
        wide = lambda x: jnp.repeat(x, parts // kv_heads, axis=-2)
    if batch and batch[0] % layout.size("batch"):
        raise ValueError(
            f"batch: got {batch[0]} sequences, want a multiple of the {layout.size('batch')} devices of "
            f"{layout.axes('batch')}"
        )
    outer = (*([layout.axes("batch")] + [()] * (len(batch) - 1) if batch else []), axes, ())
    return dataclasses.replace(request, k=wide(request.k), v=wide(request.v)), outer


def _constrained(x: jax.Array, layout: Layout, batch: int) -> jax.Array:
    """``[*B, length, heads, ...]`` split by the layout: also how ``jit`` learns which devices the program is for."""
    lead = ["batch", *[None] * (batch - 1)] if batch else []
    return layout.constrain(x, *lead, "sequence", "heads", *[None] * (x.ndim - batch - 2))


def _run(request: Request, make: Any, placement: Placement | None, layout: Layout, parts: int) -> Any:
    """The call, its folds split over the mesh and its sequence in ``parts``."""
    choice = _plan.choose(request)
    if choice.form not in ("blocks", "pallas"):  # auto found another one better on a single device
        choice = _plan.choose(dataclasses.replace(request, implementation="blocks"))
    tiles = []
    sizes = {"q": (request.q, choice.block_q), "k": (request.k, choice.block_kv)}
    for name, (x, block) in sizes.items():
        length, pieces = x.shape[-3], placement.pieces if placement else 1
        if length % pieces:
            raise ValueError(
                f"{name}: got {length} tokens, want a multiple of {pieces} ({placement}); pad the sequence"
            )
        tiles.append(_tile(block, length // pieces, length // parts, choice.form))
    q, k, v, *rest = request.parts
    output, found = run(
        *(_constrained(x, layout, x.ndim - 3) for x in (q, k, v)),
        *rest,
        form=choice.form,
        block_q=tiles[0],
        block_kv=tiles[1],
        vectorized=choice.vectorized,
        executor=make(choice.executor),
        counter=make(None),
        order=placement,
    )
    return (output, found) if request.stats else output


def _tile(wanted: int, piece: int, local: int, form: str) -> int:
    """The length of tiles: at most what is wanted, within a piece of neighboring tokens if that can be.

    Kernels want multiples of ``LANES``, or all that a device has.
    """
    lanes = _plan.LANES if form == "pallas" else 1
    for whole in (piece, local):
        fitting = [n for n in range(lanes, max(wanted, lanes) + 1, lanes) if whole % n == 0]
        if fitting:
            return fitting[-1]
    return local


def _known(mask: Mask | None) -> Mask | None:
    """A mask that hides no more, without what is known only when the program runs."""
    if isinstance(mask, _And):
        left, right = _known(mask.left), _known(mask.right)
        return right if left is None else left if right is None else left & right
    return None if any(_compat.is_traced(x) or np.size(x) > 4096 for x in jax.tree.leaves(mask)) else mask


def _arc(request: Request, placement: Placement, devices: int) -> tuple[int, int]:
    """The shortest run of hops that brings each device all keys that its queries may see: its first, its length."""
    known = dataclasses.replace(request, mask=_known(request.mask))
    sizes = [x.shape[-3] // placement.pieces for x in (request.q, request.k)]
    tiles = _plan.visible_tiles(known, *sizes) if known.mask is not None else None
    if tiles is None:
        return 0, devices
    tiles = np.any(tiles.reshape(-1, *tiles.shape[-2:]), axis=0)
    own = placement.order.reshape(devices, -1)
    needed = {
        (i - j) % devices for i in range(devices) for j in range(devices) if np.any(tiles[np.ix_(own[i], own[j])])
    }
    if not needed:
        return 0, 1
    run_from = lambda start: max((h - start) % devices for h in needed) + 1
    first = min(sorted(needed), key=run_from)
    return first, run_from(first)


def visited_tiles(
    mask: Mask | None, placement: Placement, length: int, *, block: int = 128
) -> Int[np.ndarray, "devices hops"]:
    """How many tiles each device visits at each hop of a ring: found on paper, from the mask alone.

    All devices wait for the slowest at each hop, so the time of a ring is that of ``visited.max(0).sum()`` tiles, and
    at best that of ``visited.sum() / devices``.

    Args:
        mask: a mask whose arrays are known; None shows all.
        placement: where tokens lie.
        length: tokens of the sequence, T = S.
        block: tokens in a tile; a divisor of a piece of the sequence.

    Returns:
        Of device i at hop h the tiles of its queries with the keys of device i - h that may be visible.

    Raises:
        ValueError: the length is no multiple of pieces times block, or the mask's arrays are traced.

    >>> from attnjax import masks, parallel
    >>> parallel.visited_tiles(masks.causal(), parallel.zigzag(2), 8, block=1).sum(1)
    array([18, 18])
    >>> parallel.visited_tiles(masks.causal(), parallel.contiguous(2), 8, block=1).sum(1)
    array([10, 26])
    """
    if length % (placement.pieces * block):
        raise ValueError(f"length={length}: want a multiple of {placement.pieces} pieces times block={block}")
    one = jax.ShapeDtypeStruct((length, 1, 1), jnp.float32)
    tiles = _plan.visible_tiles(checked(one, one, one, mask, None, None, None, "blocks", (), None), block, block)
    if tiles is None:
        raise ValueError("mask: got traced or large arrays, want a mask whose arrays are known and small")
    tiles = np.broadcast_to(tiles.reshape(-1, *tiles.shape[-2:]).sum(0), (length // block,) * 2)
    n, each = placement.devices, length // placement.pieces // block
    own = (placement.order[..., None] * each + np.arange(each)).reshape(n, -1)
    return np.array([[tiles[np.ix_(own[i], own[(i - h) % n])].sum() for h in range(n)] for i in range(n)])
