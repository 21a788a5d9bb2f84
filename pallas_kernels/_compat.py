"""Pallas's GPU interface, whose names differ from version to version of jax (0.10 to 0.12)."""

import inspect
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu

_INDEX = inspect.signature(plgpu.load).parameters.get("idx")
_LOAD_NEEDS_INDEX = _INDEX is not None and _INDEX.default is inspect.Parameter.empty


def load(ref: Any, layout: Any) -> jax.Array:
    """All of a reference, in registers in a layout, by whatever instructions that takes."""
    if _LOAD_NEEDS_INDEX:
        return plgpu.load(ref, (), layout=layout, optimized=False)
    return plgpu.load(ref, layout=layout, optimized=False)  # pyright: ignore[reportCallIssue]


def store(ref: Any, value: jax.Array) -> None:
    """Write an array from registers to all of a reference, by whatever instructions that takes."""
    if hasattr(plgpu, "store"):
        plgpu.store(ref, value, optimized=False)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        ref[...] = value


def transposed(ref: Any) -> Any:
    """A matrix in shared memory, read the other way round."""
    return ref.transpose((1, 0)) if hasattr(ref, "transpose") else plgpu.transpose_ref(ref, (1, 0))


def can_interpret() -> bool:
    """Whether kernels for GPU can be interpreted on other devices."""
    return hasattr(plgpu, "InterpretGPUParams")


def interpreter(**options: Any) -> Any:
    """Parameters of the interpreter of kernels for GPU.

    Raises:
        NotImplementedError: this version of jax has none.
    """
    if not can_interpret():
        raise NotImplementedError("this version of jax does not interpret kernels for GPU; jax 0.11 and newer do")
    return plgpu.InterpretGPUParams(**options)  # pyright: ignore[reportAttributeAccessIssue]


Accumulator: Any = plgpu.ACC  # pyright: ignore[reportPrivateImportUsage]
"""Sums in the registers of the matrix units."""
