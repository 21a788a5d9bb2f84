"""Logical names of array axes, and the mesh axes that they are split over."""

import dataclasses
import math
from collections.abc import Mapping

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which mesh axes each logical axis of an array is split over; made by ``layout``.

    Attributes:
        mesh: the devices.
        rules: pairs of a logical name and a tuple of mesh axes.
    """

    mesh: Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...]

    def axes(self, name: str | None) -> tuple[str, ...]:
        """The mesh axes of a logical axis; none for names without a rule, and for None."""
        return dict(self.rules).get(name, ()) if name else ()

    def size(self, name: str) -> int:
        """Into how many parts a logical axis is split."""
        return math.prod(self.mesh.shape[a] for a in self.axes(name))

    def spec(self, *names: str | None) -> PartitionSpec:
        """The partition of an array with these logical axes.

        Raises:
            ValueError: two of them are split over the same mesh axis.
        """
        found = [self.axes(name) for name in names]
        used = [a for axes in found for a in axes]
        if len(used) != len(set(used)):
            raise ValueError(f"axes {names}: got two that are split over one mesh axis ({used}); change the rules")
        return PartitionSpec(*(axes if len(axes) > 1 else axes[0] if axes else None for axes in found))

    def sharding(self, *names: str | None) -> NamedSharding:
        """The sharding of an array with these logical axes: for ``jax.device_put``, ``jax.jit`` and shapes."""
        return NamedSharding(self.mesh, self.spec(*names))

    def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
        """The array, told inside ``jit`` to be split so."""
        return jax.lax.with_sharding_constraint(x, self.sharding(*names))


def layout(mesh: Mesh, rules: Mapping[str, MeshAxes]) -> Layout:
    """Rules by which arrays with named axes are split over a mesh.

    Attention reads three names: ``"batch"``, ``"sequence"`` and ``"heads"``. Any others serve parameters and
    activations, for example ``{"embed": "fsdp", "mlp": "tensor"}``.

    Args:
        mesh: the devices; its axes are of the kind Auto.
        rules: for each logical axis a mesh axis, several, or None; names that are not given are not split.

    Returns:
        A ``Layout``, hashable.

    Raises:
        ValueError: a mesh axis that the mesh does not have, one whose kind is not Auto, or one named twice in a rule.

    >>> import jax
    >>> from attnjax import parallel
    >>> mesh = jax.make_mesh((1, 1), ("data", "context"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    >>> rules = parallel.layout(mesh, {"batch": "data", "sequence": "context"})
    >>> rules.axes("sequence")
    ('context',)
    """
    found = []
    for name, axes in rules.items():
        axes = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
        unknown = [a for a in axes if a not in mesh.shape]
        if unknown or len(axes) != len(set(axes)):
            raise ValueError(f"rules[{name!r}]: got {axes}, want different axes of the mesh {dict(mesh.shape)}")
        found.append((name, axes))
    other = [a for a, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Auto]
    if other:
        raise ValueError(
            f"mesh: got axes {other} that are not Auto; make it with "
            f"jax.make_mesh(..., axis_types=(jax.sharding.AxisType.Auto,) * {len(mesh.axis_names)})"
        )
    return Layout(mesh, tuple(found))
