"""A small pre-norm Transformer language model."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ._attention import Attention


class Block(nnx.Module):
    """One pre-norm residual block: ``x += Attention(RMSNorm(x)); x += MLP(RMSNorm(x))``.

    Args:
        model_dim: D.
        heads: N.
        mlp_dim: hidden width of the MLP; 4 D when None.
        activation: non-linearity of the MLP.
        attention: further arguments of ``Attention``.
        rngs: source of the initial parameters.
    """

    def __init__(
        self,
        model_dim: int,
        heads: int,
        *,
        mlp_dim: int | None = None,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        rngs: nnx.Rngs,
        **attention: Any,
    ):
        mlp_dim = 4 * model_dim if mlp_dim is None else mlp_dim
        self.attention_norm = nnx.RMSNorm(model_dim, rngs=rngs)
        self.attention = Attention(model_dim, heads, rngs=rngs, **attention)
        self.mlp_norm = nnx.RMSNorm(model_dim, rngs=rngs)
        self.up = nnx.Linear(model_dim, mlp_dim, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(mlp_dim, model_dim, use_bias=False, rngs=rngs)
        self.activation = activation

    def __call__(
        self, x: Float[Array, "*B T D"], *, stats: Sequence[Any] = (), **knobs: Any
    ) -> tuple[Float[Array, "*B T D"], dict[str, Array]]:
        """The block's output and its attention's statistics (an empty dict without ``stats``)."""
        o = self.attention(self.attention_norm(x), stats=stats, **knobs)
        o, measured = o if stats else (o, {})
        x = x + o
        return x + self.down(self.activation(self.up(self.mlp_norm(x)))), measured


class TransformerLM(nnx.Module):
    """A causal-by-mask language model: embedding, pre-norm blocks, RMSNorm, head.

    The mask decides what a position may see: pass ``mask=masks.causal()`` (or any other) to make it autoregressive.

    Args:
        vocab: number of tokens.
        model_dim: D.
        layers: number of blocks.
        heads: N.
        tied: whether the head shares the embedding matrix.
        mlp_dim, activation: as in ``Block``.
        rngs: source of the initial parameters.
        attention: further arguments of ``Attention``: ``mask``, ``score``, ``normalizer``, ``trainable``,
            ``kv_heads``, ``head_dim``, ``rotary_base``, ``implementation``, ...

    Raises:
        ValueError: if ``vocab`` or ``layers`` is not positive, or ``Attention`` refuses its arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from attnjax import masks
        >>> model = TransformerLM(256, 32, layers=2, heads=4, mask=masks.causal(), rngs=nnx.Rngs(0))
        >>> logits, stats = model(jnp.zeros((3, 16), int), stats=("entropy", "key_mass"))
        >>> logits.shape, stats["entropy"].shape, stats["key_mass"].shape  # statistics: one row per layer
        ((3, 16, 256), (2, 3, 16, 4), (2, 3, 16, 4))

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
        tied: bool = True,
        mlp_dim: int | None = None,
        activation: Callable[[Array], Array] = jax.nn.gelu,
        rngs: nnx.Rngs,
        **attention: Any,
    ):
        if min(vocab, layers) < 1:
            raise ValueError(f"vocab, layers: got {vocab}, {layers}, wanted positive numbers.")
        small = nnx.initializers.normal(model_dim**-0.5)
        self.embed = nnx.Embed(vocab, model_dim, embedding_init=small, rngs=rngs)
        options: dict[str, Any] = dict(mlp_dim=mlp_dim, activation=activation, rngs=rngs, **attention)
        self.blocks = nnx.List([Block(model_dim, heads, **options) for _ in range(layers)])
        self.norm = nnx.RMSNorm(model_dim, rngs=rngs)
        self.head = None if tied else nnx.Linear(model_dim, vocab, use_bias=False, rngs=rngs)

    def __call__(self, tokens: Int[Array, "*B T"], *, stats: Sequence[Any] = (), **knobs: Any) -> Any:
        """Logits of the next token at every position.

        Args:
            tokens: token numbers in 0 .. vocab - 1.
            stats: statistics of every layer's attention weights, as in ``attnjax.attend``.
            knobs: ``positions``, ``mask``, ``score``, ``normalizer`` in place of the layers' own.

        Returns:
            The logits ``[*B, T, vocab]``, or ``(logits, {name: [layers, *statistic]})`` when ``stats`` is not empty.
        """
        x = self.embed(tokens)
        measured = []
        for block in self.blocks:
            x, found = block(x, stats=stats, **knobs)
            measured.append(found)
        x = self.norm(x)
        logits = self.embed.attend(x) if self.head is None else self.head(x)
        if not stats:
            return logits
        return logits, {name: jnp.stack([found[name] for found in measured]) for name in measured[0]}
