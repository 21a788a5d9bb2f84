"""TPUs that are not there: topologies that the real compiler compiles for, on any Linux machine."""

import os
from typing import Any

import jax
import numpy as np

from pallas_kernels._target import Target

TOPOLOGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "v4": ("v4:2x2x1", {"chip_config_name": "megacore"}),
    "v5e": ("v5e:2x2", {}),
    "v5p": ("v5p:2x2x1", {}),
    "v6e": ("v6e:2x2", {}),
    "7x": ("tpu7x:2x2x1", {}),
}
"""Of each generation, the smallest slice that the compiler describes, and how."""

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What the process must be started with, or set before jax's first use of a device."""


def prepare() -> None:
    """Set the environment in which libtpu compiles without a chip. Call it before anything uses a device."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def devices(target: Target) -> list[Any]:
    """Devices of a described slice of the target's generation.

    Raises:
        RuntimeError: libtpu is not installed.
    """
    from jax.experimental import topologies

    name, options = TOPOLOGIES[target.generation]
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:
        if "libtpu" in str(error) or "TPU support not installed" in str(error):
            raise RuntimeError(
                "compiling for TPU needs the extra 'aot': pip install 'attnjax[aot]', in an environment of its own"
            ) from error
        raise


def compile_on(device: Any, function: Any, *shapes: jax.ShapeDtypeStruct) -> Any:
    """``jax.jit(function)`` compiled for one described device.

    Args:
        device: one of ``devices``.
        function: of arrays.
        shapes: of its arguments.

    Returns:
        The compiled executable; its ``memory_analysis()`` tells the temporary bytes.
    """
    mesh = jax.sharding.Mesh(np.array([device]), ("device",))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=placed) for s in shapes]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(function).lower(*arguments).compile()
