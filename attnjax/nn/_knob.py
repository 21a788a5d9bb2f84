"""A mask, score or normalizer as a module, so that its arrays can be parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Constant(nnx.Variable):
    """An array that a layer carries and does not train, such as ALiBi slopes."""


class Knob(nnx.Module):
    """Holds a pytree; its arrays are ``nnx.Param`` if trainable and ``Constant`` if not. Call it to get it back."""

    def __init__(self, value: Any, *, trainable: bool, name: str):
        leaves, self.treedef = jax.tree.flatten(value)
        floats = [
            isinstance(leaf, jax.Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves
        ]
        if trainable and not any(floats):
            raise ValueError(
                f"trainable: got {name!r}, but {value!r} carries no floating array to train; give it one, "
                f"e.g. normalizers.softmax(sink=jnp.zeros(heads))."
            )
        kinds = [nnx.Param if trainable and is_float else Constant for is_float in floats]
        self.leaves = nnx.List([kind(jnp.asarray(leaf)) for kind, leaf in zip(kinds, leaves, strict=True)])

    def __call__(self) -> Any:
        return jax.tree.unflatten(self.treedef, [leaf[...] for leaf in self.leaves])
