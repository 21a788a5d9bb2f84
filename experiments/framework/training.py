"""Many runs of one training loop at once, over all devices."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def advance(
    step: Callable[[Any, jax.Array], tuple[Any, Any]], states: Any, keys: jax.Array, steps: int
) -> tuple[Any, Any]:
    """`steps` steps of every run: one vmap, whose runs are spread over the devices where their number divides.

    Args:
        step: `(state, key) -> (state, report)`; the key is a function of the run's own and of `state.step`. The same
            function object again does not compile again.
        states: One per run, stacked `[R, ...]`; they have a field `step`.
        keys: One per run `[R]`.
        steps: How many.

    Returns:
        The states after them, and the reports `[R, steps, ...]`.

    Example:
        >>> from typing import NamedTuple
        >>> import jax.numpy as jnp
        >>> class State(NamedTuple):
        ...     x: jax.Array
        ...     step: jax.Array
        >>> def step(state, key):
        ...     return State(state.x / 2, state.step + 1), state.x
        >>> runs = State(jnp.array([1.0, 4.0]), jnp.zeros(2, int))
        >>> print(advance(step, runs, jax.random.split(jax.random.key(0), 2), 3)[1])
        [[1.   0.5  0.25]
         [4.   2.   1.  ]]
    """
    return on_one_device(step, *spread((states, keys)), steps)


def advance_to(
    step: Callable[[Any, jax.Array], tuple[Any, Any]], states: Any, keys: jax.Array, ends: Iterable[int]
) -> Iterator[tuple[int, Any]]:
    """`advance`, with a stop wherever something is to be measured.

    Args:
        step: See `advance`.
        states: At step 0.
        keys: See `advance`.
        ends: Increasing numbers of steps; see `evenly`.

    Yields:
        The number of steps, and the states after them.
    """
    done = 0
    for end in ends:
        states, done = advance(step, states, keys, end - done)[0], end
        yield end, states


def evenly(steps: int, pieces: int) -> list[int]:
    """The ends of equal pieces of a run.

    Example:
        >>> evenly(10, 4)
        [2, 5, 7, 10]
    """
    return [steps * piece // pieces for piece in range(1, pieces + 1)]


def cooling(rate: float, steps: int) -> optax.Schedule:
    """A learning rate that is constant for half of the steps, and falls linearly to zero in the other half.

    Example:
        >>> schedule = cooling(0.1, 100)
        >>> print([round(float(schedule(step)), 3) for step in (0, 50, 75, 100)])
        [0.1, 0.1, 0.05, 0.0]
    """
    return optax.linear_schedule(rate, 0.0, steps - steps // 2, steps // 2)


@functools.partial(jax.jit, static_argnums=(0, 3))
def on_one_device(step, states: Any, keys: jax.Array, steps: int) -> tuple[Any, Any]:
    """`advance` where the states are; see there."""
    return jax.vmap(lambda state, key: one_run(step, state, key, steps))(states, keys)


def one_run(step, state: Any, key: jax.Array, steps: int) -> tuple[Any, Any]:
    """`steps` steps of a single run, for `jax.pmap` or a vmap of one's own.

    Args:
        step: See `advance`.
        state: Of the run.
        key: Of the run.
        steps: How many.

    Returns:
        The state after them, and the reports.
    """
    return jax.lax.scan(lambda state, _: step(state, jax.random.fold_in(key, state.step)), state, length=steps)


def spread(runs: Any) -> Any:
    """Put each device's share of the leading axis on it; all stays where it is if the devices do not divide it."""
    devices, count = jax.devices(), len(jax.tree.leaves(runs)[0])
    if len(devices) == 1 or count % len(devices):
        return runs
    mesh = jax.make_mesh((len(devices),), ("runs",), axis_types=(AxisType.Auto,))
    return jax.device_put(runs, NamedSharding(mesh, PartitionSpec("runs")))
