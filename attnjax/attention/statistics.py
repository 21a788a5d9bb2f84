"""Statistics of attention, streamed beside the output: sums over keys of functions of the weights.

Each row statistic asks the fold for *terms*, sums over keys of ``x_ts = |w_ts|`` up to the row's own scale, and is
computed from them at the end; so it costs a few sums a tile and no T x S array, and it is differentiable. With
``p_ts = x_ts / sum_s x_ts``, rows of softmax are their own p. Rows that see no key have 0 everywhere (and -inf for
``logsumexp`` and ``max_logit``).
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.attention._component import Where, array, component, static
from attnjax.attention.masks import Mask

__all__ = [
    "Statistic",
    "entropy",
    "key_mass",
    "logsumexp",
    "mass_on",
    "max_logit",
    "named",
    "participation_ratio",
]


class Statistic:
    """A statistic of the weights, returned under ``name``."""

    name: Any
    kind = "row"
    """"row": from the row's terms. "max": the greatest score. "key": a sum over queries, by a second pass."""
    exponential_only = False
    """Whether it is defined only where masses are exponentials of scores."""

    def terms(self, x: Float[Array, "bq bk"], log_x: Any, gain: Any, at: Where) -> dict[str, Float[Array, "bq bk"]]:
        """Named summands; names are shared between statistics, and a name's prefix "2:" says that it scales as x^2."""
        raise NotImplementedError

    def value(self, sums: dict[str, Any], scale: Any, factor: Any) -> Float[Array, " T"]:
        """The statistic of a row from its sums, its log scale, and what turns sums into weights."""
        raise NotImplementedError


def _ratio(numerator: Any, denominator: Any) -> Any:
    seen = denominator > 0
    return jnp.where(seen, numerator / jnp.where(seen, denominator, 1), 0)


def _log(x: Any) -> Any:
    return jnp.log(jnp.where(x > 0, x, 1))


@component
class _LogSumExp(Statistic):
    name: str = static()

    exponential_only = True

    def terms(self, x, log_x, gain, at):
        return {"x": x}

    def value(self, sums, scale, factor):
        return jnp.where(sums["x"] > 0, scale + _log(sums["x"]), -jnp.inf)


@component
class _Entropy(Statistic):
    name: str = static()

    def terms(self, x, log_x, gain, at):
        return {"x": x, "x log x": x * jnp.where(x > 0, log_x, 0)}

    def value(self, sums, scale, factor):
        scale = jnp.where(sums["x"] > 0, scale, 0)
        return jnp.where(sums["x"] > 0, scale + _log(sums["x"]) - _ratio(sums["x log x"], sums["x"]), 0)


@component
class _ParticipationRatio(Statistic):
    name: str = static()

    def terms(self, x, log_x, gain, at):
        return {"x": x, "2:x^2": x * x}

    def value(self, sums, scale, factor):
        return _ratio(sums["x"] ** 2, sums["2:x^2"])


@component
class _MassOn(Statistic):
    mask: Mask = array()
    name: str = static()

    def terms(self, x, log_x, gain, at):
        weight = x if gain is None else x * jnp.sign(gain)
        return {f"on {self.name}": jnp.where(self.mask.visible(at), weight, 0)}

    def value(self, sums, scale, factor):
        return sums[f"on {self.name}"] * factor


@component
class _MaxLogit(Statistic):
    name: str = static()

    kind = "max"


@component
class _KeyMass(Statistic):
    name: str = static()

    kind = "key"


def logsumexp() -> Statistic:
    """``log sum_s exp(a_ts)`` over visible keys, ``[*B, T, N]``; a is the score, ``|score|`` for ``signed_softmax``.

    A sink's own term is left out, so that the partial results of two sets of keys can be merged.

    >>> from attnjax import attend, statistics
    >>> import jax.numpy as jnp
    >>> x = jnp.zeros((1, 1, 4))
    >>> _, found = attend(x, x, x, stats=[statistics.logsumexp()])
    >>> found["logsumexp"].shape
    (1, 1)
    """
    return _LogSumExp("logsumexp")


def entropy() -> Statistic:
    """``-sum_s p_ts log p_ts`` in nats, ``[*B, T, N]``, with ``p_ts = |w_ts| / sum_s |w_ts|``.

    >>> from attnjax import attend
    >>> import jax.numpy as jnp
    >>> x = jnp.zeros((4, 1, 2))
    >>> print(attend(x, x, x, stats=["entropy"])[1]["entropy"][0].round(4))
    [1.3863]
    """
    return _Entropy("entropy")


def participation_ratio() -> Statistic:
    """``1 / sum_s p_ts^2`` with ``p_ts = |w_ts| / sum_s |w_ts|``, ``[*B, T, N]``: the effective number of keys.

    >>> from attnjax import attend
    >>> import jax.numpy as jnp
    >>> x = jnp.zeros((4, 1, 2))
    >>> print(attend(x, x, x, stats=["participation_ratio"])[1]["participation_ratio"][0])
    [4.]
    """
    return _ParticipationRatio("participation_ratio")


def mass_on(mask: Mask, name: str = "mass_on") -> Statistic:
    """``sum_s w_ts`` over the visible keys that ``mask`` also selects (sinks, a window, a span), ``[*B, T, N]``.

    Args:
        mask: the keys whose weight is summed.
        name: under which the statistic is returned.

    >>> from attnjax import attend, masks, statistics
    >>> import jax.numpy as jnp
    >>> x = jnp.zeros((4, 1, 2))
    >>> sink = statistics.mass_on(masks.sinks(1), name="sink_mass")
    >>> print(attend(x, x, x, stats=[sink])[1]["sink_mass"][0])
    [0.25]
    """
    if not isinstance(mask, Mask):
        raise TypeError(f"mass_on(mask): got {type(mask).__name__}, want a mask")
    return _MassOn(mask, name)


def max_logit() -> Statistic:
    """``max_s s_ts`` over visible keys, ``[*B, T, N]``; its derivative is the mean over the keys that attain it.

    >>> from attnjax import attend
    >>> import jax.numpy as jnp
    >>> x = jnp.ones((4, 1, 2))
    >>> print(attend(x, x, x, scale=1.0, stats=["max_logit"])[1]["max_logit"][0])
    [2.]
    """
    return _MaxLogit("max_logit")


def key_mass() -> Statistic:
    """``sum_t w_ts``, the attention that each key receives, ``[*B, S, N]``; takes a second pass over the tiles.

    >>> from attnjax import attend
    >>> import jax.numpy as jnp
    >>> x = jnp.zeros((4, 1, 2))
    >>> print(attend(x, x, x, stats=["key_mass"])[1]["key_mass"][0])
    [1.]
    """
    return _KeyMass("key_mass")


_NAMED = {f().name: f for f in (logsumexp, entropy, max_logit, key_mass, participation_ratio)}


def named(wanted: Any) -> tuple[Statistic, ...]:
    """Statistics from names and statistics.

    Raises:
        ValueError: an unknown name, or two statistics of one name.

    >>> from attnjax import statistics
    >>> [s.name for s in statistics.named(["entropy", statistics.key_mass()])]
    ['entropy', 'key_mass']
    """
    items = (wanted,) if isinstance(wanted, (str, Statistic)) else tuple(wanted)
    found = []
    for item in items:
        if isinstance(item, Statistic):
            found.append(item)
        elif item in _NAMED:
            found.append(_NAMED[item]())
        else:
            raise ValueError(
                f"stats: got {item!r}, want one of {sorted(_NAMED)}, or a statistic such as statistics.mass_on(mask)"
            )
    names = [s.name for s in found]
    if len(set(names)) != len(names):
        raise ValueError(f"stats: got the names {names}, want each once; mass_on() takes a name=")
    return tuple(found)
