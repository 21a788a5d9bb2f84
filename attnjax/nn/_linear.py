"""The layer around every linear-time mechanism."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax import linear
from attnjax.positions import rotary

from . import _mechanisms, _memories
from ._mechanisms import Mechanism, Size

MECHANISMS: dict[str, type[Mechanism]] = {
    "linear_attention": _mechanisms.LinearAttention,
    "taylor": _mechanisms.Taylor,
    "fastmax": _mechanisms.Fastmax,
    "log_normal": _mechanisms.LogNormal,
    "injective_attention": _mechanisms.InjectiveAttention,
    "enhanced_linear_attention": _mechanisms.EnhancedLinearAttention,
    "flow_attention": _mechanisms.FlowAttention,
    "retention": _mechanisms.Retention,
    "lightning": _mechanisms.Lightning,
    "gated_linear_attention": _mechanisms.GatedLinearAttention,
    "light_net": _mechanisms.LightNet,
    "latte": _mechanisms.Latte,
    "aaren": _mechanisms.Aaren,
    "moving_average": _mechanisms.MovingAverage,
    "wkv": _mechanisms.Wkv,
    "rwkv6": _mechanisms.Rwkv6,
    "state_space": _mechanisms.StateSpace,
    "selective_state_space": _mechanisms.SelectiveStateSpace,
    "delta_rule": _memories.DeltaRule,
    "gated_delta_rule": _memories.GatedDeltaRule,
    "kimi_delta_rule": _memories.KimiDeltaRule,
    "titans": _memories.Titans,
    "neural_memory": _memories.NeuralMemory,
    "moneta": _memories.Moneta,
    "yaad": _memories.Yaad,
    "memora": _memories.Memora,
    "elastic_net": _memories.ElasticNet,
}
"""Descriptions of mechanisms, by name."""


class LinearState(NamedTuple):
    """What a layer remembers of the tokens so far; a pytree, to be passed back as it came.

    Attributes:
        memory: the mechanism's own state.
        taps: the last inputs of the convolution, ``[*B, kernel_size - 1, C]``, or None.
        seen: the number of tokens so far.
    """

    memory: Any
    taps: Float[Array, "*B k C"] | None
    seen: Int[Array, ""]


class LinearAttention(nnx.Module):
    """A linear-time mechanism between projections, with a short convolution before it, a norm and a gate after it.

        q, k, v = f(conv(x W));    y = (RMSNorm(mechanism(q, k, v, gates(x))) * silu(x W_g)) W_o

    What f is, and which gates there are, each mechanism's source says: ``linear_attention`` (elu + 1), ``taylor``
    (Based), ``fastmax``, ``log_normal``, ``injective_attention``, ``enhanced_linear_attention``, ``flow_attention``,
    ``retention``, ``lightning``, ``gated_linear_attention``, ``light_net``, ``latte``, ``aaren``, ``moving_average``
    (Mega's), ``wkv`` (RWKV-4), ``rwkv6``, ``state_space`` (Mamba-2), ``selective_state_space`` (Mamba), ``delta_rule``
    (DeltaNet), ``gated_delta_rule``, ``kimi_delta_rule``, ``titans``, ``neural_memory``, ``moneta``, ``yaad``,
    ``memora``, ``elastic_net``. All are causal.

    Args:
        model_dim: D, the width of the input and of the output.
        heads: N.
        mechanism: its name.
        key_dim: H, features of a head's queries and keys (of its state); D / N when None.
        value_dim: V, the width of a head's values; D / N when None.
        kernel_size: taps of the convolution over queries, keys and values, or None for no convolution.
        gate: whether outputs are gated.
        rotary_base: base of the rotary encoding, in mechanisms that have one.
        layer, layers: which of how many layers this is (lightning attention's decays depend on it).
        form, chunk_size: as in ``attnjax.linear.attend``; each may be replaced at the call.
        dtype, param_dtype: dtypes of the computation and of the parameters; decays and strengths are at least float32.
        rngs: source of the initial parameters.

    Raises:
        ValueError: there is no such mechanism, a size is not positive, or D is not a multiple of N where it must be.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> layer = LinearAttention(32, 4, "gated_delta_rule", rngs=nnx.Rngs(0))
        >>> x = jnp.ones((2, 10, 32))
        >>> first, state = layer(x[:, :7], return_state=True)
        >>> rest = layer(x[:, 7:], state=state, form="recurrent")
        >>> bool(jnp.allclose(jnp.concatenate([first, rest], 1), layer(x), atol=1e-5))
        True

    Source: norm of each head and swish gate from Sun et al., 2023, arXiv 2307.08621; convolutions of queries, keys and
        values from Yang et al., 2024, arXiv 2406.06484; the mechanisms' sources stand at its functions.
    Deviation: one layer for all; token shifts of RWKV are the convolution, its receptance is the gate.
    """

    def __init__(
        self,
        model_dim: int,
        heads: int,
        mechanism: str = "gated_delta_rule",
        *,
        key_dim: int | None = None,
        value_dim: int | None = None,
        kernel_size: int | None = 4,
        gate: bool = True,
        rotary_base: float = 10000.0,
        layer: int = 0,
        layers: int = 1,
        form: linear.Form = "chunked",
        chunk_size: int = 64,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check(model_dim, heads, mechanism, key_dim, value_dim, kernel_size)
        size = Size(
            model_dim, heads, key_dim or model_dim // heads, value_dim or model_dim // heads, layer, layers, param_dtype
        )
        kind = MECHANISMS[mechanism]
        options: dict[str, Any] = dict(use_bias=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.heads, self.widths = heads, tuple(getattr(size, width) for _, width in kind.projects)
        channels, out = heads * sum(self.widths), heads * size.value_dim
        self.project = nnx.Linear(model_dim, channels, **options)
        self.kernel = None if kernel_size is None else _kernel((kernel_size, channels), param_dtype, rngs)
        self.mechanism: Any = kind(size, rngs)
        self.norm = nnx.RMSNorm(size.value_dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.gate = nnx.Linear(model_dim, out, **options) if gate else None
        self.out = nnx.Linear(out, model_dim, **options)
        self.rotary_base = rotary_base
        self.form: linear.Form = form
        self.chunk_size = chunk_size

    def __call__(
        self,
        x: Float[Array, "*B T D"],
        *,
        state: LinearState | None = None,
        return_state: bool = False,
        segment_ids: Int[Array, "*#B T"] | None = None,
        form: linear.Form | None = None,
        chunk_size: int | None = None,
        over: linear.Over | None = None,
    ) -> Any:
        """Outputs of every token, from itself and those before it.

        Args:
            x: input.
            state: what came before, as an earlier call returned it; None begins anew.
            return_state: also return the state after the last token.
            segment_ids: where they change, the layer begins anew; the first token continues the state.
            form, chunk_size: replace those of the layer where not None.
            over: ``parallel.state_passing(layout)`` for tokens that are split over devices.

        Returns:
            The output ``[*B, T, D]``, and the state if it is asked for.
        """
        mixed, taps = self.project(x), None
        if self.kernel is not None:
            before = None if state is None else state.taps
            mixed, taps = linear.short_convolution(
                mixed, self.kernel[...], state=before, return_state=True, segment_ids=segment_ids
            )
        seen = jnp.zeros((), jnp.int32) if state is None else state.seen
        found = self.mechanism(
            x,
            **self._prepared(mixed, seen),
            form=self.form if form is None else form,
            chunk_size=self.chunk_size if chunk_size is None else chunk_size,
            segment_ids=segment_ids,
            state=None if state is None else state.memory,
            return_state=return_state,
            **({} if over is None else {"over": over}),
        )
        o, memory = found if return_state else (found, None)
        o = self.norm(o).reshape(*x.shape[:-1], -1)
        y = self.out(o if self.gate is None else o * jax.nn.silu(self.gate(x)))
        return (y, LinearState(memory, taps, seen + x.shape[-2])) if return_state else y

    def _prepared(self, mixed: Array, seen: Array) -> dict[str, Array]:
        """What the mechanism asks for, by name, ``[*B, T, N, .]``."""
        kind, prepared, begin = self.mechanism, {}, 0
        for (name, _), width in zip(kind.projects, self.widths, strict=True):
            end = begin + self.heads * width
            part = mixed[..., begin:end].reshape(*mixed.shape[:-1], self.heads, width)
            begin = end
            part = jax.nn.silu(part) if name in kind.activated else part
            if name != "value":
                part = _standard(part) if kind.standard else _unit(part) if kind.unit else part
                positions = seen + jnp.arange(part.shape[-3])
                part = rotary(part, positions, base=self.rotary_base) if kind.rotary else part
            prepared[name] = part
        return prepared


def _kernel(shape: tuple[int, int], dtype: Any, rngs: nnx.Rngs) -> nnx.Param:
    """Taps as uniform as those of torch's ``Conv1d``."""
    bound = shape[0] ** -0.5
    return nnx.Param(jax.random.uniform(rngs.params(), shape, dtype, -bound, bound))


def _unit(x: Array) -> Array:
    """Of length one; a zero stays zero."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)


def _standard(x: Array) -> Array:
    return jax.nn.standardize(x, axis=-1)


def _check(
    model_dim: int, heads: int, mechanism: str, key_dim: int | None, value_dim: int | None, kernel_size: int | None
) -> None:
    if mechanism not in MECHANISMS:
        raise ValueError(f"mechanism: got {mechanism!r}, wanted one of {', '.join(MECHANISMS)}.")
    sizes = {"model_dim": model_dim, "heads": heads, "key_dim": key_dim, "value_dim": value_dim}
    for name, size in {**sizes, "kernel_size": kernel_size}.items():
        if size is not None and size < 1:
            raise ValueError(f"{name}: got {size}, wanted a positive number.")
    if (key_dim is None or value_dim is None) and model_dim % heads:
        raise ValueError(
            f"heads: got {heads}, wanted a divisor of model_dim = {model_dim}, or give key_dim, value_dim."
        )
