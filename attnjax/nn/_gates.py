"""Numbers that a mechanism reads off its input at each token: decays, strengths. Computed in float32 or wider."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def wide(x: Any) -> Any:
    """At least float32: a decay near one has lost its digits in a narrower type."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Strengths(nnx.Module):
    """``sigmoid(x W + b)``, one number for each head."""

    def __init__(self, model_dim: int, heads: int, *, bias: float = 0.0, param_dtype: Any, rngs: nnx.Rngs):
        start = nnx.initializers.constant(bias)
        self.project = nnx.Linear(model_dim, heads, bias_init=start, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*B T D"]) -> Float[Array, "*B T K"]:
        return jax.nn.sigmoid(self.project(wide(x)))


class LowRank(nnx.Module):
    """``f(x W_1) W_2``, numbers for each feature of each head."""

    def __init__(
        self, model_dim: int, heads: int, features: int, *, rank: int, use_bias: bool, param_dtype: Any, rngs: nnx.Rngs
    ):
        options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
        self.down = nnx.Linear(model_dim, rank, use_bias=False, **options)
        self.up = nnx.LinearGeneral(rank, (heads, features), use_bias=use_bias, **options)

    def __call__(self, x: Float[Array, "*B T D"], f: Any = lambda x: x) -> Float[Array, "*B T K H"]:
        return self.up(f(self.down(wide(x))))


def step_bias(shape: tuple[int, ...], *, param_dtype: Any, rngs: nnx.Rngs) -> nnx.Param:
    """A bias b whose ``softplus(b)`` is log-uniform between 0.001 and 0.1, as in Mamba-2."""
    logs = jax.random.uniform(rngs.params(), shape, jnp.float32, math.log(1e-3), math.log(1e-1))
    steps = jnp.exp(logs)
    return nnx.Param((steps + jnp.log(-jnp.expm1(-steps))).astype(param_dtype))


class Steps(nnx.Module):
    """``softplus(x W + b)``: how far a state moves at a token, one number for each head."""

    def __init__(self, model_dim: int, heads: int, *, param_dtype: Any, rngs: nnx.Rngs):
        self.project = nnx.Linear(model_dim, heads, use_bias=False, param_dtype=param_dtype, rngs=rngs)
        self.bias = step_bias((heads,), param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*B T D"]) -> Float[Array, "*B T K"]:
        found = self.project(wide(x))
        return jax.nn.softplus(found + self.bias[...].reshape((1,) * (found.ndim - 1) + (-1,)))
