"""A walk over chunks as a fused kernel."""

import math
from collections.abc import Sequence

import jax

from pallas_kernels._target import Target
from pallas_kernels.linear import _gpu, _tpu
from pallas_kernels.linear._plan import Unsupported as Unsupported
from pallas_kernels.linear._plan import Walk


def walk(plan: Walk, arrays: Sequence[jax.Array], target: Target) -> list[jax.Array]:
    """Take a step for each chunk, in one kernel that holds the carry on the chip.

    Args:
        plan: the step, and which way it goes.
        arrays: first carries ``[*batch, ...]``, then arrays of all chunks ``[*batch, M, ...]``.
        target: what to compile for.

    Returns:
        The last carries, and the outputs of all chunks.

    Raises:
        Unsupported: the step is none that the kernels run.
    """
    lead = arrays[0].shape[: plan.batch]
    flat = [x.reshape(math.prod(lead), *x.shape[plan.batch :]) for x in arrays]
    run = _tpu.run if target.platform == "tpu" else _gpu.run
    return [x.reshape(*lead, *x.shape[1:]) for x in run(plan, flat, target)]
