"""Folds by the kernels of ``pallas_kernels``; what they do not run is streamed, or refused where it was asked for."""

import dataclasses
from collections.abc import Sequence

import jax

from attnjax.attention._tiles import Plan
from pallas_kernels import Target, current
from pallas_kernels.attention import TooLarge, Unsupported, fold


@dataclasses.dataclass(frozen=True)
class Fused:
    """Runs a fold and all its derivatives in kernels.

    Attributes:
        target: what they are compiled for.
        required: whether a fold that no kernel runs is an error; its derivatives are streamed instead.
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


__all__ = ["Fused", "current"]
