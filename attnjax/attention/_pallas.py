"""Folds by the kernels of ``pallas_kernels``; what they do not run is streamed, or refused where it was asked for."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from attnjax.attention import _fold, _forms
from attnjax.attention._plan import LANES
from attnjax.attention._problem import Problem
from attnjax.attention._tiles import Plan, scan
from attnjax.attention.normalizers import Monoid
from pallas_kernels import Target, current
from pallas_kernels.attention import TooLarge, Unsupported, check, fold


@dataclasses.dataclass(frozen=True)
class Fused:
    """Runs a fold and all its derivatives in kernels.

    Attributes:
        target: what they are compiled for.
        required: whether a fold that no kernel runs is an error; it is streamed instead.
    """

    target: Target
    required: bool = True

    def __call__(self, plan: Plan, kinds: jax.Array, arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...] | None:
        try:
            return fold(plan, kinds, arrays, self.target)
        except Unsupported as error:
            if self.required:
                raise NotImplementedError(
                    f"implementation='pallas': no kernel runs {error}; use implementation='blocks'"
                ) from error
            return None
        except TooLarge as error:
            raise ValueError(f"implementation='pallas': {error}; choose smaller ones by block_sizes") from error

    def tangent(self, live: tuple[int, ...]) -> "Fused":
        return Fused(self.target, required=False)

    def transpose(self, linear: tuple[int, ...], operands: int, complete: bool) -> "Fused":
        return Fused(self.target, required=False)

    def batch(self, axes: tuple[int | None, ...], plan: Plan) -> "Fused":
        return self

    def carry(
        self, plan: Plan, begin: Sequence[jax.Array], kinds: jax.Array, arrays: Sequence[jax.Array]
    ) -> tuple[jax.Array, ...]:
        """Values by a kernel, derivatives by scans."""

        @jax.custom_jvp
        def run(kinds, begin, arrays):
            return _fold.fold(plan, kinds, arrays)

        @run.defjvp
        def _(primals, tangents):
            kinds, begin, arrays = primals
            scanned = lambda arrays: scan(plan, begin, kinds, arrays)
            return run(*primals), jax.jvp(scanned, (arrays,), (tangents[2],))[1]

        return run(kinds, tuple(begin), tuple(arrays))

    def across(self) -> None:
        help = (
            "jit does not split kernels over several devices; by parallel.all_to_all_attend(..., layout=...) each "
            "device runs them on its batch and heads"
        )
        if self.required:
            raise NotImplementedError(f"implementation='pallas': {help}; or use implementation='blocks'")
        warnings.warn(f"attend: {help}. Streamed without kernels now", stacklevel=2)


def refusal(request: Any, block_q: int, block_kv: int, target: Target) -> str | None:
    """Why no kernel runs a call in these tiles, or None; found by tracing it once for each shape.

    Raises:
        ValueError: kernels were asked for by name, and it is the tiles that will not do.
    """
    lengths = {"q": (block_q, request.q.shape[-3]), "kv": (block_kv, request.k.shape[-3])}
    for name, (block, length) in lengths.items():
        fits = block % LANES == 0 or block == length or (name == "q" and block == 1)
        if target.platform == "tpu" and not fits and not target.interpret:
            return _tiles_refused(request, f"BlockSizes({name}={block}) is no multiple of {LANES}")
    if isinstance(request.normalizer, Monoid):
        dtype = jnp.promote_types(request.q.dtype, jnp.float32)
        if _forms.start_of(request.normalizer, block_q, request.v.shape[-1], dtype) is None:
            return "init() of a normalizer made by from_monoid() gives more than one number in an array"
    leaves, structure = jax.tree.flatten(request.parts)
    shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) for x in leaves)
    error = _refusal(structure, shapes, block_q, block_kv, target)
    if isinstance(error, TooLarge):
        return _tiles_refused(request, f"{error}; choose smaller ones by block_sizes")
    return None if error is None else f"no kernel runs {error}; use implementation='blocks'"


def _tiles_refused(request: Any, why: str) -> str:
    if request.implementation == "pallas":
        raise ValueError(f"implementation='pallas': {why}")
    return why


@functools.lru_cache(maxsize=256)
def _refusal(structure: Any, shapes: tuple, block_q: int, block_kv: int, target: Target) -> Exception | None:
    def sums(*leaves):
        q, k, v, mask, score, normalizer, scale, stats = jax.tree.unflatten(structure, leaves)
        parts = {"mask": mask, "score": score, "normalizer": normalizer, "scale": scale, "stats": stats}
        problem = Problem(q, k, v, **parts, block_q=block_q, block_kv=block_kv)
        if normalizer.counts:
            problem.add_count(_forms.visible_count(problem, True))
        form = _forms.Streamed(problem, True)
        if isinstance(normalizer, Monoid):
            plan, _, operands, _ = _forms.carried(problem, form)
            return _fold.fold(plan, form.kinds, operands)
        return form.sums()

    equation = [e for e in jax.make_jaxpr(sums)(*shapes).eqns if e.primitive is _fold.fold_p][-1]
    kinds, *arrays = (jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars)
    try:
        check(equation.params["plan"], kinds, arrays, target)
    except (Unsupported, TooLarge) as error:
        return error
    return None


__all__ = ["Fused", "current", "refusal"]
