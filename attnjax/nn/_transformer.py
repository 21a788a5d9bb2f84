"""A small pre-norm Transformer language model."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ._attention import Attention
from ._convolutions import BaseConv, LightConv
from ._linear import MECHANISMS, LinearAttention

NOTHING: Mapping[str, Any] = MappingProxyType({})


Mixer: TypeAlias = str | Callable[..., Any]
CONVOLUTIONS: dict[str, Callable[..., Any]] = {
    "base_conv": BaseConv,
    "light_conv": LightConv,
    "dynamic_conv": functools.partial(LightConv, dynamic=True),
}


def _build(
    mixer: Mixer, model_dim: int, heads: int, place: tuple[int, int], attention: Any, linear: Any, rngs: nnx.Rngs
) -> Any:
    if mixer == "softmax":
        return Attention(model_dim, heads, rngs=rngs, **attention)
    if callable(mixer):
        return mixer(model_dim, heads, rngs=rngs)
    if mixer in CONVOLUTIONS:
        return CONVOLUTIONS[mixer](model_dim, heads, rngs=rngs)
    if mixer not in MECHANISMS:
        raise ValueError(f"mixer: got {mixer!r}, wanted one of {', '.join(['softmax', *CONVOLUTIONS, *MECHANISMS])}.")
    layer, layers = place
    return LinearAttention(model_dim, heads, mixer, layer=layer, layers=layers, rngs=rngs, **linear)


class Block(nnx.Module):
    """One pre-norm residual block: ``x += Mixer(RMSNorm(x)); x += MLP(RMSNorm(x))``.

    Args:
        model_dim: D.
        heads: N.
        mixer: "softmax" for ``Attention``, the name of a mechanism for ``LinearAttention``, "base_conv", "light_conv"
            or "dynamic_conv"; or a function ``(model_dim, heads, *, rngs)`` that makes a layer, such as
            ``functools.partial(LinearAttention, mechanism="taylor", key_dim=8)``.
        linear: further arguments of ``LinearAttention``.
        place: which of how many layers this is.
        mlp_dim: hidden width of the MLP; 4 D when None.
        activation: non-linearity of the MLP.
        gated: whether the MLP is ``W_down (activation(W_gate x) * W_up x)`` (SwiGLU, with ``jax.nn.silu``; Shazeer,
            2020, arXiv 2002.05202) and not ``W_down activation(W_up x)``.
        attention: further arguments of ``Attention``.
        rngs: source of the initial parameters.
    """

    def __init__(
        self,
        model_dim: int,
        heads: int,
        *,
        mixer: Mixer = "softmax",
        linear: Mapping[str, Any] = NOTHING,
        place: tuple[int, int] = (0, 1),
        mlp_dim: int | None = None,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        gated: bool = False,
        rngs: nnx.Rngs,
        **attention: Any,
    ):
        mlp_dim = 4 * model_dim if mlp_dim is None else mlp_dim
        self.attention_norm = nnx.RMSNorm(model_dim, rngs=rngs)
        self.attention = _build(mixer, model_dim, heads, place, attention, linear, rngs)
        self.mlp_norm = nnx.RMSNorm(model_dim, rngs=rngs)
        self.gate = nnx.Linear(model_dim, mlp_dim, use_bias=False, rngs=rngs) if gated else None
        self.up = nnx.Linear(model_dim, mlp_dim, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(mlp_dim, model_dim, use_bias=False, rngs=rngs)
        self.activation = activation

    def __call__(
        self,
        x: Float[Array, "*B T D"],
        *,
        stats: Sequence[Any] = (),
        run: Mapping[str, Any] = NOTHING,
        segment_ids: Int[Array, "*#B T"] | None = None,
        state: Any = None,
        return_state: bool = False,
        **knobs: Any,
    ) -> tuple[Any, ...]:
        """The block's output, its attention's statistics (none without ``stats``) and, if asked for, its state.

        ``run`` (form, chunk_size) is for linear mechanisms, ``stats`` and ``knobs`` are for softmax attention.
        """
        common: dict[str, Any] = dict(segment_ids=segment_ids, state=state, return_state=return_state)
        softmax = isinstance(self.attention, Attention)
        own = {"stats": stats, **knobs} if softmax else run
        found = self.attention(self.attention_norm(x), **common, **own)
        o, *rest = found if isinstance(found, tuple) else (found,)
        x = x + o
        kept = [rest.pop()] if return_state else []
        measured = rest.pop() if rest else {}
        return x + self._mlp(self.mlp_norm(x)), measured, *kept

    def _mlp(self, x: Array) -> Array:
        hidden = self.up(x)
        return self.down(self.activation(hidden) if self.gate is None else self.activation(self.gate(x)) * hidden)


class TransformerLM(nnx.Module):
    """A causal-by-mask language model: embedding, pre-norm blocks, RMSNorm, head.

    In softmax attention the mask decides what a position may see: pass ``mask=masks.causal()`` (or any other) to make
    it autoregressive. Linear-time mechanisms are causal. ``generate`` continues a text.

    Args:
        vocab: number of tokens.
        model_dim: D.
        layers: number of blocks.
        heads: N.
        mixer: what mixes tokens, as in ``Block``; of a sequence layer i takes number i modulo its length (hybrids).
        linear: further arguments of ``LinearAttention``: ``key_dim``, ``kernel_size``, ``chunk_size``, ...
        tied: whether the head shares the embedding matrix.
        mlp_dim, activation, gated: as in ``Block``.
        rngs: source of the initial parameters.
        attention: further arguments of ``Attention``: ``mask``, ``score``, ``normalizer``, ``trainable``,
            ``kv_heads``, ``head_dim``, ``rotary_base``, ``implementation``, ...

    Raises:
        ValueError: if ``vocab`` or ``layers`` is not positive, there is no mixer of that name, or ``Attention`` or
            ``LinearAttention`` refuses its arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from attnjax import masks
        >>> model = TransformerLM(256, 32, layers=2, heads=4, mask=masks.causal(), rngs=nnx.Rngs(0))
        >>> logits, stats = model(jnp.zeros((3, 16), int), stats=("entropy", "key_mass"))
        >>> logits.shape, stats["entropy"].shape, stats["key_mass"].shape  # statistics: one row per layer
        ((3, 16, 256), (2, 3, 16, 4), (2, 3, 16, 4))
        >>> hybrid = TransformerLM(256, 32, layers=2, heads=4, mixer=("delta_rule", "softmax"), rngs=nnx.Rngs(0))

    Source: Vaswani et al., 2017, arXiv:1706.03762; normalization before each sub-layer from Xiong et al., 2020,
        "On Layer Normalization in the Transformer Architecture", arXiv:2002.04745; RMSNorm from Zhang and Sennrich,
        2019, arXiv:1910.07467; tied head from Press and Wolf, 2017, arXiv:1608.05859.
    Deviation: decoder only, no dropout, no biases.
    """

    def __init__(
        self,
        vocab: int,
        model_dim: int,
        *,
        layers: int,
        heads: int,
        mixer: Mixer | Sequence[Mixer] = "softmax",
        linear: Mapping[str, Any] = NOTHING,
        tied: bool = True,
        mlp_dim: int | None = None,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        gated: bool = False,
        rngs: nnx.Rngs,
        **attention: Any,
    ):
        if min(vocab, layers) < 1:
            raise ValueError(f"vocab, layers: got {vocab}, {layers}, wanted positive numbers.")
        mixers = tuple(mixer) if isinstance(mixer, Sequence) and not isinstance(mixer, str) else (mixer,)
        if not mixers:
            raise ValueError("mixer: got none, wanted at least one.")
        small = nnx.initializers.normal(model_dim**-0.5)
        self.embed = nnx.Embed(vocab, model_dim, embedding_init=small, rngs=rngs)
        options: dict[str, Any] = dict(
            linear=linear, mlp_dim=mlp_dim, activation=activation, gated=gated, rngs=rngs, **attention
        )
        build = lambda i: Block(model_dim, heads, mixer=mixers[i % len(mixers)], place=(i, layers), **options)
        self.blocks = nnx.List([build(i) for i in range(layers)])
        self.norm = nnx.RMSNorm(model_dim, rngs=rngs)
        self.head = None if tied else nnx.Linear(model_dim, vocab, use_bias=False, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "*B T"],
        *,
        stats: Sequence[Any] = (),
        run: Mapping[str, Any] = NOTHING,
        segment_ids: Int[Array, "*#B T"] | None = None,
        state: Sequence[Any] | None = None,
        return_state: bool = False,
        **knobs: Any,
    ) -> Any:
        """Logits of the next token at every position.

        Args:
            tokens: token numbers in 0 .. vocab - 1.
            stats: statistics of every softmax layer's attention weights, as in ``attnjax.attend``.
            run: ``form`` and ``chunk_size`` in place of the linear layers' own.
            segment_ids: of packed texts, none of which sees another.
            state: what came before, a state for each layer; ``empty`` makes the first.
            return_state: also return the state after the last token.
            knobs: ``positions``, ``mask``, ``score``, ``normalizer`` in place of the softmax layers' own.

        Returns:
            The logits ``[*B, T, vocab]``; with ``stats`` or ``return_state`` a tuple of them,
            ``{name: [softmax layers, *statistic]}`` and the state, as far as they are asked for.

        Raises:
            ValueError: statistics of a model without softmax attention.
        """
        if stats and not any(isinstance(block.attention, Attention) for block in self.blocks):
            raise ValueError(f"stats: got {stats!r} of a model without softmax attention, wanted ().")
        x = self.embed(tokens)
        before = [None] * len(self.blocks) if state is None else state
        common: dict[str, Any] = dict(stats=stats, run=run, segment_ids=segment_ids, return_state=return_state, **knobs)
        measured, after = [], []
        for block, held in zip(self.blocks, before, strict=True):
            x, found, *kept = block(x, state=held, **common)
            measured += [found] if found else []
            after += kept
        x = self.norm(x)
        logits = self.embed.attend(x) if self.head is None else self.head(x)
        stacked = [{name: jnp.stack([found[name] for found in measured]) for name in measured[0]}] if stats else []
        states = [tuple(after)] if return_state else []
        return (logits, *stacked, *states) if stats or return_state else logits

    def empty(self, batch: Sequence[int], capacity: int) -> tuple[Any, ...]:
        """The state before the first token.

        Args:
            batch: sizes of the batch axes of tokens to come.
            capacity: how many tokens softmax layers can hold; the state of linear-time ones has one size.
        """
        layers = [block.attention for block in self.blocks]
        return tuple(layer.empty(batch, capacity) if isinstance(layer, Attention) else None for layer in layers)
