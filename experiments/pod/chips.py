"""What accelerators can do: the figures that estimates of time and memory are made of."""

import dataclasses
from typing import Any

DOCS = "docs.cloud.google.com/tpu/docs"
BOOK = "jax-ml.github.io/scaling-book/tpus"


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip; of links, what can be used of them.

    Attributes:
        flops: Peak bfloat16 operations a second.
        memory: Bytes of HBM.
        bandwidth: Bytes a second to and from HBM.
        link: Bytes a second over one link between chips, both directions together.
        axes: Axes of the torus.
        devices: JAX devices of one chip.
        source: Where the figures are from.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    axes: int
    devices: int
    source: str


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1.2e12, 9.0e10, 3, 1, f"{DOCS}/v4; link: {BOOK}"),
    "v5e": Chip(197e12, 16e9, 8.1e11, 9.0e10, 2, 1, f"{DOCS}/v5e; link: {BOOK}"),
    "v5p": Chip(459e12, 95e9, 2.765e12, 1.8e11, 3, 1, f"{DOCS}/v5p; link: {BOOK}"),
    "v6e": Chip(918e12, 32e9, 1.638e12, 1.8e11, 2, 1, f"{DOCS}/v6e; link: {BOOK}"),
    "tpu7x": Chip(2307e12, 192 * 2**30, 7.38e12, 2.0e11, 3, 2, f"{DOCS}/tpu7x; link: 1200 GB/s over 6 links"),
    "h100": Chip(989e12, 80e9, 3.35e12, 9.0e11, 1, 1, "NVIDIA H100 SXM data sheet, dense bfloat16; link: NVLink 4"),
    "h200": Chip(989e12, 141e9, 4.8e12, 9.0e11, 1, 1, "NVIDIA H200 SXM data sheet, dense bfloat16; link: NVLink 4"),
}
KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e",
    "TPU v6e": "v6e", "TPU7x": "tpu7x",
}  # fmt: skip


def peak_flops(device: Any) -> float:
    """Peak bfloat16 operations a second of a JAX device; 0 if it is not known."""
    kind = device.device_kind
    name = KINDS.get(kind) or next((n for n in ("h200", "h100") if n in kind.lower()), None)
    return CHIPS[name].flops / CHIPS[name].devices if name else 0.0
