"""Layers that mix tokens by convolutions, without comparing any two."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax import linear


class BaseConv(nnx.Module):
    """The gated convolution ``y = (x W + b_1) * (h conv x + b_2)``.

    Args:
        model_dim: D.
        heads: not used; for the calling convention of other layers.
        kernel_size: L, taps of the kernel: the tokens that are seen.
        implicit: whether the kernel is made by a small network of the tap's position, as long ones are.
        residual: whether x is added (the authors' code does).
        param_dtype: dtype of the parameters.
        rngs: source of the initial parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> BaseConv(8, kernel_size=3, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 8))).shape
        (2, 5, 8)

    Source: Arora et al., 2023, Zoology, arXiv 2312.04927.
    """

    def __init__(
        self,
        model_dim: int,
        heads: int = 1,
        *,
        kernel_size: int = 3,
        implicit: bool = False,
        residual: bool = False,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check(model_dim, heads, kernel_size)
        start = nnx.initializers.lecun_normal()(rngs.params(), (model_dim, model_dim), param_dtype)
        self.weight, self.bias = nnx.Param(start), nnx.Param(jnp.zeros(model_dim, param_dtype))
        self.kernel_bias = nnx.Param(jnp.zeros(model_dim, param_dtype))
        made = linear.ImplicitKernel.init(rngs.params(), model_dim) if implicit else _taps(kernel_size, model_dim, rngs)
        self.kernel = nnx.Param(jax.tree.map(lambda x: x.astype(param_dtype), made))
        self.implicit, self.residual, self.kernel_size = implicit, residual, kernel_size

    def __call__(
        self,
        x: Float[Array, "*B T D"],
        *,
        state: Float[Array, "*B k D"] | None = None,
        return_state: bool = False,
        segment_ids: Int[Array, "*#B T"] | None = None,
        **run: Any,
    ) -> Any:
        """Outputs ``[*B, T, D]``, and the last L - 1 inputs if asked for; ``run`` is for other layers."""
        kernel, knobs = self.kernel.get_value(), {}
        if self.implicit:
            kernel = linear.implicit_kernel(self.kernel_size, kernel)
        if self.implicit and state is None and not return_state and segment_ids is None:
            kernel, knobs = kernel[: x.shape[-2]], {"fourier": True}
        else:
            knobs = {"state": state, "return_state": return_state, "segment_ids": segment_ids}
        gates = self.weight[...].astype(x.dtype), self.bias[...].astype(x.dtype)
        own = kernel, self.kernel_bias[...].astype(x.dtype)
        return linear.base_conv(x, *gates, *own, residual=self.residual, **knobs)


class LightConv(nnx.Module):
    """Lightweight convolution: a gated projection, one softmax kernel for each head, and a projection.

        u = (x W_1) * sigmoid(x W_2);    y = light_conv(u) W_o

    With ``dynamic`` each token makes its own kernel, ``softmax(u_t W_k)``.

    Args:
        model_dim: D.
        heads: N, of which each has one kernel.
        kernel_size: L, taps of the kernel.
        dynamic: see above.
        param_dtype: dtype of the parameters.
        rngs: source of the initial parameters.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> LightConv(8, 2, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 8))).shape
        (2, 5, 8)

    Source: Wu et al., 2019, Pay Less Attention with Lightweight and Dynamic Convolutions, arXiv 1901.10430.
    """

    def __init__(
        self,
        model_dim: int,
        heads: int,
        *,
        kernel_size: int = 7,
        dynamic: bool = False,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check(model_dim, heads, kernel_size)
        if model_dim % heads:
            raise ValueError(f"heads: got {heads}, wanted a divisor of model_dim = {model_dim}.")
        options: dict[str, Any] = dict(param_dtype=param_dtype, rngs=rngs)
        self.project = nnx.Linear(model_dim, 2 * model_dim, **options)
        self.logits = nnx.Linear(model_dim, kernel_size * heads, use_bias=False, **options) if dynamic else None
        self.fixed = None if dynamic else nnx.Param(_taps(kernel_size, heads, rngs).astype(param_dtype))
        self.out = nnx.Linear(model_dim, model_dim, **options)
        self.shape = kernel_size, heads

    def __call__(
        self,
        x: Float[Array, "*B T D"],
        *,
        state: Float[Array, "*B k D"] | None = None,
        return_state: bool = False,
        segment_ids: Int[Array, "*#B T"] | None = None,
        **run: Any,
    ) -> Any:
        """Outputs ``[*B, T, D]``, and the last L - 1 inputs of the convolution if asked for; ``run`` is for others."""
        u = jax.nn.glu(self.project(x))
        knobs: dict[str, Any] = dict(state=state, return_state=return_state, segment_ids=segment_ids)
        if self.logits is None:
            assert self.fixed is not None
            found = linear.light_conv(u, self.fixed[...], **knobs)
        else:
            found = linear.dynamic_conv(u, self.logits(u).reshape(*u.shape[:-1], *self.shape), **knobs)
        return (self.out(found[0]), found[1]) if isinstance(found, tuple) else self.out(found)


def _taps(size: int, channels: int, rngs: nnx.Rngs) -> Array:
    bound = size**-0.5
    return jax.random.uniform(rngs.params(), (size, channels), minval=-bound, maxval=bound)


def _check(model_dim: int, heads: int, kernel_size: int) -> None:
    if min(model_dim, heads, kernel_size) < 1:
        got = f"{model_dim}, {heads}, {kernel_size}"
        raise ValueError(f"model_dim, heads, kernel_size: got {got}, wanted positive numbers.")
