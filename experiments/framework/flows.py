"""Gradient flow in float64, and the step sizes with which gradient descent follows it."""

from typing import Any

import diffrax
import jax


def integrate(velocity: Any, start: Any, times: jax.Array) -> Any:
    """States along an autonomous or forced flow, by an explicit Runge-Kutta method of order 8 with adaptive steps.

    Call it under `jax.enable_x64(True)`: the tolerances, 1e-10 relative, are beyond float32.

    Args:
        velocity: `(t, state) -> state`, a pytree.
        start: State at times[0].
        times: Increasing `[T]`.

    Returns:
        States with a leading axis T.

    Example:
        >>> import jax.numpy as jnp
        >>> with jax.enable_x64(True):
        ...     path = integrate(lambda t, x: -x, jnp.array(1.0), jnp.linspace(0.0, 1.0, 3))
        >>> print(path.round(6))
        [1.       0.606531 0.367879]
    """
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, at, _: velocity(t, at)),
        diffrax.Dopri8(),
        t0=times[0],
        t1=times[-1],
        dt0=None,
        y0=start,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-13),
        max_steps=None,
    )
    assert solution.ys is not None
    return solution.ys


def decay(step: Any, steps: int) -> Any:
    """Learning rate of a step (the first is 0) over that of the first: it falls linearly to zero after the last."""
    return 1 - step / steps


def flow_time(steps: int) -> float:
    """Flow time of a whole run of descent per unit of its first learning rate, the sum of `decay`."""
    return (steps + 1) / 2
