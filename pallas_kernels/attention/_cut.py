"""A tile function cut in three: what is known before queries meet keys, where they meet, and what follows from sums.

What depends on the queries alone, or the keys alone, or neither, and has features, is computed before, once for each
position and not in each tile: normalized keys, an entry of a table for each head. What is computed from a sum over the
tile is as well computed once, from the sum over all tiles: a fold adds up, so what follows a sum inside a tile function
is linear. The kernel is left with matrices of scores, products, and vectors.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from pallas_kernels.attention._flat import VISIBLE, Flat, Unsupported, flatten
from pallas_kernels.attention._labels import labels, met_by_feature
from pallas_kernels.attention._made import NAMES, MadePlan, MadeSpec, MadeTile, spec_names
from pallas_kernels.attention._plan import COLS, ROWS, Grid, Plan, running
from pallas_kernels.attention._sums import sum_dtype
from pallas_kernels.attention._values import COL, FEATURE, ROW

_FREE = {"convert_element_type", "transpose", "broadcast_in_dim", "reshape", "squeeze", "expand_dims"}
"""What a kernel does with matrices of features at no cost."""


def cut(plan: Plan, outputs: Sequence[int], first: int, arrays: Sequence[jax.Array]) -> tuple[MadePlan, list, Callable]:
    """The middle of a plan.

    Args:
        plan: of the fold.
        outputs: those to compute.
        first: ``ROWS`` or ``COLS``, which they are added up for.
        arrays: the operands.

    Returns:
        A plan, its operands, and what turns its outputs into those of ``plan``.
    """
    return _Cut(plan, outputs, first, arrays).made()


def summed_by_columns(plan: Plan, output: int) -> bool:
    """Whether an output adds up blocks of scores over queries first."""
    flat, names = named(plan, [output])
    over = set()
    for e in flat.jaxpr.eqns:
        axes = e.params["dimension_numbers"][0][0] if e.primitive.name == "dot_general" else e.params.get("axes", ())
        found = names.get(e.invars[0], ()) if e.invars and not isinstance(e.invars[0], core.Literal) else ()
        if {ROW, COL} <= set(found) and (e.primitive.name == "dot_general" or e.primitive.name.startswith("reduce_")):
            over.add(frozenset(found[a] for a in axes) & {ROW, COL})
    return {ROW} in over and {COL} not in over


def _specs(plan: Plan) -> list:
    """Those of the tile function's inputs."""
    return [*plan.outputs[: running(plan)], *plan.inputs]


def named(plan: Plan, outputs: Sequence[int]) -> tuple[Flat, dict[Any, tuple[str | None, ...]]]:
    """The tile function of some outputs, and the names of its variables' axes."""
    flat = flatten(plan.tile.jaxpr, outputs)
    inputs = [spec_names(s, v.aval) for s, v in zip(_specs(plan), flat.jaxpr.invars, strict=True)]
    return flat, labels(flat.jaxpr, inputs, [spec_names(plan.outputs[i], plan.tile.outputs[i]) for i in outputs])


class _Cut:
    def __init__(self, plan: Plan, outputs: Sequence[int], first: int, arrays: Sequence[jax.Array]):
        self.plan, self.which, self.first = plan, outputs, first
        self.other = COLS if first == ROWS else ROWS
        self.flat, self.names = named(plan, outputs)
        self.jaxpr = self.flat.jaxpr
        shift = running(plan)
        self.given = dict(zip(self.jaxpr.invars[shift:], arrays, strict=True))
        self.specs = dict(zip(self.jaxpr.invars, _specs(plan), strict=True))
        self.makers = {v: e for e in self.jaxpr.eqns for v in e.outvars}
        self.follows = {v: frozenset(d for d in s.dims if d is not None) for v, s in self.specs.items()}
        for v in self.jaxpr.invars[:shift]:
            self.follows[v] |= {ROWS, COLS}
        for v in self.jaxpr.constvars:
            self.follows[v] = frozenset()
        for e in self.jaxpr.eqns:
            for v in e.outvars:
                self.follows[v] = frozenset().union(*(self.follows[x] for x in _variables(e.invars)))
        self.early = self._early()
        self.totals, self.late = self._late()

    # --- what belongs where

    def meets(self, variable: Any) -> bool:
        """Whether a variable depends on queries and keys."""
        return {ROWS, COLS} <= self.follows[variable]

    def _has(self, variable: Any, name: str) -> bool:
        return name in self.names.get(variable, ())

    def _early(self) -> set:
        found = met_by_feature(self.jaxpr, self.names) - set(self.specs)
        for e in self.jaxpr.eqns:
            features = any(self._has(v, FEATURE) for v in (*_variables(e.invars), *e.outvars))
            if features and not self.meets(e.outvars[0]) and e.primitive.name not in _FREE | {VISIBLE, "iota"}:
                found |= set(e.outvars)
        return {v for v in found if not self.meets(v)}

    def _late(self) -> tuple[dict, set]:
        """Sums over the other positions, with the axes that are still to be added up, and what follows from them."""
        totals: dict[Any, list[int]] = {}
        late: set[Any] = set()
        if running(self.plan):
            return totals, late
        other = NAMES[self.other]
        for e in self.jaxpr.eqns:
            (out, *_) = e.outvars
            if not self.meets(out) or self._has(out, other) or e.primitive.name == VISIBLE:
                continue
            x, *_ = e.invars
            if e.primitive.name == "dot_general" and self._contracts(e, other):
                totals[out] = []
            elif e.primitive.name == "reduce_sum" and any(self.names[x][a] == other for a in e.params["axes"]):
                totals[out] = [int(a) for a in e.params["axes"] if self.names[x][a] != other]
            elif e.primitive.name in _FREE and totals.get(x) == []:
                totals[out] = []
            elif all(v in late or v in totals for v in _variables(e.invars) if self.meets(v)):
                late |= set(e.outvars)
        # What the middle reads is not late, nor is what follows from that.
        before = None
        while before != late:
            before = set(late)
            for e in self.jaxpr.eqns:
                if e.outvars[0] not in late:
                    late -= set(_variables(e.invars))
                elif any(self.meets(v) and v not in late and v not in totals for v in _variables(e.invars)):
                    late -= set(e.outvars)
        return totals, late

    def _contracts(self, equation: Any, name: str) -> bool:
        (over, _), _ = equation.params["dimension_numbers"]
        x = equation.invars[0]
        return not isinstance(x, core.Literal) and any(self.names[x][a] == name for a in over)

    # --- running parts of it

    def _run(self, wanted: Sequence[Any], env: dict) -> list[Any]:
        """Values of variables, from those in ``env``."""
        env = dict(env) | dict(zip(self.jaxpr.constvars, self.flat.consts, strict=True))

        def value(atom: Any) -> Any:
            if isinstance(atom, core.Literal):
                return atom.val
            if atom not in env:
                equation = self.makers[atom]
                found = equation.primitive.bind(
                    *(value(a) for a in equation.invars), **equation.primitive.get_bind_params(equation.params)
                )
                found = found if equation.primitive.multiple_results else [found]
                env.update(zip(equation.outvars, found, strict=True))
            return env[atom]

        return [value(v) for v in wanted]

    def _reached(self, wanted: Sequence[Any], ends: Any, given: Sequence[Any] = ()) -> list[Any]:
        """Those of ``ends`` that ``wanted`` are computed from, if ``given`` are; in the order of the tile function."""
        seen, found, left = set(given), [], _variables(wanted)
        while left:
            v = left.pop()
            if v in seen:
                continue
            seen.add(v)
            if v in ends:
                found.append(v)
            elif v in self.makers:
                left += _variables(self.makers[v].invars)
        return sorted(found, key=[*self.specs, *self.makers].index)

    def _inputs_of(self, wanted: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        """Inputs of the tile function that ``wanted`` are computed from, if ``given`` are."""
        return self._reached(wanted, self.specs, given)

    def made(self) -> tuple[MadePlan, list, Callable]:
        outs = list(self.jaxpr.outvars)
        sums = self._frontier(outs)
        core_outs = [*sums, *(v for v in outs if not self._is_after(v))]
        early = self._reached(core_outs, self.early)  # what the middle reads of it
        used = self._inputs_of(core_outs, early)
        first = self.jaxpr.invars[: running(self.plan)]
        operands = [v for v in used if v not in first]
        used = [*first, *operands]

        def middle(*blocks):
            env = dict(zip([*used, *early], blocks, strict=True))
            found = []
            for v in core_outs:
                rest = self.totals.get(v) if v in sums else None
                if not rest:
                    found.append(self._run([v], env)[0])
                    continue
                equation = self.makers[v]
                (x,) = self._run([equation.invars[0]], env)
                found.append(jnp.sum(x, axis=[a for a in equation.params["axes"] if a not in rest]))
            return found

        jaxpr = jax.make_jaxpr(middle)(*(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in [*used, *early]))
        specs = [*(self.specs[v] for v in operands), *(self._spec(v) for v in early)]
        arrays = [*(self.given[v] for v in operands), *(self._before(v) for v in early)]
        after = [v for v in outs if self._is_after(v)]
        dims = {v: self._after_dims(v, sums) for v in after}
        sum_specs = []
        for v in sums:
            outer = sorted(set().union(*(dims[o] for o in after if v in self._frontier([o]))))
            sum_specs.append(MadeSpec((*outer, *self._sum_dims(v))))
        tile = MadeTile(jaxpr)
        wide = [sum_dtype(b.dtype) for b in tile.outputs]
        direct = [i for i, v in zip(self.which, outs, strict=True) if not self._is_after(v)]
        results = (*wide[: len(sums)], *(self.plan.results[i] for i in direct))
        core_specs = (*sum_specs, *(self.plan.outputs[i] for i in direct))
        made = MadePlan(
            self.plan.grid, self.plan.visit, tuple(specs), core_specs, tile, self.plan.scaled,
            tuple(self.plan.powers), self.plan.mass, results, self.plan.start,
        )  # fmt: skip

        def finish(found: Sequence[jax.Array]) -> dict[int, jax.Array]:
            computed = dict(zip(sums, zip(core_specs, found, strict=False), strict=False))
            done = dict(zip(direct, found[len(sums) :], strict=True))
            for i, v in zip(self.which, outs, strict=True):
                if i not in done:
                    done[i] = self._after(v, i, sums, computed, dims[v]).astype(self.plan.results[i])
            return done

        return made, arrays, finish

    def _is_after(self, variable: Any) -> bool:
        return not isinstance(variable, core.Literal) and (variable in self.late or bool(self.totals.get(variable)))

    def _frontier(self, variables: Sequence[Any]) -> list[Any]:
        """Sums that late variables are computed from."""
        found, left, seen = [], [v for v in variables if self._is_after(v)], set()
        while left:
            v = left.pop()
            if v in seen:
                continue
            seen.add(v)
            if v in self.totals:
                found.append(v)
            elif v in self.late:
                left += [x for x in _variables(self.makers[v].invars) if self.meets(x)]
        return sorted(found, key=list(self.makers).index)

    # --- before

    def _outer(self, variable: Any) -> list[int]:
        return sorted(d for d in self.follows[variable] if d >= 0)

    def _axis_dims(self, variable: Any) -> tuple[int | None, ...]:
        back: dict[str | None, int] = {name: d for d, name in NAMES.items()}
        return tuple(back.get(name) for name in self.names[variable])

    def _spec(self, variable: Any) -> MadeSpec:
        return MadeSpec((*self._outer(variable), *self._axis_dims(variable)))

    def _before(self, variable: Any) -> jax.Array:
        """An early variable for all positions."""
        inputs = self._inputs_of([variable], [])
        operands = [(self.specs[v], self.given[v]) for v in inputs]
        side = next((d for d in (ROWS, COLS) if d in self.follows[variable]), None)
        function = lambda *blocks: self._run([variable], dict(zip(inputs, blocks, strict=True)))[0]
        spec = self._spec(variable)
        if side is not None and side not in spec.dims:  # the same for all positions, as far as is known: of one of them
            raise Unsupported("a sum over positions before queries meet keys")
        return _mapped(function, self.plan.grid, operands, self._outer(variable), side, spec)

    # --- after

    def _sum_dims(self, variable: Any) -> tuple[int | None, ...]:
        """What the axes of a sum, as the middle computes it, follow."""
        rest = self.totals[variable]
        if not rest:
            return self._axis_dims(variable)
        x, axes = self.makers[variable].invars[0], self.makers[variable].params["axes"]
        return tuple(d for n, d in enumerate(self._axis_dims(x)) if n not in axes or n in rest)

    def _after_inputs(self, variable: Any, sums: Sequence[Any]) -> list[Any]:
        return self._inputs_of([variable], [v for v in sums if v in self._frontier([variable])])

    def _after_dims(self, variable: Any, sums: Sequence[Any]) -> set[int]:
        """Outer dimensions that an output's sums have to follow."""
        own = self.plan.outputs[self.which[self.jaxpr.outvars.index(variable)]]
        inputs = self._after_inputs(variable, sums)
        return {d for v in inputs for d in self.follows[v] if d >= 0} | {
            d for d in own.dims if d is not None and d >= 0
        }

    def _after(self, variable: Any, i: int, sums: list, computed: dict, dims: set) -> jax.Array:
        """An output, from sums over all tiles."""
        own = [v for v in sums if v in self._frontier([variable])]
        inputs = self._after_inputs(variable, sums)
        operands = [*(computed[v] for v in own), *((self.specs[v], self.given[v]) for v in inputs)]

        def function(*blocks):
            env = dict(zip(inputs, blocks[len(own) :], strict=True))
            for v, x in zip(own, blocks, strict=False):
                rest = self.totals[v]
                if rest:
                    # Axes that are left, where they are after the sum over the others.
                    axes = self.makers[v].params["axes"]
                    there = [n for n in range(self.makers[v].invars[0].aval.ndim) if n not in axes or n in rest]
                    x = jnp.sum(x, axis=[there.index(n) for n in rest])
                env[v] = x.astype(v.aval.dtype)
            return self._run([variable], env)[0]

        side = self.first if any(self.first in s.dims for s, _ in operands) else None
        return _mapped(function, self.plan.grid, operands, sorted(dims), side, self.plan.outputs[i])


def _mapped(
    function: Callable, grid: Grid, operands: Sequence[tuple], outer: Sequence[int], side: int | None, spec: Any
) -> jax.Array:
    """A function of blocks, at all outer points and blocks of positions; added up where the result follows neither."""
    block = {ROWS: grid.row_block, COLS: grid.col_block}
    count = {ROWS: grid.rows, COLS: grid.cols}
    arrays, has = [], []
    for s, x in operands:
        lead: list[Any] = [d for d in outer if d in s.dims]
        if side is not None and side in s.dims:
            axis = s.dims.index(side)
            x = x.reshape(*x.shape[:axis], count[side], block[side], *x.shape[axis + 1 :])
            dims = (*s.dims[:axis], "block", *s.dims[axis:])
            lead.append("block")
        else:
            dims = s.dims
        arrays.append(jnp.moveaxis(x, [dims.index(d) for d in lead], range(len(lead))))
        has.append(set(lead))
    points = [*outer, *(["block"] if side is not None else [])]
    mapped = function
    for d in reversed(points):
        mapped = jax.vmap(mapped, in_axes=tuple(0 if d in h else None for h in has))
    found = mapped(*arrays)
    gone = tuple(n for n, d in enumerate(points) if (side not in spec.dims if d == "block" else d not in spec.dims))
    found = found.astype(sum_dtype(found.dtype)).sum(gone) if gone else found
    left = [d for n, d in enumerate(points) if n not in gone]
    # From points and the block's axes to the result's: the block's number stands before its positions.
    sources = []
    for axis, d in enumerate(spec.dims):
        if d is not None and d >= 0:
            sources.append([left.index(d)])
            continue
        place = len(left) + sum(e is None or e < 0 for e in spec.dims[:axis])
        sources.append([left.index("block"), place] if d == side and side is not None else [place])
    found = found.transpose([n for group in sources for n in group])
    sizes, shape = iter(found.shape), []
    for group in sources:
        shape.append(functools.reduce(lambda x, y: x * y, [next(sizes) for _ in group]))
    return found.reshape(shape)


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [a for a in atoms if not isinstance(a, core.Literal)]
