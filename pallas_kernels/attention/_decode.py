"""Few queries against many keys: rows of a tile are packed with heads, and the keys are shared out.

Two changes of a plan. `packed` makes one dimension of rows from single queries and the outer dimensions that no key
follows (the query heads of a group), so that they meet the keys together. `split` makes an outer dimension of stretches
of keys, each added up on its own; what they give is put together by the fold's own rule.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend import core

from pallas_kernels.attention._flat import Unsupported
from pallas_kernels.attention._made import MadeGrid, MadePlan, MadeSpec, MadeTile, kept
from pallas_kernels.attention._plan import COLS, ROWS, Plan, running
from pallas_kernels.attention._work import together

Restore = Callable[[Sequence[jax.Array]], list[jax.Array]]
Changed = tuple[MadePlan, jax.Array, list[jax.Array], Restore]
"""A plan, its block map and operands, and what makes the first plan's outputs of the new one's."""


def packed(plan: Plan, tiles: jax.Array, arrays: Sequence[jax.Array], multiple: int) -> Changed:
    """A plan of single queries, with queries and heads together as the rows of one tile.

    Args:
        plan: with one query in a tile.
        tiles: its block map.
        arrays: its operands.
        multiple: what the number of rows is to be a multiple of.

    Returns:
        See ``Changed``.

    Raises:
        Unsupported: an output is added up over queries or heads.
    """
    grid = plan.grid
    by_key = {d for s in plan.inputs if COLS in s.dims for d in s.dims}
    merged = [*(d for d in range(len(grid.outer)) if d not in by_key), ROWS]
    left = [d for d in range(len(grid.outer)) if d in by_key]
    number = {d: n for n, d in enumerate(left)} | {COLS: COLS, None: None}
    sizes = [grid.rows if d == ROWS else grid.outer[d] for d in merged]
    count = math.prod(sizes)
    rows = -(-count // multiple) * multiple
    if not all(set(merged) <= set(s.dims) for s in plan.outputs):
        raise Unsupported("sums over few queries")

    def renamed(dims: Sequence[int | None]) -> tuple[int | None, ...]:
        """What the axes follow, once those of merged dimensions are one, in front."""
        own = (ROWS,) if any(d in merged for d in dims) else ()
        return (*own, *(number[d] for d in dims if d not in merged))

    def merge(x: jax.Array, dims: Sequence[int | None]) -> jax.Array:
        own = [d for d in merged if d in dims]
        if not own:
            return x
        rest = [i for i, d in enumerate(dims) if d not in own]
        x = x.transpose(*(dims.index(d) for d in own), *rest)
        lead = [n if d in own else 1 for d, n in zip(merged, sizes, strict=True)]
        x = x.reshape(*lead, *x.shape[len(own) :])
        x = jnp.broadcast_to(x, (*sizes, *x.shape[len(sizes) :])).reshape(count, *x.shape[len(sizes) :])
        return jnp.pad(x, [(0, rows - count), *([(0, 0)] * (x.ndim - 1))])

    specs = [*plan.outputs[: running(plan)], *plan.inputs]
    places = [[n for n, d in enumerate(kept(s.dims)) if d == ROWS] for s in specs]
    run = core.jaxpr_as_fun(plan.tile.jaxpr)

    def one(*blocks):
        """The tile function of one row; its blocks have no axis of queries."""
        found = run(*(jnp.expand_dims(b, at) for b, at in zip(blocks, places, strict=True)))
        return [jnp.squeeze(x, kept(s.dims).index(ROWS)) for x, s in zip(found, plan.outputs, strict=True)]

    blocks, in_axes = [], []
    for s, aval in zip(specs, plan.tile.jaxpr.in_avals, strict=True):
        own = ROWS in renamed(s.dims)
        shape = [n for d, n in zip(kept(s.dims), aval.shape, strict=True) if d != ROWS]
        blocks.append(jax.ShapeDtypeStruct((rows, *shape) if own else tuple(shape), aval.dtype))
        in_axes.append(0 if own else None)
    made = MadePlan(
        grid=MadeGrid(tuple(grid.outer[d] for d in left), 1, grid.cols, rows, grid.col_block),
        visit=MadeSpec((*(number[d] for d in plan.visit.dims[:-2] if d in left), ROWS, COLS)),
        inputs=tuple(MadeSpec(renamed(s.dims), s.index and COLS in s.dims) for s in plan.inputs),
        outputs=tuple(MadeSpec(renamed(s.dims)) for s in plan.outputs),
        tile=MadeTile(jax.make_jaxpr(jax.vmap(one, in_axes=in_axes))(*blocks)),
        scaled=plan.scaled,
        powers=tuple(plan.powers),
        mass=plan.mass,
        results=tuple(plan.results),
        start=plan.start,
    )
    gone = [*(n for n, d in enumerate(plan.visit.dims[:-2]) if d in merged), len(plan.visit.dims) - 2]
    tiles = jnp.moveaxis(tiles, gone, range(len(gone)))
    tiles = together(tiles.reshape(-1, *tiles.shape[len(gone) :]), 0)[..., None, :].astype(tiles.dtype)

    def restore(found: Sequence[jax.Array]) -> list[jax.Array]:
        back = []
        for x, s in zip(found, plan.outputs, strict=True):
            x = x[:count].reshape(*sizes, *x.shape[1:])
            have = [*merged, *(d for d in s.dims if d not in merged)]
            back.append(x.transpose([have.index(d) for d in s.dims]))
        return back

    return made, tiles, [merge(a, s.dims) for a, s in zip(arrays, plan.inputs, strict=True)], restore


def split(plan: Plan, tiles: jax.Array, arrays: Sequence[jax.Array], pieces: int) -> Changed:
    """A plan with stretches of keys as one more outer dimension.

    Args:
        plan: whose outputs follow no keys.
        tiles: its block map.
        arrays: its operands.
        pieces: number of stretches, a divisor of the number of tiles along the keys.

    Returns:
        See ``Changed``. Of log scales of stretches ``a_i`` the greatest, ``a``, is kept; a sum with the power p is
        ``sum_i exp(p (a_i - a)) x_i``. Only then are sums divided by a mass: logs of masses would lose digits.
    """
    grid = plan.grid
    new = len(grid.outer)
    cols = grid.cols // pieces

    def pieced(s) -> MadeSpec:
        dims = [e for d in s.dims for e in ((new, COLS) if d == COLS else (d,))]
        return MadeSpec(tuple(dims), s.index and COLS not in s.dims)

    def cut(x: jax.Array, s) -> jax.Array:
        if COLS not in s.dims:
            return x
        at = s.dims.index(COLS)
        return x.reshape(*x.shape[:at], pieces, cols * grid.col_block, *x.shape[at + 1 :])

    made = MadePlan(
        grid=MadeGrid((*grid.outer, pieces), grid.rows, cols, grid.row_block, grid.col_block),
        visit=MadeSpec((*plan.visit.dims[:-2], new, ROWS, COLS)),
        inputs=tuple(map(pieced, plan.inputs)),
        outputs=tuple(MadeSpec((new, *s.dims)) for s in plan.outputs),
        tile=plan.tile,
        scaled=plan.scaled,
        powers=tuple(plan.powers),
        mass=None,
        results=tuple(jnp.promote_types(r, jnp.float32) for r in plan.results),
    )
    tiles = jnp.moveaxis(tiles.reshape(*tiles.shape[:-1], pieces, cols), -2, -3)

    def restore(found: Sequence[jax.Array]) -> list[jax.Array]:
        if not plan.scaled:
            return [x.sum(0).astype(r) for x, r in zip(found, plan.results, strict=True)]
        scales, *sums = found
        scale = scales.max(0)
        ratio = jnp.exp(scales - jnp.where(jnp.isneginf(scale), 0, scale)[None])
        by = lambda x, factor: x * factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim))
        for n, power in enumerate(plan.powers):
            factor = (scales == scale[None]).astype(ratio.dtype) if math.isinf(power) else ratio**power
            sums[n] = by(sums[n], factor).sum(0)
        if plan.mass is not None:
            mass = jnp.where(sums[plan.mass] > 0, sums[plan.mass], 1)
            scale = scale + jnp.log(mass)
            sums = [by(x, mass**-power) for x, power in zip(sums, plan.powers, strict=True)]
        return [x.astype(r) for x, r in zip([scale, *sums], plan.results, strict=True)]

    return made, tiles, [cut(a, s) for a, s in zip(arrays, plan.inputs, strict=True)], restore
