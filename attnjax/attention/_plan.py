"""Which form runs a call, with which tiles, and why."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import _compat
from attnjax.attention import _cudnn
from attnjax.attention._block_map import block_map
from attnjax.attention._tiles import Executor
from attnjax.attention._validate import IMPLEMENTATIONS
from attnjax.attention.masks import Mask
from attnjax.attention.normalizers import Monoid, Normalizer
from attnjax.attention.scores import Score
from attnjax.attention.statistics import Statistic

DENSE_ENTRIES = 512 * 512
"""``auto`` takes the dense form up to this many score entries a head; above it streaming is faster on CPU."""

LANES = 128
"""Tiles of kernels are multiples of it, or as long as the arrays."""

FEW, MANY = 8, 512
"""Up to so many queries against at least so many keys are packed together with heads, by kernels."""

FINE = 256
"""Queries and keys of the smallest tile that the default considers."""


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Tile sizes.

    Attributes:
        q: queries in a tile, or None for the default.
        kv: keys in a tile, or None for the default.
    """

    q: int | None = None
    kv: int | None = None

    def __post_init__(self):
        for name in ("q", "kv"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1):
                raise ValueError(f"BlockSizes({name}={value!r}): want a whole number from 1 up, or None")


@dataclasses.dataclass(frozen=True)
class Request:
    """A checked call of attention."""

    q: Any
    k: Any
    v: Any
    mask: Mask | None
    score: Score
    normalizer: Normalizer
    scale: Any
    stats: tuple[Statistic, ...]
    implementation: str
    block_sizes: BlockSizes | None

    @property
    def parts(self) -> tuple:
        """What may hold arrays."""
        return self.q, self.k, self.v, self.mask, self.score, self.normalizer, self.scale, self.stats

    @property
    def entries(self) -> int:
        return self.q.shape[-3] * self.k.shape[-3]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The form that runs, its tiles, and the reasons against the others."""

    form: str
    block_q: int
    block_kv: int
    vectorized: bool
    reasons: tuple[str, ...]
    executor: Executor | None = None


def refusal(request: Request, form: str) -> str | None:
    """Why a form cannot run this call, or None."""
    normalizer = request.normalizer
    if form == "pallas":
        return _pallas_refusal(request)
    if form == "cudnn":
        return _cudnn.refusal(request)
    name = type(normalizer).__name__.lstrip("_")
    if form == "blocks" and not normalizer.streams:
        return "the normalizer needs whole rows and cannot stream; use implementation='rows' or 'dense'"
    if isinstance(normalizer, Monoid):
        exotic = [s.name for s in request.stats if s.kind != "max"]
        if exotic:
            return f"statistics {exotic} need weights, which a normalizer made by from_monoid() does not have"
    else:
        for stat in request.stats:
            if stat.exponential_only and not normalizer.scaled:
                return f"statistic {stat.name!r} is a sum of exponentials, which {name} does not take"
    return None


def _pallas_refusal(request: Request) -> str | None:
    from pallas_kernels import current

    target = current()
    if target is None:
        return (
            f"it needs a TPU v4 or newer, or a Hopper GPU, and this is {jax.devices()[0].device_kind}; use "
            "implementation='blocks', the same algorithm in XLA, or run the kernels interpreted: "
            "with pallas_kernels.compile_for(Target('tpu', interpret=True))"
        )
    if request.q.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return (
            f"dtype {request.q.dtype} is not supported, float32, bfloat16 and float16 are; use implementation='blocks'"
        )
    if (why := refusal(request, "blocks")) is not None:
        return why
    from attnjax.attention import _pallas

    return _pallas.refusal(request, *_tiles_of(request, "pallas"), target)


def choose(request: Request) -> Choice:
    """The documented table behind ``implementation="auto"``, or the named form if it can do the call.

    Raises:
        ValueError: unknown implementation, a normalizer that cannot stream asked to, an undefined statistic.
        NotImplementedError: a backend cannot run this call.
    """
    wanted = request.implementation
    if wanted not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: got {wanted!r}, want one of {list(IMPLEMENTATIONS)}")
    if wanted != "auto":
        why = refusal(request, wanted)
        if why is not None:
            backend = wanted in ("pallas", "cudnn")
            raise (NotImplementedError if backend else ValueError)(f"implementation={wanted!r}: {why}")
        return _with_tiles(request, wanted, ())
    reasons = []
    for form in ("pallas", "cudnn"):
        if form == "pallas" and _kernel_platform() == "gpu":
            reasons.append("pallas: the kernels for GPU were compiled, never timed; ask for them by name")
            continue
        why = refusal(request, form)
        if why is None:
            return _with_tiles(request, form, tuple(reasons))
        reasons.append(f"{form}: {why}")
    order = ("dense", "blocks", "rows") if request.entries <= DENSE_ENTRIES else ("blocks", "rows", "dense")
    if order[0] == "blocks":
        reasons.append(f"dense: {request.entries:,} entries a head, above {DENSE_ENTRIES:,}")
    for form in order:
        why = refusal(request, form)
        if why is None:
            return _with_tiles(request, form, tuple(reasons))
        reasons.append(f"{form}: {why}")
    raise ValueError(reasons[-1])


def _with_tiles(request: Request, form: str, reasons: tuple[str, ...]) -> Choice:
    queries, keys = request.q.shape[-3], request.k.shape[-3]
    if form == "dense":
        return Choice(form, queries, keys, True, reasons)
    block_q, block_kv = _tiles_of(request, form)
    executor: Executor | None = None
    if form == "cudnn":  # the kernel takes whole arrays; the blocks are those of the streamed derivatives
        executor = _cudnn.fused(request)
        block_q, block_kv = _divisor(queries, block_q), _divisor(keys, block_kv)
    if form == "pallas":
        executor = _pallas_executor(required=request.implementation == "pallas")
    return Choice(form, block_q, block_kv, jax.default_backend() != "cpu", reasons, executor)


def _tiles_of(request: Request, form: str) -> tuple[int, int]:
    """Tile sizes: as given, else by default."""
    queries, keys = request.q.shape[-3], request.k.shape[-3]
    given = request.block_sizes or BlockSizes()
    block_q, block_kv = (given.q, given.kv) if given.q and given.kv else default_tiles(request, form)
    if form == "pallas" and _kernel_platform() == "gpu":
        return given.q or block_q, given.kv or block_kv
    return min(given.q or block_q, queries), keys if form == "rows" else min(given.kv or block_kv, keys)


def _kernel_platform() -> str | None:
    """What kernels would be compiled for."""
    from pallas_kernels import current

    target = current()
    return None if target is None else target.platform


def _pallas_executor(*, required: bool) -> Executor:
    from attnjax.attention._pallas import Fused, current

    target = current()
    assert target is not None
    return Fused(target, required)


def _divisor(length: int, block: int) -> int:
    """The greatest divisor of ``length`` that is at most ``block``."""
    return max(d for d in range(1, block + 1) if length % d == 0)


def _even(length: int, block: int) -> int:
    """The length of equal blocks, at most ``block`` long, that cover ``length`` with little padding."""
    return -(-length // -(-length // block))


def default_tiles(request: Request, form: str) -> tuple[int, int]:
    """Tile sizes: the candidate with the least estimated time for the tiles that the mask leaves visible."""
    queries, keys = request.q.shape[-3], request.k.shape[-3]
    if form == "rows":
        return _even(queries, max(1, min(queries, 2**19 // keys))), keys
    if form == "pallas":
        if queries <= FEW and keys >= MANY:
            # One query in a tile: the kernels pack queries and the heads of a group into one.
            return 1, LANES if _kernel_platform() == "gpu" else min(LANES * (-(-keys // LANES)), 512)
        if _kernel_platform() == "gpu":
            return LANES, LANES
        block_q, block_kv = 1024 if _tall_is_better(request) else 512, 512
        block_q, block_kv = (-(-_even(n, b) // LANES) * LANES for n, b in ((queries, block_q), (keys, block_kv)))
        return block_q, block_kv
    fine = visible_tiles(request, FINE, FINE)
    if fine is None:
        return _even(queries, 512), _even(keys, 512)
    costs = {}
    for rows, cols in ((4, 2), (2, 2), (1, 1)):
        entries = FINE * FINE * rows * cols
        # Beside its entries a tile costs about as much as 24,000 of them: the loop, the slices, shorter products.
        costs[FINE * rows, FINE * cols] = _pooled(fine, rows, cols).sum() * (entries + 24_000)
    block_q, block_kv = min(costs, key=lambda pair: costs[pair])
    return _even(queries, block_q), _even(keys, block_kv)


def _tall_is_better(request: Request) -> bool:
    """Whether tiles of 1024 queries cost a TPU less than those of 512, though fewer of them are empty."""
    from pallas_kernels import current

    target, queries = current(), request.q.shape[-3]
    if target is None or target.tall >= 1 or queries < 1024:
        return False
    some = visible_tiles(request, 512, 512)
    if some is None:
        return queries >= 8192  # where a causal mask makes it better
    return bool(2 * target.tall * _pooled(some, 2, 1).sum() < some.sum())


def _pooled(some: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Whether any of ``rows x cols`` neighboring tiles is visible."""
    *lead, r, c = some.shape
    padded = np.pad(some, [(0, 0)] * len(lead) + [(0, -r % rows), (0, -c % cols)])
    return np.any(padded.reshape(*lead, -(-r // rows), rows, -(-c // cols), cols), axis=(-3, -1))


def count_tiles(request: Request, block_q: int, block_kv: int) -> float | None:
    """Visited tiles summed over heads and batch; None where the mask holds traced or large arrays."""
    some = visible_tiles(request, block_q, block_kv)
    *batch, _, heads, _ = request.q.shape
    return None if some is None else some.sum() / math.prod(some.shape[:-2]) * math.prod(batch) * heads


def visible_tiles(request: Request, block_q: int, block_kv: int) -> np.ndarray | None:
    """Which tiles may be visible, ``[*#B, #N, rows, cols]``; None where the mask holds traced or large arrays."""
    *batch, queries, heads, _ = request.q.shape
    leaves, structure = jax.tree.flatten(request.mask)
    if any(_compat.is_traced(x) or np.size(x) > 4096 for x in leaves):
        return None
    values = tuple((np.shape(x), str(np.asarray(x).dtype), np.asarray(x).tobytes()) for x in leaves)
    return _visible_tiles(structure, values, tuple(batch), heads, queries, request.k.shape[-3], block_q, block_kv)


@functools.lru_cache(maxsize=256)
def _visible_tiles(structure, values, batch, heads, queries, keys, block_q, block_kv) -> np.ndarray | None:
    leaves = [np.frombuffer(data, dtype).reshape(shape) for shape, dtype, data in values]
    mask = jax.tree.unflatten(structure, leaves)
    with jax.ensure_compile_time_eval():
        closed = jax.make_jaxpr(lambda: block_map(mask, batch, heads, queries, keys, block_q, block_kv).some)()
        if any(_compat.is_traced(c) for c in closed.consts):  # captured by a mask function
            return None
        (some,) = jax.jit(functools.partial(_compat.eval_jaxpr, closed))()
    return np.asarray(some)


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a call of ``attend`` will do.

    Attributes:
        implementation: the form that runs.
        reasons: why each faster form was refused.
        block_q: queries in a tile.
        block_kv: keys in a tile.
        tiles: tiles of the plane, over all heads and batch entries.
        tiles_visited: those that the mask leaves; None where that depends on traced arrays.
        flops: estimated floating-point operations of the forward pass (two products over the visited tiles).
        temporary_bytes: estimated temporary memory of the forward pass, outputs left out.
    """

    implementation: str
    reasons: tuple[str, ...]
    block_q: int
    block_kv: int
    tiles: int
    tiles_visited: int | None
    flops: float
    temporary_bytes: int

    def __str__(self) -> str:
        visited = "depends on traced arrays" if self.tiles_visited is None else f"{self.tiles_visited:,}"
        share = "" if self.tiles_visited is None else f" ({self.tiles_visited / self.tiles:.1%})"
        lines = [
            f"implementation   {self.implementation}",
            *(f"  not {reason}" for reason in self.reasons),
            f"tile             {self.block_q} queries x {self.block_kv} keys",
            f"tiles visited    {visited} of {self.tiles:,}{share}",
            f"forward FLOPs    {self.flops:.3g}",
            f"temporary bytes  {self.temporary_bytes:,}",
        ]
        return "\n".join(lines)


def describe(request: Request) -> Explanation:
    """The plan of a call, with what it costs."""
    choice = choose(request)
    *batch, queries, heads, width = request.q.shape
    keys, value_width = request.k.shape[-3], request.v.shape[-1]
    points = math.prod(batch) * heads
    tiles = points * -(-queries // choice.block_q) * -(-keys // choice.block_kv)
    counted = tiles if choice.form == "dense" else count_tiles(request, choice.block_q, choice.block_kv)
    visited = None if counted is None else round(counted)
    entries = choice.block_q * choice.block_kv
    flops = 2.0 * (tiles if visited is None else visited) * entries * (width + value_width)
    size = jnp.promote_types(request.q.dtype, jnp.float32).itemsize
    at_once = points if choice.vectorized else 1
    rows = points * queries * (value_width + 2)
    temporary = size * (2 * at_once * entries + rows) if choice.form != "cudnn" else size * points * queries
    return Explanation(
        choice.form, choice.reasons, choice.block_q, choice.block_kv, tiles, visited, flops, int(temporary)
    )
