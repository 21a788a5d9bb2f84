"""One call of attention, laid out on the grid: its operands, their specs, and its tile functions."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.interpreters import batching, mlir

from attnjax import _compat
from attnjax.attention._component import Leaf, Where, aligned, leaves, replace_leaves
from attnjax.attention._grid import COL, ROW, Grid, Spec
from attnjax.attention.normalizers import Normalizer
from attnjax.attention.scores import Score
from attnjax.attention.statistics import Statistic

visible_p = _compat.Primitive("attnjax_visible")
"""The identity, around a tile's visibility: by its name a kernel knows what is True all over a full tile."""
visible_p.def_impl(lambda visible: visible)
visible_p.def_abstract_eval(lambda aval: aval)
batching.primitive_batchers[visible_p] = lambda operands, axes: (visible_p.bind(*operands), axes[0])
mlir.register_lowering(visible_p, mlir.lower_fun(lambda visible: visible, multiple_results=False))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a block of a component's array is laid out inside a tile: positions first, ones where it has none."""

    positional: bool
    follows_t: bool
    follows_s: bool

    def __call__(self, block: jax.Array) -> jax.Array:
        if not self.positional:
            return block
        kept = int(self.follows_t) + int(self.follows_s)
        rows = block.shape[:1] if self.follows_t else (1,)
        cols = block.shape[kept - 1 : kept] if self.follows_s else (1,)
        return block.reshape((*rows, *cols, *block.shape[kept:]))


Order = Callable[[int], np.ndarray]
"""Of a length: the position of each token, in the order in which the tokens lie in the arrays."""


class Problem:
    """Queries, keys, values and components, as operands on a grid.

    Attributes:
        grid: batch axes, key/value heads and query group outside; blocks of queries and keys inside.
        arrays: every operand, padded to whole blocks.
        specs: their specs.
        order: where tokens stand that do not lie in the arrays in the order of their positions.
    """

    def __init__(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        *,
        mask: Any,
        score: Score,
        normalizer: Normalizer,
        scale: Any,
        stats: Sequence[Statistic],
        block_q: int,
        block_kv: int,
        order: Order | None = None,
    ):
        *batch, queries, heads, width = q.shape
        keys, kv_heads = k.shape[-3], k.shape[-2]
        group = heads // kv_heads
        self.batch, self.queries, self.keys = tuple(batch), queries, keys
        self.heads, self.kv_heads, self.group = heads, kv_heads, group
        self.mask, self.score, self.normalizer, self.stats = mask, score, normalizer, tuple(stats)
        rows, cols = -(-queries // block_q), -(-keys // block_kv)
        self.grid = Grid((*batch, kv_heads, group), rows, cols, block_q, block_kv)
        self.batch_dims = tuple(range(len(batch)))
        self.head_dims = (len(batch), len(batch) + 1)
        self.sizes = {"B": self.batch, "N": (heads,), "T": (queries,), "S": (keys,)}
        self.arrays: list[jax.Array] = []
        self.specs: list[Spec] = []
        b, (n, g) = self.batch_dims, self.head_dims
        self._add(q.reshape(*batch, queries, kv_heads, group, width), (*b, ROW, n, g, None))
        self._add(k, (*b, COL, n, None))
        self._add(v, (*b, COL, n, None))
        self.order = order or np.arange
        for dim, length, padded in ((ROW, queries, rows * block_q), (COL, keys, cols * block_kv)):
            positions = jnp.arange(padded, dtype=jnp.int32)
            if order is not None:
                positions = positions.at[:length].set(jnp.asarray(order(length), jnp.int32))
            self._add(positions, (dim,), index=order is None)
        points = 1
        for size in batch:
            points *= size
        self._add(jnp.arange(points, dtype=jnp.int32).reshape(batch), b)
        self._add(jnp.arange(heads, dtype=jnp.int32).reshape(kv_heads, group), (n, g))
        self._add(jnp.asarray(scale), ())
        self.fixed = len(self.arrays)
        self.layouts = [self._add_leaf(leaf) for leaf in leaves(self._parts())]
        self.count_operand: int | None = None

    def _parts(self) -> tuple:
        return (self.mask, self.score, self.normalizer, self.stats)

    # --- operands -----------------------------------------------------------------------------------------------------

    @property
    def row_spec(self) -> Spec:
        """Spec of one number for each query and head, ``[*B, T, K, G]``."""
        return Spec((*self.batch_dims, ROW, *self.head_dims))

    @property
    def key_spec(self) -> Spec:
        """Spec of one number for each key and query head, ``[*B, S, K, G]``."""
        return Spec((*self.batch_dims, COL, *self.head_dims))

    def _add(self, array: jax.Array, dims: tuple, index: bool = False) -> int:
        """Append an operand, padded to whole blocks with zeros."""
        pad = [(0, self.grid.extent(d) - n if d in (ROW, COL) else 0) for d, n in zip(dims, array.shape, strict=True)]
        self.arrays.append(jnp.pad(array, pad) if any(after for _, after in pad) else array)
        self.specs.append(Spec(dims, index))
        return len(self.arrays) - 1

    def _add_leaf(self, leaf: Leaf) -> Layout:
        value, letters = aligned(leaf, self.sizes)
        batch_dims = iter(self.batch_dims)
        shape, dims = [], []
        for letter, size in zip(letters, value.shape, strict=True):
            dim = next(batch_dims) if letter == "B" else None
            if letter is None:
                shape.append(size)
                dims.append(None)
            elif size == 1:
                continue
            elif letter == "N":
                shape += [self.kv_heads, self.group]
                dims += self.head_dims
            else:
                shape.append(size)
                dims.append({"B": dim, "T": ROW, "S": COL}[letter])
        self._add(value.reshape(shape), tuple(dims))
        return Layout("T" in letters or "S" in letters, ROW in dims, COL in dims)

    def add_count(self, count: jax.Array) -> None:
        """Give the tile functions the number of visible keys of each query, ``[*#B, T, #K, #G]``."""
        dims = [d if n != 1 or d == ROW else "gone" for d, n in zip(self.row_spec.dims, count.shape, strict=True)]
        shape = [n for d, n in zip(dims, count.shape, strict=True) if d != "gone"]
        self.count_operand = self._add(count.reshape(shape), tuple(d for d in dims if d != "gone"))

    # --- inside a tile ------------------------------------------------------------------------------------------------

    def components(self, blocks: Sequence[jax.Array]) -> tuple:
        """Mask, score, normalizer and statistics with the arrays of one tile."""
        given = blocks[self.fixed : self.fixed + len(self.layouts)]
        values = [layout(block) for layout, block in zip(self.layouts, given, strict=True)]
        return replace_leaves(self._parts(), values)

    def where(self, blocks: Sequence[jax.Array]) -> Where:
        t, s, batch, head = blocks[3:7]
        visible = None if self.count_operand is None else blocks[self.count_operand][:, None]
        return Where(batch, head, t[:, None], s[None, :], self.queries, self.keys, visible)

    def visible(self, blocks: Sequence[jax.Array], mask: Any, at: Where) -> jax.Array | None:
        """Which entries of the tile are visible, ``[bq, bk]``; None for all."""
        shape = (at.t.shape[0], at.s.shape[1])
        visible = None if mask is None else jnp.broadcast_to(mask.visible(at), shape)
        if self.keys % self.grid.col_block:
            inside = jnp.broadcast_to(at.s < self.keys, shape)
            visible = inside if visible is None else visible & inside
        return None if visible is None else visible_p.bind(visible)

    def scores(self, blocks: Sequence[jax.Array]) -> tuple:
        """Scores, visibility, place, values, normalizer and statistics of one tile."""
        mask, score, normalizer, stats = self.components(blocks)
        at = self.where(blocks)
        q, k, v = blocks[:3]
        s = score.start(q, k, blocks[7], at)
        return s, self.visible(blocks, mask, at), at, v, normalizer, stats

    def _weights(self, blocks: Sequence[jax.Array], scale: Any, running: bool) -> tuple:
        """Unnormalized weights of one tile: new scale, masses x, signed weights, log x, gain, and the rest."""
        s, visible, at, v, normalizer, stats = self.scores(blocks)
        everything = jnp.ones(s.shape, bool) if visible is None else visible
        log_mass, gain = normalizer.lift(s, everything, at)
        if not normalizer.scaled:
            w = gain if visible is None else jnp.where(visible, gain, 0)
            x = jnp.abs(w)
            return None, x, w, jnp.log(jnp.where(x > 0, x, 1)), w, at, v, stats
        log_x = log_mass if visible is None else jnp.where(visible, log_mass, -jnp.inf)
        if running:
            scale = lax.stop_gradient(jnp.maximum(scale, normalizer.reference(log_x)))
        finite = jnp.where(jnp.isneginf(scale), 0, scale)
        x = jnp.exp(log_x - finite[:, None])
        return scale, x, x if gain is None else gain * x, log_x, gain, at, v, stats

    def lift(self, scale: Any, *blocks: jax.Array, running: bool = True) -> tuple:
        """A tile's log scale (of a scaled normalizer), then its sums: ``w @ v``, masses, and the statistics' terms."""
        scale, x, w, log_x, gain, at, v, stats = self._weights(blocks, scale, running)
        total = lax.dot_general(w, v.astype(w.dtype), (((1,), (0,)), ((), ())))
        rows = [stat for stat in stats if stat.kind == "row"]
        terms = {name: term.sum(1) for stat in rows for name, term in stat.terms(x, log_x, gain, at).items()}
        sums = (total, *((x.sum(1),) if self.normalizer.scaled else ()), *terms.values())
        return (scale, *sums) if self.normalizer.scaled and running else sums

    def term_names(self) -> list[str]:
        """Names of the statistics' terms, in the order in which ``lift`` returns them."""
        one = jnp.ones((1, 1))
        at = Where(jnp.int32(0), jnp.int32(0), jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32), 1, 1)
        names: dict[str, None] = {}
        for stat in self.stats:
            if stat.kind == "row":
                single = replace_leaves(stat, [jnp.ones((1, 1), jnp.result_type(x.value)) for x in leaves(stat)])
                names |= dict.fromkeys(single.terms(one, one, None, at))
        return list(names)

    def powers(self) -> tuple[int, ...]:
        """The power of ``exp(scale)`` in each sum that ``lift`` returns."""
        mass = (1,) if self.normalizer.scaled else ()
        return (1, *mass, *(2 if name.startswith("2:") else 1 for name in self.term_names()))

    def sum_specs(self) -> tuple[Spec, ...]:
        """Spec of each sum that ``lift`` returns."""
        return (Spec((*self.row_spec.dims, None)), *([self.row_spec] * (len(self.powers()) - 1)))

    def finish(self, sums: Sequence[jax.Array], *blocks: jax.Array) -> tuple:
        """From a row block's log scale and sums: output, what turns sums into weights, and the row statistics."""
        _, _, normalizer, stats = self.components(blocks)
        if self.normalizer.scaled:
            scale, total, mass, *terms = sums
            factor = normalizer.factor(scale, mass)
        else:
            total, *terms = sums
            scale, factor = jnp.zeros(total.shape[:1], total.dtype), jnp.ones(total.shape[:1], total.dtype)
        named = dict(zip(self.term_names(), terms, strict=True))
        values = [stat.value(named, scale, factor) for stat in stats if stat.kind == "row"]
        return (total * factor[:, None], factor, *values)

    def key_mass(self, scale: jax.Array, factor: jax.Array, *blocks: jax.Array) -> tuple:
        """A tile's share of the weight that each key receives."""
        _, _, w, _, _, at, *_ = self._weights(blocks, scale, running=False)
        real = jnp.where(at.t < self.queries, factor[:, None], 0)  # rows of padding send no mass
        return ((w * real).sum(0),)

    def weights(self, scale: jax.Array, factor: jax.Array, *blocks: jax.Array) -> tuple:
        """A tile of the attention map."""
        _, _, w, *_ = self._weights(blocks, scale, running=False)
        return (w * factor[:, None],)

    def greatest(self, scale: jax.Array, *blocks: jax.Array) -> tuple:
        """The greatest score of each row so far, and where a new one stands: the first key that attains it."""
        s, visible, at, *_ = self.scores(blocks)
        s = s if visible is None else jnp.where(visible, s, -jnp.inf)
        here = jnp.max(s, axis=1)
        first = jnp.min(jnp.where(s >= here[:, None], at.s.astype(scale.dtype), jnp.inf), axis=1)
        return jnp.maximum(scale, here), jnp.where(here > scale, first, 0)

    def at_greatest(self, top: jax.Array, first: jax.Array, *blocks: jax.Array) -> tuple:
        """Sum and number of a tile's scores that attain the row's greatest, ``top``.

        Scores made anew may be rounded otherwise than when ``top`` was found: the first key counts in any case, and
        others if they are as great up to rounding.
        """
        s, visible, at, *_ = self.scores(blocks)
        s = s if visible is None else jnp.where(visible, s, -jnp.inf)
        rounding = 8 * jnp.finfo(s.dtype).eps * jnp.abs(top)
        attained = (s >= (top - rounding)[:, None]) | (at.s == first.astype(jnp.int32)[:, None])
        attained &= ~jnp.isneginf(s)
        return jnp.where(attained, s, 0).sum(1), attained.sum(1).astype(s.dtype)

    def count(self, *blocks: jax.Array) -> tuple:
        """Number of visible keys of a tile's queries."""
        visible = self.visible(blocks, self.components(blocks)[0], self.where(blocks))
        t, s = blocks[3:5]
        whole = jnp.ones((t.shape[0], s.shape[0]), bool) if visible is None else visible
        return (whole.sum(1, dtype=jnp.int32),)
