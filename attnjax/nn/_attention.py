"""The attention layer: four projections around ``attnjax.attend``."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

import attnjax
from attnjax import masks
from attnjax.positions import rotary

from ._cache import Cache, appended, later, visible
from ._knob import Knob

Implementation: TypeAlias = Literal["auto", "dense", "rows", "blocks", "cudnn", "pallas"]
KNOBS = ("mask", "score", "normalizer")


class Attention(nnx.Module):
    """Multi-head attention with any mask, score and normalizer of attnjax.

        q, k, v = x W_q, x W_k, x W_v;    y = attend(rotary(q), rotary(k), v) W_o

    Args:
        model_dim: D, the width of the input and of the output.
        heads: N, the number of query heads.
        kv_heads: K, the number of key/value heads, dividing N (grouped-query attention); N when None.
        head_dim: H, even if rotary is on; D / N when None.
        rotary_base: base of the rotary encoding of queries and keys, or None for no rotary encoding.
        mask, score, normalizer: what ``attnjax.attend`` takes; each may be replaced at the call.
        trainable: names among ``"mask"``, ``"score"``, ``"normalizer"`` whose floating arrays are parameters, e.g.
            ``("normalizer",)`` to learn the logits of ``normalizers.softmax(sink=jnp.zeros(heads))``.
        scale: factor on the dot products; 1/sqrt(H) when None.
        implementation: form in which ``attend`` runs.
        attend: what runs it: ``attnjax.attend``, or for sequences that are split over devices
            ``functools.partial(parallel.ring_attend, layout=layout)``.
        use_bias: whether the projections have biases.
        dtype, param_dtype: dtypes of the computation and of the parameters.
        rngs: source of the initial parameters.

    Raises:
        ValueError: if N is not a multiple of K, D of N (with ``head_dim=None``), or ``trainable`` names something else.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from attnjax import masks
        >>> layer = Attention(32, 4, kv_heads=2, mask=masks.causal(), rngs=nnx.Rngs(0))
        >>> y, stats = layer(jnp.ones((2, 10, 32)), stats=("entropy",))
        >>> y.shape, stats["entropy"].shape
        ((2, 10, 32), (2, 10, 4))

    Source: Vaswani et al., 2017, "Attention Is All You Need", section 3.2.2, arXiv:1706.03762; grouped heads from
        Ainslie et al., 2023, "GQA", arXiv:2305.13245.
    Deviation: no dropout on the weights, which no streaming form could apply.
    """

    def __init__(
        self,
        model_dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary_base: float | None = 10000.0,
        mask: Any = None,
        score: Any = None,
        normalizer: Any = None,
        trainable: Sequence[str] = (),
        scale: float | None = None,
        implementation: Implementation = "auto",
        attend: Callable[..., Any] = attnjax.attend,
        use_bias: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kv_heads = heads if kv_heads is None else kv_heads
        _check(model_dim, heads, kv_heads, head_dim, trainable)
        head_dim = model_dim // heads if head_dim is None else head_dim
        options: dict[str, Any] = dict(use_bias=use_bias, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.query = nnx.LinearGeneral(model_dim, (heads, head_dim), **options)
        self.key = nnx.LinearGeneral(model_dim, (kv_heads, head_dim), **options)
        self.value = nnx.LinearGeneral(model_dim, (kv_heads, head_dim), **options)
        self.out = nnx.LinearGeneral((heads, head_dim), model_dim, axis=(-2, -1), **options)
        self.mask = Knob(mask, trainable="mask" in trainable, name="mask")
        self.score = Knob(score, trainable="score" in trainable, name="score")
        self.normalizer = Knob(normalizer, trainable="normalizer" in trainable, name="normalizer")
        self.rotary_base = rotary_base
        self.scale = scale
        self.implementation: Implementation = implementation
        self.attend = attend

    def __call__(
        self,
        x: Float[Array, "*B T D"],
        *,
        positions: Int[Array, "*#B T"] | None = None,
        mask: Any = None,
        score: Any = None,
        normalizer: Any = None,
        stats: Sequence[Any] = (),
        segment_ids: Int[Array, "*#B T"] | None = None,
        state: Cache | None = None,
        return_state: bool = False,
    ) -> Any:
        """Attend from every row of ``x`` to every row that the mask lets it see.

        With a state, rows of ``x`` follow the tokens that it holds: they see those and, of themselves, none after
        their own, as far as the mask shows them.

        Args:
            x: input.
            positions: positions for the rotary encoding, in tokens; those of the rows, from 0 or after the state's,
                when None.
            mask, score, normalizer: replace those of the layer where not None. With a state they must follow from
                positions: arrays with an axis of queries are refused.
            stats: statistics of the attention weights to return, as in ``attnjax.attend``.
            segment_ids: rows see their own segment only; not with a state.
            state: keys and values so far; ``empty`` makes the first. To ``normalizers.sigmoid()`` without a bias, which
                asks for the number of keys, it is the capacity.
            return_state: also return the state with the rows' own keys and values.

        Returns:
            The output ``[*B, T, D]``; with ``stats`` or ``return_state`` a tuple of it, ``{name: statistic}`` and the
            state, as far as they are asked for.
        """
        q, k, v = self.query(x), self.key(x), self.value(x)
        mask = self.mask() if mask is None else mask
        score = self.score() if score is None else score
        _check_state(state, return_state, segment_ids)
        if self.rotary_base is not None:
            begin = 0 if state is None else state.seen
            positions = begin + jnp.arange(x.shape[-2]) if positions is None else positions
            q, k = (rotary(a, positions, base=self.rotary_base) for a in (q, k))
        if state is not None:
            mask, score, state = visible(mask, state.seen), later(score, state.seen), appended(state, k, v)
            k, v = state.key.astype(q.dtype), state.value.astype(q.dtype)
        if segment_ids is not None:
            own = masks.segments(jnp.broadcast_to(segment_ids, x.shape[:-1]))
            mask = own if mask is None else mask & own
        found = self.attend(
            q,
            k,
            v,
            mask=mask,
            score=score,
            normalizer=self.normalizer() if normalizer is None else normalizer,
            scale=self.scale,
            implementation=self.implementation,
            stats=stats,
        )
        o, *measured = found if stats else (found,)
        kept = [state] if return_state else []
        return (self.out(o), *measured, *kept) if stats or return_state else self.out(o)

    def empty(self, batch: Sequence[int], capacity: int) -> Cache:
        """The state before the first token.

        Args:
            batch: sizes of the batch axes of inputs to come.
            capacity: S, how many tokens it can hold.
        """
        _, kv_heads, width = self.key.kernel.shape
        dtype = self.key.dtype or self.key.kernel.dtype
        key, value = (jnp.zeros((*batch, capacity, kv_heads, width), dtype) for _ in range(2))
        return Cache(key, value, jnp.zeros((), jnp.int32))


def _check_state(state: Cache | None, return_state: bool, segment_ids: Any) -> None:
    if return_state and state is None:
        raise ValueError("return_state: got no state to add to, wanted state=layer.empty(batch, capacity).")
    if state is not None and segment_ids is not None:
        raise NotImplementedError("segment_ids: got some with a state, wanted None: a state holds one segment.")


def _check(model_dim: int, heads: int, kv_heads: int, head_dim: int | None, trainable: Sequence[str]) -> None:
    if min(model_dim, heads, kv_heads) < 1:
        raise ValueError(f"model_dim, heads, kv_heads: got {model_dim}, {heads}, {kv_heads}, wanted positive numbers.")
    if heads % kv_heads:
        raise ValueError(f"kv_heads: got {kv_heads}, wanted a divisor of heads = {heads}.")
    if head_dim is None and model_dim % heads:
        raise ValueError(f"heads: got {heads}, wanted a divisor of model_dim = {model_dim}, or give head_dim.")
    unknown = [name for name in trainable if name not in KNOBS]
    if isinstance(trainable, str) or unknown:
        raise ValueError(f"trainable: got {trainable!r}, wanted a tuple of names among {KNOBS}.")
