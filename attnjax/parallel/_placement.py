"""Placements: which part of a sequence lies on which device."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped


@dataclasses.dataclass(frozen=True)
class Placement:
    """The order in which the tokens of a sequence lie in an array that is split evenly over devices.

    Attributes:
        devices: number of devices along the sequence.
        folded: whether device i holds pieces i and 2n - 1 - i of 2n equal ones, instead of piece i of n.
    """

    devices: int
    folded: bool

    @property
    def pieces(self) -> int:
        """Number of equal runs of neighboring tokens that a sequence is cut into."""
        return self.devices * (2 if self.folded else 1)

    @property
    def order(self) -> Int[np.ndarray, "devices pieces"]:
        """The pieces that each device holds, counted from the start of the sequence."""
        early = np.arange(self.devices)
        return np.stack([early, 2 * self.devices - 1 - early], axis=1) if self.folded else early[:, None]

    def __call__(self, length: int) -> Int[np.ndarray, " length"]:
        """The positions of the tokens, in the order in which they lie: for rotary encodings, for example.

        Raises:
            ValueError: the sequence cannot be cut into equal pieces.
        """
        if length % self.pieces:
            raise ValueError(f"length {length}: {self} wants a multiple of {self.pieces}; pad the sequence")
        return np.arange(length).reshape(self.pieces, -1)[self.order.reshape(-1)].reshape(-1)

    def place(self, x: Shaped[Array, "..."], axis: int) -> Shaped[Array, "..."]:
        """Tokens in the order of a text, put into this placement's; ``axis`` is that of the sequence."""
        return jnp.take(x, self(x.shape[axis]), axis=axis) if self.folded else x

    def restore(self, x: Shaped[Array, "..."], axis: int) -> Shaped[Array, "..."]:
        """Tokens in this placement's order, put back into that of a text."""
        return jnp.take(x, np.argsort(self(x.shape[axis])), axis=axis) if self.folded else x


def contiguous(devices: int) -> Placement:
    """Device i holds the i-th of n equal pieces of a sequence: the tokens lie as they are read.

    For windows and full attention; under a causal mask the last device works about twice as long as the average.

    Args:
        devices: number of devices along the sequence, n.

    Returns:
        A ``Placement``: of a length it gives the positions in the order in which the tokens lie.

    Raises:
        ValueError: n is less than 1.

    >>> from attnjax import parallel
    >>> parallel.contiguous(2)(8)
    array([0, 1, 2, 3, 4, 5, 6, 7])
    """
    return Placement(_count(devices), False)


def zigzag(devices: int) -> Placement:
    """Device i holds pieces i and 2n - 1 - i of 2n: an early one and a late one, so that causal work is even.

    Put tokens, targets and segment ids into this order once, where a batch is made; attention then finds each token's
    position, and nothing else needs to know.

    Args:
        devices: number of devices along the sequence, n.

    Returns:
        A ``Placement``: of a length it gives the positions in the order in which the tokens lie.

    Raises:
        ValueError: n is less than 1.

    Source: Zhu, 2024, ring-flash-attention (github.com/zhuzilin/ring-flash-attention); Dubey et al., 2024, The Llama 3
    Herd of Models, section 3.3.2, arXiv 2407.21783.

    >>> from attnjax import parallel
    >>> parallel.zigzag(2)(8)
    array([0, 1, 6, 7, 2, 3, 4, 5])
    """
    return Placement(_count(devices), True)


def _count(devices: int) -> int:
    if devices < 1:
        raise ValueError(f"devices={devices}: want at least 1")
    return devices
