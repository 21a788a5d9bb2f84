"""Execution forms: the same tile functions over the whole plane, over rows, and over blocks."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from attnjax.attention._block_map import block_map, kinds
from attnjax.attention._fold import fold
from attnjax.attention._grid import COL, ROW, Spec, apply_whole
from attnjax.attention._problem import Problem
from attnjax.attention._tiles import Carrier, Executor, Plan, scan, trace
from attnjax.attention.normalizers import Monoid

Outputs = tuple[jax.Array, dict[str, jax.Array]]


def _shared(captured: Sequence[Any]) -> list[Spec]:
    """Specs of captured arrays: every tile takes them whole."""
    return [Spec((None,) * jnp.ndim(c)) for c in captured]


class Streamed:
    """Folds over the tiles of a problem that its mask leaves."""

    def __init__(self, problem: Problem, vectorized: bool, executor: Executor | None = None):
        self.problem, self.executor = problem, executor
        grid = problem.grid
        blocks = block_map(
            problem.mask,
            problem.batch,
            problem.heads,
            problem.queries,
            problem.keys,
            grid.row_block,
            grid.col_block,
            problem.order,
        )
        self.some = blocks.some
        self.vectorized = vectorized
        self.kinds, self.visit = self._table(kinds(blocks, problem.keys, grid.col_block))

    def _table(self, table: jax.Array) -> tuple[jax.Array, Spec]:
        """The table with the grid's outer axes that it depends on, and its spec."""
        problem = self.problem
        *batch, heads = table.shape[:-2]
        dims = [d for d, n in zip(problem.batch_dims, batch, strict=True) if n != 1]
        shape = [n for n in batch if n != 1]
        if heads != 1:
            dims += problem.head_dims
            shape += [problem.kv_heads, problem.group]
        return table.reshape(*shape, *table.shape[-2:]), Spec((*dims, None, None))

    def scaled(
        self,
        tile: Any,
        tile_at: Any,
        outputs: tuple[Spec, ...],
        powers: tuple[int | float, ...],
        mass: int | None = None,
    ) -> tuple:
        """A scaled fold: its log scale and its sums."""
        problem, grid = self.problem, self.problem.grid
        dtype = jnp.promote_types(problem.arrays[0].dtype, jnp.float32)
        scale = jax.ShapeDtypeStruct(grid.array_shape(outputs[0], (grid.row_block,)), dtype)
        specs, arrays = [outputs[0], *problem.specs], [scale, *problem.arrays]
        # Traced together, so that both take the same captured arrays.
        both, captured = trace(lambda *blocks: (*tile(*blocks), *tile_at(*blocks)), grid, specs, arrays)
        count = len(outputs)
        dtypes = [b.dtype for b in both.outputs[:count]]
        if self.executor is not None and mass is not None:  # divided by the mass, the first sum is an output
            dtypes[1] = problem.arrays[2].dtype
        plan = Plan(
            grid=grid,
            visit=self.visit,
            inputs=(*problem.specs, *_shared(captured)),
            outputs=outputs,
            tile=both.part(slice(count)),
            tile_at=both.part(slice(count, None)),
            powers=powers,
            vectorized=self.vectorized,
            executor=self.executor,
            dtypes=tuple(dtypes),
            mass=mass,
        )
        return fold(plan, self.kinds, [*problem.arrays, *captured])

    def plan(self, tile: Any, outputs: tuple[Spec, ...], extra: tuple = ()) -> tuple[Plan, list]:
        """A plain fold and its operands; the tile function takes blocks of the row arrays ``extra`` first."""
        problem = self.problem
        arrays = [*extra, *problem.arrays]
        specs = [*([problem.row_spec] * len(extra)), *problem.specs]
        traced, captured = trace(tile, problem.grid, specs, arrays)
        plan = Plan(
            grid=problem.grid,
            visit=self.visit,
            inputs=(*specs, *_shared(captured)),
            outputs=outputs,
            tile=traced,
            vectorized=self.vectorized,
            executor=self.executor,
        )
        return plan, [*arrays, *captured]

    def plain(self, tile: Any, outputs: tuple[Spec, ...], extra: tuple = ()) -> tuple:
        """A plain fold: its sums."""
        plan, operands = self.plan(tile, outputs, extra)
        return fold(plan, self.kinds, operands)

    def sums(self) -> tuple:
        problem = self.problem
        if not problem.normalizer.scaled:
            return self.plain(lambda *blocks: problem.lift(None, *blocks), problem.sum_specs())
        return self.scaled(
            problem.lift,
            lambda scale, *blocks: problem.lift(scale, *blocks, running=False),
            (problem.row_spec, *problem.sum_specs()),
            problem.powers(),
            mass=1,
        )

    def key_mass(self, scale: jax.Array, factor: jax.Array) -> jax.Array:
        return self.plain(self.problem.key_mass, (self.problem.key_spec,), (scale, factor))[0]

    def max_logit(self) -> jax.Array:
        """The greatest score of each row; its derivative, when asked for, is a second fold."""
        problem = self.problem
        # At an infinite power of exp(scale) what stood at a smaller scale vanishes: the fold carries the place along.
        nowhere = lambda scale, *blocks: (jnp.zeros_like(scale),)
        found = self.scaled(problem.greatest, nowhere, (problem.row_spec,) * 2, (math.inf,))
        top, first = map(lax.stop_gradient, found)
        plan, operands = self.plan(problem.at_greatest, (problem.row_spec,) * 2, (top, first))

        @jax.custom_jvp
        def greatest(table, top, first, others):
            return top

        @greatest.defjvp
        def _(primals, tangents):
            table, top, first, others = primals

            def mean(others):
                total, count = fold(plan, table, [top, first, *others])
                return total / jnp.maximum(count, 1)

            return top, jax.jvp(mean, (others,), (tangents[3],))[1]

        return greatest(self.kinds, top, first, operands[2:])


class Whole:
    """The same sums with the plane as one tile, all heads at once: T x S arrays, differentiated by JAX itself."""

    def __init__(self, problem: Problem):
        self.problem = problem

    def _apply(self, tile: Any, outputs: tuple[Spec, ...], extra: tuple = ()) -> tuple:
        problem = self.problem
        specs = [problem.row_spec] * len(extra)
        return apply_whole(tile, [*extra, *problem.arrays], [*specs, *problem.specs], outputs, problem.grid)

    def sums(self) -> tuple:
        problem = self.problem
        start = jnp.asarray(-jnp.inf)
        outputs = ((problem.row_spec,) if problem.normalizer.scaled else ()) + problem.sum_specs()
        return self._apply(lambda *blocks: problem.lift(start, *blocks), outputs)

    def key_mass(self, scale: jax.Array, factor: jax.Array) -> jax.Array:
        return self._apply(self.problem.key_mass, (self.problem.key_spec,), (scale, factor))[0]

    def max_logit(self) -> jax.Array:
        problem = self.problem

        def tile(*blocks):
            s, visible, *_ = problem.scores(blocks)
            return (jnp.max(s if visible is None else jnp.where(visible, s, -jnp.inf), axis=1),)

        return self._apply(tile, (problem.row_spec,))[0]

    def weights(self) -> jax.Array:
        """The attention map, ``[*B, N, T, S]``."""
        problem = self.problem
        sums = self.sums()
        _, factor, *_ = finish(problem, sums)
        scale = sums[0] if problem.normalizer.scaled else jnp.zeros_like(factor)
        spec = Spec((*problem.batch_dims, *problem.head_dims, ROW, COL))
        (w,) = self._apply(problem.weights, (spec,), (scale, factor))
        return w.reshape(*problem.batch, problem.heads, problem.queries, problem.keys)


def finish(problem: Problem, sums: tuple) -> tuple:
    """Output, factor and row statistics from the log scale and sums of every row."""
    count = sum(stat.kind == "row" for stat in problem.stats)
    scale_specs = (problem.row_spec,) if problem.normalizer.scaled else ()
    in_specs = [*scale_specs, *problem.sum_specs(), *problem.specs]
    outputs = (Spec((*problem.row_spec.dims, None)), *([problem.row_spec] * (1 + count)))

    def rows(*blocks):
        return problem.finish(blocks[: len(sums)], *blocks[len(sums) :])

    return apply_whole(rows, [*sums, *problem.arrays], in_specs, outputs, problem.grid)


def gather(problem: Problem, form: Streamed | Whole, dtype: Any) -> Outputs:
    """Output ``[*B, T, N, V]`` and statistics of a problem, by one of the forms."""
    if isinstance(problem.normalizer, Monoid):
        output, rows = monoid(problem, form), []
        factor = scale = jnp.ones(())  # has no weights; statistics of them have been refused
    else:
        sums = form.sums()
        output, factor, *rows = finish(problem, sums)
        scale = sums[0] if problem.normalizer.scaled else jnp.zeros_like(factor)
    rows = iter(rows)
    found = {}
    for stat in problem.stats:
        if stat.kind == "row":
            found[stat.name] = _heads_last(problem, next(rows), problem.queries)
        elif stat.kind == "max":
            found[stat.name] = _heads_last(problem, form.max_logit(), problem.queries)
        else:
            found[stat.name] = _heads_last(problem, form.key_mass(scale, factor), problem.keys)
    return _heads_last(problem, output, problem.queries).astype(dtype), found


def _heads_last(problem: Problem, x: jax.Array, length: int) -> jax.Array:
    """``[*B, padded, K, G, ...] -> [*B, length, N, ...]``."""
    b = len(problem.batch)
    x = lax.slice_in_dim(x, 0, length, axis=b)
    return x.reshape(*x.shape[: b + 1], problem.heads, *x.shape[b + 3 :])


def visible_count(problem: Problem, vectorized: bool, executor: Executor | None = None) -> jax.Array:
    """Number of visible keys of each query, ``[*#B, T, #K, #G]``, of size one along axes that do not matter."""
    if problem.mask is None:
        return jnp.full((1,) * len(problem.batch) + (problem.queries, 1, 1), problem.keys, jnp.int32)
    (count,) = Streamed(problem, vectorized, executor).plain(problem.count, (problem.row_spec,))
    return lax.slice_in_dim(count, 0, problem.queries, axis=len(problem.batch))


# --- any associative fold ---------------------------------------------------------------------------------------------


def start_of(verbs: Monoid, rows: int, width: int, dtype: Any) -> tuple[float, ...] | None:
    """The number that each array of a monoid's first state consists of; None if one of them is not one number."""
    with jax.ensure_compile_time_eval():
        found = [np.unique(np.asarray(x)) for x in jax.tree.leaves(verbs.init(rows, width, dtype))]
    return tuple(float(x[0]) for x in found) if all(x.size == 1 for x in found) else None


def carried(problem: Problem, form: Streamed) -> tuple[Plan, list, list, Any]:
    """A fold by the user's own verbs: a plan that carries their state, the first state, the operands, and what makes an
    output of the states of all rows."""
    verbs, grid = problem.normalizer, problem.grid
    assert isinstance(verbs, Monoid)
    width = problem.arrays[2].shape[-1]
    dtype = jnp.promote_types(problem.arrays[0].dtype, jnp.float32)
    begin, structure = jax.tree.flatten(verbs.init(grid.row_block, width, dtype))
    outer = (*problem.batch_dims, *problem.head_dims)
    outputs = tuple(Spec((*outer, ROW, *([None] * (jnp.ndim(x) - 1)))) for x in begin)

    def step(*blocks):
        state = jax.tree.unflatten(structure, blocks[: len(begin)])
        return tuple(jax.tree.leaves(verbs.combine(state, _lifted(problem, verbs, dtype, blocks[len(begin) :]))))

    whole = [jax.ShapeDtypeStruct(grid.array_shape(s, x.shape), x.dtype) for s, x in zip(outputs, begin, strict=True)]
    tile, captured = trace(step, grid, [*outputs, *problem.specs], [*whole, *problem.arrays])
    plan = Plan(
        grid=grid,
        visit=form.visit,
        inputs=(*problem.specs, *_shared(captured)),
        outputs=outputs,
        tile=tile,
        executor=form.executor,
        start=start_of(verbs, grid.row_block, width, dtype),
    )

    def finish(*states):
        finalize = lambda *x: verbs.finalize(jax.tree.unflatten(structure, x))
        for _ in outer:
            finalize = jax.vmap(finalize)
        return jnp.moveaxis(finalize(*states), len(outer), len(problem.batch))

    return plan, begin, [*problem.arrays, *captured], finish


def _lifted(problem: Problem, verbs: Monoid, dtype: Any, blocks: Sequence[jax.Array]) -> Any:
    """The state of one tile."""
    s, visible, _, v, *_ = problem.scores(blocks)
    visible = jnp.ones(s.shape, bool) if visible is None else visible
    return verbs.lift_tile(s, visible, v.astype(dtype))


def monoid(problem: Problem, form: Streamed | Whole) -> jax.Array:
    """A fold by the user's own verbs."""
    if isinstance(form, Streamed):
        plan, begin, operands, finish = carried(problem, form)
        carry = plan.executor.carry if isinstance(plan.executor, Carrier) else scan
        return finish(*carry(plan, begin, form.kinds, operands))
    verbs, grid = problem.normalizer, problem.grid
    assert isinstance(verbs, Monoid)
    spec = Spec((*problem.batch_dims, ROW, *problem.head_dims, None))
    dtype = jnp.promote_types(problem.arrays[0].dtype, jnp.float32)
    start = verbs.init(grid.row_block, problem.arrays[2].shape[-1], dtype)

    def tile(*blocks):
        return (verbs.finalize(verbs.combine(start, _lifted(problem, verbs, dtype, blocks))),)

    return apply_whole(tile, problem.arrays, problem.specs, (spec,), grid)[0]
