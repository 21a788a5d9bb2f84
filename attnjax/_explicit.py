"""Arrays whose types say how they are split: those on a mesh whose axes are of the type Explicit."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import PartitionSpec

from attnjax import _compat


def rows(arrays: Mapping[str, Any], advice: str) -> PartitionSpec | None:
    """How the first of some arrays ``[*B, T, N, H]`` is split along ``[*B, T, N]``; None if no type says anything.

    Raises:
        ValueError: an array is split along T; ``advice`` is what to use then.
    """
    split = {name: _compat.explicit_axes(x) for name, x in arrays.items()}
    if not any(axis for axes in split.values() for axis in axes):
        return None
    for name, axes in split.items():
        if axes[-3] is not None:
            raise ValueError(
                f"{name}: its sequence is split over the mesh axis {axes[-3]!r}, and is wanted whole on each device; "
                f"use {advice}, on a mesh with axes of type Auto, or reshard it"
            )
    return PartitionSpec(*next(iter(split.values()))[:-1])


def automatic(call: Callable, arrays: Mapping[str, Any], out: Any) -> Callable:
    """The call, what is inside it left to XLA; its results are split as ``out`` says, a tree of partitions."""
    mesh = next(jax.typeof(x).sharding.mesh for x in arrays.values() if any(_compat.explicit_axes(x)))

    def run(*arguments):
        with jax.sharding.use_abstract_mesh(mesh):
            return jax.sharding.auto_axes(call, out_sharding=out)(*arguments)

    return run
