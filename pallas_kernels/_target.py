"""What kernels are compiled for."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

MIB = 2**20

VMEM = {"v4": 16 * MIB, "v5e": 128 * MIB, "v5p": 64 * MIB, "v6e": 128 * MIB, "7x": 64 * MIB}
"""Bytes of vector memory that the compiler of each TPU generation uses."""

SHARED = {"h100": 227 * 1024, "h200": 227 * 1024}
"""Bytes of shared memory that a block of threads of each GPU may take."""

_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "7x",
}


TALL = {"v6e": 0.95, "7x": 0.95}
"""What a tile of 1024 queries x 512 keys costs forward and backward, in pairs of tiles of 512 x 512, where it is less
than one: in the compilers' schedules a head size of 64 to 256 makes 0.9 forward and 0.99 backward of it."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What is compiled for.

    Attributes:
        platform: "tpu" or "gpu".
        generation: of TPU: "v4", "v5e", "v5p", "v6e" or "7x"; of GPU: "h100" or "h200".
        interpret: False to compile; True, or a parameter object of Pallas's interpreter, to run on any device.
        exponential: type in which weights are exponentiated: "float32", or "bfloat16", which is faster where the chip
            has arithmetic for it (v6e, 7x) and rounds the difference to the greatest score to 8 bits first: weights are
            wrong by up to 0.2% times that difference.
    """

    platform: str
    generation: str = "v5e"
    interpret: Any = False
    exponential: str = "float32"

    def __post_init__(self):
        known = {"tpu": VMEM, "gpu": SHARED}.get(self.platform)
        if known is None:
            raise ValueError(f"platform: got {self.platform!r}, want 'tpu' or 'gpu'")
        if self.generation not in known:
            raise ValueError(f"generation: got {self.generation!r}, want one of {list(known)}")
        if self.exponential not in ("float32", "bfloat16"):
            raise ValueError(f"exponential: got {self.exponential!r}, want 'float32' or 'bfloat16'")

    @property
    def vmem(self) -> int:
        """Bytes of vector memory of a TPU."""
        return VMEM[self.generation]

    @property
    def tall(self) -> float:
        """What a tile of twice as many queries costs, in pairs of those of 512 x 512."""
        return TALL.get(self.generation, 1.0)

    @property
    def processors(self) -> int:
        """Processors of a GPU that each run a block of threads."""
        return 132

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a GPU."""
        return SHARED[self.generation]


_forced: contextvars.ContextVar[Target | None] = contextvars.ContextVar("attnjax_kernel_target", default=None)


@contextlib.contextmanager
def compile_for(target: Target) -> Iterator[None]:
    """Within the context kernels are compiled for ``target`` instead of the default device.

    For ahead-of-time compiles, and to run kernels without an accelerator:

    >>> import jax.numpy as jnp
    >>> import attnjax
    >>> from pallas_kernels import Target, compile_for
    >>> x = jnp.ones((64, 2, 16))
    >>> with compile_for(Target("tpu", interpret=True)):
    ...     print(attnjax.attend(x, x, x, implementation="pallas").shape)
    (64, 2, 16)
    """
    token = _forced.set(target)
    try:
        yield
    finally:
        _forced.reset(token)


def current() -> Target | None:
    """The target of this context, or of the default device; None where no kernel runs on it."""
    forced = _forced.get()
    if forced is not None:
        return forced
    device = jax.devices()[0]
    if device.platform == "tpu":
        generation = _KINDS.get(device.device_kind)
        return None if generation is None else Target("tpu", generation)
    if device.platform == "gpu" and getattr(device, "compute_capability", None) == "9.0":
        return Target("gpu", "h200" if "H200" in device.device_kind else "h100")
    return None


def named(generation: str, **options: Any) -> Target:
    """The target of a generation of TPU or GPU.

    Raises:
        ValueError: there is none of that name.
    """
    if generation not in (*VMEM, *SHARED):
        raise ValueError(f"generation: got {generation!r}, want one of {[*VMEM, *SHARED]}")
    return Target("gpu" if generation in SHARED else "tpu", generation, **options)
