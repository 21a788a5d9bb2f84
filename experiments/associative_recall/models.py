"""The models: a gated convolution over three tokens, then what is to be compared."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int

from attnjax import masks
from attnjax.attention.masks import Mask
from attnjax.nn import BaseConv, LightConv, LinearAttention, TransformerLM

Family = Literal[
    "softmax",
    "taylor",
    "linear_attention",
    "gated_linear_attention",
    "delta_rule",
    "state_space",
    "base_conv",
    "dynamic_conv",
]
TAYLOR_FEATURES = 8
LINEAR = ("taylor", "linear_attention", "gated_linear_attention", "delta_rule", "state_space")


def build(family: Family, *, vocabulary: int, width: int, length: int, rngs: nnx.Rngs) -> TransformerLM:
    """Two layers, with "taylor" those of Based. The first is the same in all and lets a token know those before it.

    Both convolutions that may come second reach over all tokens, the gated one by an implicit kernel; linear attention
    has no convolution and no gate of its own, as softmax has none, and the second-order one few features, since it has
    their squares too.
    """
    # Small triangles to solve, as the parallel form has them, are slow where a CPU's BLAS starts threads for each.
    form = "recurrent" if family == "delta_rule" else "parallel"
    plain: dict[str, Any] = {"kernel_size": None, "gate": False, "form": form}
    mechanism = lambda **options: functools.partial(LinearAttention, **plain, **options)
    others: dict[str, Any] = {
        "taylor": mechanism(mechanism="taylor", key_dim=TAYLOR_FEATURES),
        "base_conv": functools.partial(BaseConv, kernel_size=length, implicit=True),
        "dynamic_conv": functools.partial(LightConv, kernel_size=length, dynamic=True),
    }
    second: Any = "softmax" if family == "softmax" else others.get(family, mechanism(mechanism=family))
    return TransformerLM(
        vocabulary,
        width,
        layers=2,
        heads=1,
        mixer=("base_conv", second),
        mask=masks.causal(),
        rotary_base=None,
        rngs=rngs,
    )


def repeated(tokens: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Whether a token is no filler and has occurred before."""
    same = tokens[:, :, None] == tokens[:, None, :]
    earlier = jnp.tri(tokens.shape[1], k=-1, dtype=bool)[None]
    return (same & earlier).any(-1) & (tokens > 0)


def selective(tokens: Int[Array, "B T"]) -> Mask:
    """Causal, and only repeated tokens attend."""
    return masks.causal() & masks.from_array(repeated(tokens)[:, None, :, None])


def state_size(model: TransformerLM, length: int) -> int:
    """How many numbers the model keeps of ``length`` tokens, to go on from there."""

    def kept(tokens: Array) -> list[Array]:
        return jax.tree.leaves(model(tokens, state=model.empty((1,), length), return_state=True)[1])

    leaves = jax.eval_shape(kept, jnp.zeros((1, length), jnp.int32))
    return sum(leaf.size for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating))
