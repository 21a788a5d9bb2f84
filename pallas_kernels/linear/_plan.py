"""What a kernel needs to know of a walk; attnjax's own classes have it."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Step(Protocol):
    """What is done at a chunk: carries, then arrays of the chunk, to carries, then outputs.

    Attributes:
        jaxpr: a closed jaxpr of matrices, without constants.
        carries: how many of its first arguments, and of its first outputs, are carries.
    """

    jaxpr: Any
    carries: int


@runtime_checkable
class Walk(Protocol):
    """A step for each chunk, one after another.

    Attributes:
        step: see there.
        batch: leading axes of all arrays.
        backward: whether from the last chunk to the first.
    """

    @property
    def step(self) -> Any: ...
    @property
    def batch(self) -> int: ...
    @property
    def backward(self) -> bool: ...


class Unsupported(NotImplementedError):
    """A walk that no kernel here runs."""
