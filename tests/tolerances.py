"""How far two computations of the same thing may lie apart: the one table, with reasons.

The error is relative and scale free: RMS(got - want) / RMS(want), as a whole array must be right and small entries
need not be. Beside it a bound on the largest single error keeps one wrong row from drowning in a large array.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Tolerance(NamedTuple):
    """Bounds on the relative RMS error, by what is compared.

    Attributes:
        value: outputs and statistics.
        derivative: gradients, tangents.
        second: Hessian-vector products.
        reason: why these numbers.
    """

    value: float
    derivative: float
    second: float
    reason: str


TOLERANCES = {
    "float64": Tolerance(
        1e-12,
        1e-12,
        1e-12,
        "Rounding is 1e-16; ratios of sums over a few hundred keys, taken in another order, cost up to 1e3 times that.",
    ),
    "float32": Tolerance(
        1e-5,
        1e-5,
        5e-5,
        "Rounding is 6e-8; errors of short sums mostly cancel, so this is a smaller multiple of it than in float64. "
        "A second derivative subtracts terms that are nearly equal.",
    ),
    "float16": Tolerance(
        1e-3,
        3e-3,
        1e-2,
        "Against float32 from the same rounded inputs. Rounding the output alone is 5e-4 at worst; products of weights "
        "with values may run in float16 on accelerators, and a derivative multiplies two such.",
    ),
    "bfloat16": Tolerance(
        6e-3,
        2e-2,
        6e-2,
        "As float16, with 8 times its rounding: 4e-3 at worst for one number.",
    ),
}
PEAK = 16
"""The largest single error, relative to the largest entry, may be this many times the bound on the RMS: rounding has no
heavier tails than that in arrays of up to 1e6 entries, a wrong row does."""


def assert_close(got: Any, want: Any, *, kind: str = "value", dtype: Any = None) -> None:
    """Check two pytrees of arrays by the table.

    Args:
        got: what is tested.
        want: the reference; the table's row is that of ``got``'s type.
        kind: "value", "derivative" or "second".
        dtype: the row to use, where ``got`` was computed in a lower precision than its type.
    """
    got_leaves, got_tree = jax.tree.flatten(got)
    want_leaves, want_tree = jax.tree.flatten(want)
    assert got_tree == want_tree, f"different structures: got {got_tree}, want {want_tree}"
    for number, (one, other) in enumerate(zip(got_leaves, want_leaves, strict=True)):
        name = jnp.dtype(dtype or jnp.result_type(one)).name
        bound = getattr(TOLERANCES[name], kind)
        _assert_array_close(np.asarray(one), np.asarray(other), bound, f"{kind} {number}, {name}")


def _assert_array_close(got: np.ndarray, want: np.ndarray, bound: float, label: str) -> None:
    assert got.shape == want.shape, f"{label}: got shape {got.shape}, want {want.shape}"
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=f"{label}: infinities or NaN")
    error, peak = relative_errors(got[finite], want[finite])
    print(f"{label}: relative RMS error {error:.1e}, largest {peak:.1e}, bound {bound:.1e}")
    assert error <= bound, f"{label}: relative RMS error {error:.2e} > {bound:.1e}"
    assert peak <= PEAK * bound, f"{label}: largest error {peak:.2e} of the largest entry > {PEAK} * {bound:.1e}"


def relative_errors(got: np.ndarray, want: np.ndarray) -> tuple[float, float]:
    """RMS(got - want) / RMS(want), and max|got - want| / max|want|; infinite where only ``want`` is all zero."""
    if not np.any(want):
        return (np.inf, np.inf) if np.any(got) else (0.0, 0.0)
    difference = np.abs(got - want)
    rms = np.sqrt(np.mean(difference**2) / np.mean(want**2))
    return float(rms), float(np.max(difference) / np.max(np.abs(want)))
