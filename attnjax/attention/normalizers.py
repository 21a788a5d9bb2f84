"""Normalizers: how a row of scores becomes a row of weights.

Every normalizer but the row-wise ones has the form::

    w_ts = g_ts exp(a_ts) * factor(log-sum of row t)

with a log mass ``a`` (None for a plain sum, where it would be 0) and a bounded gain ``g`` (None for 1), both of them
functions of one score. So a row folds over keys in any order and grouping: the state is a pair of log-scaled sums (of
the masses, and of ``g exp(a) v``), ``combine`` adds two states, ``finalize`` multiplies by the factor. That is what
the streaming forms run. ``sparsemax`` and ``entmax15`` need the whole row and are served by ``rows`` and ``dense``;
``from_monoid`` takes any other associative fold.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax._typing import PerHead
from attnjax.attention._component import Where, array, as_array, component, static
from attnjax.attention._thresholds import entmax15_weights, sparsemax_weights

__all__ = [
    "Normalizer",
    "entmax15",
    "from_monoid",
    "laplace",
    "log_n_softmax",
    "relu",
    "relu_squared",
    "sigmoid",
    "signed_softmax",
    "softmax",
    "softmax_plus_one",
    "sparsemax",
]


class Normalizer:
    """How scores become weights."""

    streams = True
    """Whether a row folds over keys; False: the whole row is needed at once."""
    scaled = True
    """Whether masses are exponentials, kept with a log scale; False: a plain sum, with nothing to divide by."""
    counts = False
    """Whether it needs the number of visible keys of each query (``at.visible``)."""

    def lift(self, score: Float[Array, "bq bk"], visible: Any, at: Where) -> tuple[Any, Any]:
        """Log mass (None for a plain sum) and gain (None for 1) of each entry; masking is the caller's."""
        raise NotImplementedError

    def reference(self, log_mass: Float[Array, "bq bk"]) -> Float[Array, " bq"]:
        """The log scale at which a tile is summed; any number near or above the row's greatest log mass will do."""
        return jnp.max(log_mass, axis=-1)

    def factor(self, scale: Any, mass: Any) -> Float[Array, " T"]:
        """What multiplies the sums (taken at log scale ``scale``) to make weights; 0 for a row without mass."""
        seen = mass > 0
        return jnp.where(seen, 1 / jnp.where(seen, mass, 1), 0)


@component
class _Softmax(Normalizer):
    sink: Any = array("N")
    zeros: Any = array("N")
    tie_factor: float | None = static()

    def lift(self, score, visible, at):
        return score, None

    def reference(self, log_mass):
        top = jnp.max(log_mass, axis=-1)
        if self.tie_factor is None:
            return top
        # Two or more entries at the maximum have weight exactly 1 before division, which bfloat16 accumulates with a
        # bias; a larger scale makes them round like the others. At most 16 units, so that nothing underflows.
        tied = jnp.sum(log_mass > (top - 1e-3)[:, None], axis=-1) > 1
        raised = jnp.minimum(jnp.maximum(self.tie_factor * top, 0), top + 16)
        return jnp.where(tied & jnp.isfinite(top), raised, top)

    def factor(self, scale, mass):
        if self.sink is None and self.zeros is None:
            return super().factor(scale, mass)
        extra = self.sink.astype(mass.dtype) if self.sink is not None else jnp.log(self.zeros.astype(mass.dtype))
        top = jax.lax.stop_gradient(jnp.maximum(scale, extra))
        top = jnp.where(jnp.isfinite(top), top, 0)
        shrink = jnp.exp(jnp.where(mass > 0, scale, -jnp.inf) - top)
        total = mass * shrink + jnp.exp(extra - top)
        return jnp.where(total > 0, shrink / jnp.where(total > 0, total, 1), 0)


@component
class _LogN(Normalizer):
    coefficient: Any = array("N")
    n: Any = array("B", "T")

    @property
    def counts(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.n is None

    def lift(self, score, visible, at):
        count = at.visible if self.n is None else self.n
        logs = jnp.log(jnp.maximum(count, 1).astype(score.dtype))
        return score * self.coefficient.astype(score.dtype) * logs, None


@component
class _Sigmoid(Normalizer):
    bias: Any = array("N")
    minus_log_keys: bool = static()

    scaled = False

    def lift(self, score, visible, at):
        if self.minus_log_keys:
            return None, jax.nn.sigmoid(score - jnp.log(jnp.asarray(at.keys, score.dtype)))
        return None, jax.nn.sigmoid(score + self.bias.astype(score.dtype))


@component
class _Relu(Normalizer):
    power: int = static()
    over_keys: bool = static()

    scaled = False

    @property
    def counts(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.over_keys

    def lift(self, score, visible, at):
        gain = jnp.where(score > 0, score, 0) ** self.power
        return None, (gain / jnp.maximum(at.visible, 1).astype(score.dtype) if self.over_keys else gain)


@component
class _Laplace(Normalizer):
    scaled = False

    def lift(self, score, visible, at):
        return None, 0.5 + 0.5 * jax.lax.erf((score - math.sqrt(0.5)) * math.sqrt(2 * math.pi))


@component
class _SignedSoftmax(Normalizer):
    def lift(self, score, visible, at):
        positive = score >= 0
        return jnp.where(positive, score, -score), jnp.where(positive, 1.0, -1.0).astype(score.dtype)


@component
class _Row(Normalizer):
    weights: Callable = static()

    streams = False
    scaled = False

    def lift(self, score, visible, at):
        return None, self.weights(score, visible)


@component
class Monoid(Normalizer):
    """A fold given by its four verbs; see ``from_monoid``."""

    init: Callable = static()
    lift_tile: Callable = static()
    combine: Callable = static()
    finalize: Callable = static()


def softmax(sink: PerHead | None = None, *, tie_factor: float | int | None = None) -> Normalizer:
    """Softmax, ``w_ts = exp(s_ts) / (exp(sink_n) + sum_s' exp(s_ts'))``; without a sink the first term is absent.

    A row without a visible key has weights 0.

    Args:
        sink: a logit for each query head ``[N]`` (or a number) that takes mass and has no value; differentiable.
        tie_factor: the stable row maximum: where two or more scores of a tile are within 1e-3 of a positive maximum m,
            sum at log scale ``min(tie_factor * m, m + 16)`` (at 0 for a negative one), so that no summand is exactly 1.
            The weights do not change in exact arithmetic; accumulation in bfloat16 loses its bias. Greater than 1.

    Source: sink: Agarwal et al., 2025, gpt-oss, arXiv 2508.10925. tie_factor: Qiu and Yao, 2025, Why Low-Precision
    Transformer Training Fails, arXiv 2510.04212. Deviation: the raise is bounded by 16, so that no row underflows.

    >>> from attnjax import attention_weights, normalizers
    >>> import jax.numpy as jnp
    >>> x = jnp.zeros((2, 1, 4))
    >>> print(attention_weights(x, x, normalizer=normalizers.softmax(sink=jnp.zeros(1)))[0, 0])
    [0.33333334 0.33333334]
    """
    if tie_factor is not None and not tie_factor > 1:
        raise ValueError(f"softmax(tie_factor={tie_factor}): want a number above 1 (2 is usual), or None")
    return _Softmax(None if sink is None else as_array(sink), None, tie_factor)


def softmax_plus_one(n: PerHead = 1.0) -> Normalizer:
    """Softmax with n zeros more, ``w_ts = exp(s_ts) / (n + sum_s' exp(s_ts'))``: a row may attend to nothing.

    Source: Miller, 2023, Attention Is Off By One. ``n=0`` is ``softmax()``; ``n`` is ``softmax(sink=log(n))``.

    Args:
        n: number of extra zero logits, at least 0; a number or one for each query head.

    >>> from attnjax import normalizers
    >>> quiet = normalizers.softmax_plus_one()
    """
    if isinstance(n, (int, float)) and not n >= 0:
        raise ValueError(f"softmax_plus_one(n={n}): want at least 0")
    return _Softmax(None, as_array(n, float), None)


def log_n_softmax(coefficient: PerHead = 1.0, n: float | int | Float[Array, "*B T"] | None = None) -> Normalizer:
    """Softmax of ``c_n * log(n_t) * s_ts``: logits grow with the number of keys, so that attention stays as sharp.

    Source: Chiang and Cholak, 2022, Overcoming a Theoretical Limitation of Self-Attention, section 5.3, arXiv
    2202.12172; Nakanishi, 2025, Scalable-Softmax, Eq. (3), arXiv 2501.19399 (c learned).

    Args:
        coefficient: c, a number or one for each query head; differentiable.
        n: number of keys, a number or ``[T]`` or ``[*B, T]``; None counts the visible keys of each query.

    >>> from attnjax import normalizers
    >>> scalable = normalizers.log_n_softmax(0.4)
    """
    if isinstance(n, (int, float)) and not n > 0:
        raise ValueError(f"log_n_softmax(n={n}): want a positive number of keys, or None to count the visible ones")
    return _LogN(as_array(coefficient, float), None if n is None else as_array(n))


def sigmoid(bias: PerHead | None = None) -> Normalizer:
    """Sigmoid attention, ``w_ts = sigmoid(s_ts + b_n)``; rows do not sum to one.

    Source: Ramapuram et al., 2024, Theory, Analysis, and Best Practices for Sigmoid Self-Attention, Eqs. (3) and (4),
    arXiv 2409.04431.

    Args:
        bias: a number or one for each query head, differentiable; None is ``-log(S)``, with which outputs stay bounded
            as the number of keys grows.

    >>> from attnjax import normalizers
    >>> learned = normalizers.sigmoid(bias=-4.0)
    """
    return _Sigmoid(None if bias is None else as_array(bias), bias is None)


def relu(*, over_keys: bool = True) -> Normalizer:
    """ReLU attention, ``w_ts = max(s_ts, 0) / n_t`` with n_t the number of visible keys.

    Source: Wortsman et al., 2023, Replacing Softmax with ReLU in Vision Transformers, arXiv 2309.08586 (there divided
    by the sequence length).

    Args:
        over_keys: divide by n_t.

    >>> from attnjax import normalizers
    >>> sparse = normalizers.relu()
    """
    return _Relu(1, bool(over_keys))


def relu_squared(*, over_keys: bool = True) -> Normalizer:
    """Squared ReLU attention, ``w_ts = max(s_ts, 0)^2 / n_t`` with n_t the number of visible keys.

    Source: Hua et al., 2022, Transformer Quality in Linear Time, arXiv 2202.10447.

    Args:
        over_keys: divide by n_t.

    >>> from attnjax import normalizers
    >>> sparse = normalizers.relu_squared()
    """
    return _Relu(2, bool(over_keys))


def laplace() -> Normalizer:
    """The Laplace attention function, ``w_ts = (1 + erf((s_ts - mu) / (sigma sqrt(2)))) / 2``; rows do not sum to one.

    With ``mu = sqrt(1/2)`` and ``sigma = sqrt(1 / (4 pi))`` its value and slope at mu are those of the squared ReLU,
    but it is bounded and so is its slope. The authors divide products of queries and keys by the number of visible
    keys.

    Source: Ma et al., 2022, Mega, arXiv 2209.10655.

    >>> from attnjax import attention_weights, normalizers
    >>> import jax.numpy as jnp
    >>> q, k = jnp.ones((1, 1, 1)), jnp.array([0.0, 0.5**0.5, 9.0]).reshape(3, 1, 1)
    >>> print(attention_weights(q, k, scale=1.0, normalizer=normalizers.laplace())[0, 0].round(3))
    [0.006 0.5   1.   ]
    """
    return _Laplace()


def signed_softmax() -> Normalizer:
    """Cog attention, ``w_ts = sign(s_ts) exp(|s_ts|) / sum_s' exp(|s_ts'|)``: the weights' absolute values sum to one.

    Source: Lv et al., 2024, More Expressive Attention with Negative Weights, arXiv 2411.07176. A score of exactly 0
    counts as positive.

    >>> from attnjax import normalizers
    >>> cog = normalizers.signed_softmax()
    """
    return _SignedSoftmax()


def sparsemax() -> Normalizer:
    """Sparsemax, the point of the simplex nearest to the scores, ``w_t = argmin_p |p - s_t|^2``; needs whole rows.

    Source: Martins and Astudillo, 2016, From Softmax to Sparsemax, Algorithm 1, arXiv 1602.02068.

    >>> from attnjax import attention_weights, normalizers
    >>> import jax.numpy as jnp
    >>> q, k = jnp.ones((1, 1, 1)), jnp.array([3.0, 2.5, 0.0]).reshape(3, 1, 1)
    >>> print(attention_weights(q, k, scale=1.0, normalizer=normalizers.sparsemax())[0, 0])
    [0.75 0.25 0.  ]
    """
    return _Row(sparsemax_weights)


def entmax15() -> Normalizer:
    """1.5-entmax, ``w_ts = max(s_ts / 2 - tau_t, 0)^2`` with tau such that the row sums to one; needs whole rows.

    Source: Peters et al., 2019, Sparse Sequence-to-Sequence Models, Algorithm 2, arXiv 1905.05702.

    >>> from attnjax import normalizers
    >>> sparse = normalizers.entmax15()
    """
    return _Row(entmax15_weights)


def from_monoid(init: Callable, lift: Callable, combine: Callable, finalize: Callable) -> Normalizer:
    """Your own fold over keys, from its four verbs; JAX differentiates it.

    A state is any pytree of arrays whose first axis is the queries of a block. Differentiation goes through the fold
    itself, tile by tile, with linear memory; tiles are visited in the order of the keys, so ``combine`` need not
    commute.

    Args:
        init: ``init(bq, V, dtype) -> state`` of no key.
        lift: ``lift(score [bq, bk], visible [bq, bk], v [bk, V]) -> state`` of one tile.
        combine: ``combine(earlier, later) -> state``, associative, with ``init``'s state as its unit.
        finalize: ``finalize(state) -> output [bq, V]``; must be 0 for ``init``'s state.

    >>> from attnjax import attend, normalizers
    >>> import jax.numpy as jnp
    >>> total = normalizers.from_monoid(
    ...     init=lambda bq, width, dtype: jnp.zeros((bq, width), dtype),
    ...     lift=lambda score, visible, v: jnp.where(visible, score, 0) @ v,
    ...     combine=lambda a, b: a + b,
    ...     finalize=lambda state: state)
    >>> x = jnp.ones((4, 1, 2))
    >>> print(attend(x, x, x, scale=1.0, normalizer=total)[0, 0])
    [8. 8.]
    """
    for name, verb in (("init", init), ("lift", lift), ("combine", combine), ("finalize", finalize)):
        if not callable(verb):
            raise TypeError(f"from_monoid({name}): got {type(verb).__name__}, want a callable")
    return Monoid(init, lift, combine, finalize)
