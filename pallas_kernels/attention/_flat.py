"""Tile functions made flat: calls inlined, dead code gone, sums over features written out, values kept in base 2.

Exponentials are taken in base 2. Where a value's only way leads to `exp`, it is kept as a multiple of ln 2 from the
multiplication that makes it (the scale of the dot product, as a rule), which costs nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from pallas_kernels._jaxpr import evaluate, inlined, needed
from pallas_kernels.attention._features import simpler


class Unsupported(NotImplementedError):
    """A tile function, or a plan, that no kernel here runs."""


class TooLarge(ValueError):
    """Tiles that do not fit the chip."""


VISIBLE = "attnjax_visible"
"""Name of the identity around a tile's visibility, which is True all over a full tile."""


@dataclasses.dataclass(frozen=True, eq=False)
class Flat:
    """A tile function without calls.

    Attributes:
        jaxpr: its equations.
        consts: its constants.
        base2: variables kept as multiples of ln 2.
        scaled: products of matrices whose only use is a multiplication by a number on the way to an exponential: from
            the product's variable to the number, and to the variable of the result.
        finals: products, and sums of them, that go nowhere but to an output.
    """

    jaxpr: Any
    consts: tuple
    base2: frozenset
    scaled: dict
    finals: frozenset


def read_inputs(flat: Flat, first: int) -> list[int]:
    """Which inputs, counted from ``first``, some equation reads."""
    read = {v for e in flat.jaxpr.eqns for v in e.invars if not isinstance(v, core.Literal)}
    read |= {v for v in flat.jaxpr.outvars if not isinstance(v, core.Literal)}
    return [n for n, v in enumerate(flat.jaxpr.invars[first:]) if v in read]


def flatten(closed: Any, outputs: Sequence[int]) -> Flat:
    """The equations that some outputs need, calls inlined.

    Args:
        closed: a closed jaxpr.
        outputs: which of its outputs.

    Returns:
        The flat function. Outputs lack their last conversion to a narrower type: they are still to be added up.
    """

    def written_out(equation, operands):
        function = simpler(equation)
        if function is None:
            return None
        traced = jax.make_jaxpr(function)(*operands)
        return evaluate(traced.jaxpr, traced.consts, operands, written_out)

    traced = inlined(closed, outputs, written_out)
    jaxpr = traced.jaxpr
    makers = {v: e for e in jaxpr.eqns for v in e.outvars}
    outs = [_wide(v, makers) for v in jaxpr.outvars]
    jaxpr = jaxpr.replace(eqns=needed(jaxpr.eqns, outs), outvars=outs)
    base2 = _kept_in_base_2(jaxpr)
    uses = _uses(jaxpr)
    scaled, finals = _scaled_products(jaxpr, base2, uses), _final_products(jaxpr, uses)
    return Flat(jaxpr, tuple(traced.consts), base2, scaled, finals)


def _wide(variable: Any, makers: dict) -> Any:
    """What a variable was before it was converted to a narrower float."""
    maker = makers.get(variable) if not isinstance(variable, core.Literal) else None
    if maker is None or maker.primitive.name != "convert_element_type":
        return variable
    (source,) = maker.invars
    before, after = (v.aval.dtype for v in (source, variable))  # pyright: ignore[reportAttributeAccessIssue]
    floats = jnp.issubdtype(before, jnp.floating) and jnp.issubdtype(after, jnp.floating)
    narrower = floats and jnp.finfo(after).bits < jnp.finfo(before).bits
    return _wide(source, makers) if narrower else variable


HOMOGENEOUS = {
    "max", "min", "sub", "add", "add_any", "neg", "select_n", "reduce_max", "reduce_min", "broadcast_in_dim",
    "reshape", "squeeze", "expand_dims", "transpose",
}  # fmt: skip
"""Functions with f(a x, a y) = a f(x, y) for a > 0."""


SUMS = ("add", "add_any")


def is_matrix(atom: Any) -> bool:
    return sum(n > 1 for n in atom.aval.shape) > 1


def is_scalar(atom: Any) -> bool:
    return all(n == 1 for n in atom.aval.shape)


def _is_float(atom: Any) -> bool:
    return jnp.issubdtype(atom.aval.dtype, jnp.floating)


def _kept_in_base_2(jaxpr: Any) -> frozenset:
    """Variables that lead to an exponential, and, where they are matrices, to nothing that needs them as they are."""
    wanted: set[Any] = set()
    plain = {v for v in jaxpr.outvars if not isinstance(v, core.Literal) and is_matrix(v)}
    for equation in reversed(jaxpr.eqns):
        wanted -= plain
        name = equation.primitive.name
        operands = [v for v in equation.invars if not isinstance(v, core.Literal) and _is_float(v)]
        if name == "exp":
            wanted |= set(operands)
        elif name in HOMOGENEOUS and not wanted.isdisjoint(equation.outvars):
            wanted |= set(operands)
        else:
            plain |= {v for v in operands if is_matrix(v)}
    return frozenset(wanted - plain)


def _uses(jaxpr: Any) -> dict[Any, int]:
    """How often each variable is read."""
    uses: dict[Any, int] = {}
    for atom in (*(a for e in jaxpr.eqns for a in e.invars), *jaxpr.outvars):
        if not isinstance(atom, core.Literal):
            uses[atom] = uses.get(atom, 0) + 1
    return uses


def _final_products(jaxpr: Any, uses: dict[Any, int]) -> frozenset:
    """See ``Flat.finals``."""
    makers = {v: e for e in jaxpr.eqns for v in e.outvars}
    found: set[Any] = set()
    for variable in jaxpr.outvars:
        if not isinstance(variable, core.Literal):
            found |= _products_below(variable, makers, uses) or set()
    return frozenset(found)


def _products_below(variable: Any, makers: dict, uses: dict[Any, int]) -> set | None:
    """A sum of products and what it is made of; None if it is no such sum, or a part of it is used elsewhere."""
    maker = makers.get(variable) if not isinstance(variable, core.Literal) else None
    if maker is None or uses[variable] != 1 or maker.primitive.name not in ("transpose", "dot_general", *SUMS):
        return None
    found = {variable}
    if maker.primitive.name != "dot_general":
        for atom in maker.invars:
            below = _products_below(atom, makers, uses)
            if below is None:
                return None
            found |= below
    return found


def _scaled_products(jaxpr: Any, base2: frozenset, uses: dict[Any, int]) -> dict:
    """See ``Flat.scaled``."""
    products = {e.outvars[0] for e in jaxpr.eqns if e.primitive.name == "dot_general"}
    found = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "mul" and equation.outvars[0] in base2:
            for product, number in (equation.invars, equation.invars[::-1]):
                if is_scalar(number) and not isinstance(product, core.Literal):
                    if product in products and uses[product] == 1:
                        found[product] = number, equation.outvars[0]
    return found
