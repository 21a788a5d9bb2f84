"""Chips that are not there: described devices that the real compilers compile for, on any Linux machine."""

import logging
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
"""Of each generation of TPU, the smallest slice that the compiler describes, and how."""

_CARDS = {
    "h100": ("NVIDIA H100 80GB HBM3", 3_350_000_000_000, 52_428_800, 85_000_000_000),
    "h200": ("NVIDIA H200", 4_800_000_000_000, 62_914_560, 150_000_000_000),
}
"""Of each GPU its name, bytes per second and bytes of second-level cache and of memory."""

_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {cache}
  clock_rate_ghz: 1.98 device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{name}"
"""
"""What XLA is told of a GPU (its ``GpuTargetConfigProto``)."""

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""What the process must be started with, or set before jax's first use of a device."""


def prepare() -> None:
    """Set the environment in which compilers run without a chip. Call it before anything uses a device."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])  # jax has read its variable when it was imported


def devices(target: Target) -> list[Any]:
    """Described devices: of a slice of the target's generation of TPU, or a GPU.

    Raises:
        RuntimeError: the compiler is not installed.
    """
    from jax.experimental import topologies

    if target.platform == "tpu":
        name, options = TOPOLOGIES[target.generation]
        arguments = {"platform": "tpu", "topology_name": name, **options}
    else:
        _find_plugins()
        name, bandwidth, cache, memory = _CARDS[target.generation]
        text = _DESCRIPTION.format(name=name, bandwidth=bandwidth, cache=cache, memory=memory)
        arguments = {"platform": "cuda", "topology_name": "card", "topology": "1x1x1", "target_config": text}
    try:
        return list(topologies.get_topology_desc(**arguments).devices)
    except Exception as error:
        missing = ("libtpu", "TPU support not installed", "not found", "cuda", "Unknown backend")
        if any(words in str(error) for words in missing[: 2 if target.platform == "tpu" else None]):
            raise RuntimeError(
                f"compiling for {target.platform.upper()} needs the extra 'aot': pip install 'attnjax[aot]', in an "
                "environment of its own"
            ) from error
        raise


def _find_plugins() -> None:
    """Let jax find the CUDA compiler, which complains at length that there is no GPU."""
    logger = logging.getLogger("jax._src.xla_bridge")
    before = logger.disabled
    logger.disabled = True
    try:
        jax.devices()
    finally:
        logger.disabled = before


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
