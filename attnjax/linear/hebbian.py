"""Associative memory: writes of pairs into one matrix, and how they are read.

Every write is a function of pairs ``[*B, S, K, H]`` and ``[*B, S, K, V]`` and returns the state ``[*B, K, H, V]`` after
the last of them, which is what ``linear.attend`` holds after the same tokens. How much noise the others leave where one
pair is read, and how many fit, is in ``memory_theory``.

Qiao, 2025, Understanding Transformers through the Lens of Pavlovian Conditioning, arXiv 2508.08289, reads linear
attention as such a memory; the writes are older than that.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attnjax.linear import _validate
from attnjax.linear._delta import delta_rule

State = Float[Array, "*B K H V"]


def hebb(
    k: Float[Array, "*B S K H"], v: Float[Array, "*B S K V"], log_decay: Float[Array, "*#B #S #K"] | None = None
) -> State:
    """Hebb's rule, ``sum_s exp(a_{s+1} + ... + a_S) k_s v_s^T``: what fires together is wired together.

    Read with unit keys, a pair written s pairs ago comes back times the product of the decays since.

    Source: linear attention's state, Katharopoulos et al., 2020, arXiv 2006.16236; as conditioning, Qiao, 2025, arXiv
    2508.08289.

    Args:
        k: keys.
        v: values.
        log_decay: ``a <= 0``, or None.

    Raises:
        ValueError: a shape does not fit, or a known decay is positive.

    >>> import jax.numpy as jnp
    >>> from attnjax.linear import hebbian
    >>> keys, values = jnp.eye(3)[:, None], jnp.arange(6.0).reshape(3, 1, 2)
    >>> hebbian.read(hebbian.hebb(keys, values), keys).tolist() == values.tolist()
    True
    """
    decay = _validate.by_token("log_decay", log_decay, k, features=False)
    _validate.not_positive("log_decay", log_decay)
    if decay is not None:
        later = jnp.flip(jnp.cumsum(jnp.flip(decay, -2), -2), -2) - decay
        k = k * jnp.exp(later)[..., None].astype(k.dtype)
    return jnp.einsum("...skh,...skv->...khv", k, v)


def delta(
    k: Float[Array, "*B S K H"], v: Float[Array, "*B S K V"], beta: Float[Array, "*#B #S #K"] | None = None
) -> State:
    """The delta rule, one pair after another: ``S <- S + beta_s k_s (v_s - S^T k_s)^T``.

    With unit keys and ``beta = 1`` the last pair is read exactly.

    Source: Widrow and Hoff; as a write of attention, Yang et al., 2024, arXiv 2406.06484.

    Args:
        k: keys, of unit length.
        v: values.
        beta: strength of the correction; None is 1.

    >>> import jax.numpy as jnp
    >>> from attnjax.linear import hebbian
    >>> keys, values = jnp.ones((2, 1, 1)), jnp.array([[[1.0]], [[5.0]]])
    >>> hebbian.delta(keys, values).tolist(), hebbian.hebb(keys, values).tolist()
    ([[[5.0]]], [[[6.0]]])
    """
    beta = jnp.ones(k.shape[:-1], k.dtype) if beta is None else beta
    run: Any = delta_rule(k, k, v, beta, return_state=True)
    return run[1].value[..., 0, :, :]


class Centered(NamedTuple):
    """A memory of departures from means.

    Attributes:
        state: ``[*B, K, H, V]``.
        key: mean key, ``[*B, K, H]``.
        value: mean value, ``[*B, K, V]``.
    """

    state: jax.Array
    key: jax.Array
    value: jax.Array


def covariance(k: Float[Array, "*B S K H"], v: Float[Array, "*B S K V"]) -> Centered:
    """The covariance rule, ``sum_s (k_s - mean k) (v_s - mean v)^T``: what all keys share is not written.

    Source: Sejnowski's covariance rule; named for attention by Qiao, 2025, arXiv 2508.08289. Deviation: the means are
    those of the pairs themselves.

    Args:
        k: keys.
        v: values.

    >>> import jax.numpy as jnp
    >>> from attnjax.linear import hebbian
    >>> memory = hebbian.covariance(jnp.ones((4, 1, 3)), jnp.ones((4, 1, 2)))
    >>> float(jnp.abs(memory.state).max()), memory.value.tolist()
    (0.0, [[1.0, 1.0]])
    """
    key, value = jnp.mean(k, -3), jnp.mean(v, -3)
    return Centered(hebb(k - key[..., None, :, :], v - value[..., None, :, :]), key, value)


def ridge(k: Float[Array, "*B S K H"], v: Float[Array, "*B S K V"], penalty: float | int = 0.0) -> State:
    """What any write of one matrix is held against: ``(K^T K + penalty I)^{-1} K^T V``, from all pairs at once.

    With no penalty the pseudo-inverse: exact for up to H independent keys, least squares beyond.

    Args:
        k: keys.
        v: values.
        penalty: at least 0.

    Raises:
        ValueError: a negative penalty.

    >>> import jax.numpy as jnp
    >>> from attnjax.linear import hebbian
    >>> keys = jnp.array([[[1.0, 0.0]], [[0.8, 0.6]]])
    >>> values = jnp.array([[[1.0]], [[-1.0]]])
    >>> bool(jnp.allclose(hebbian.read(hebbian.ridge(keys, values), keys), values, atol=1e-5))
    True
    """
    if not penalty >= 0:
        raise ValueError(f"penalty: got {penalty}, want at least 0")
    k, v = jnp.swapaxes(k, -2, -3), jnp.swapaxes(v, -2, -3)
    if penalty == 0:
        return jnp.linalg.pinv(k) @ v
    turned = jnp.swapaxes(k, -1, -2)
    return jnp.linalg.solve(
        turned @ k + penalty * jnp.eye(k.shape[-1], dtype=k.dtype)[(None,) * (k.ndim - 2)], turned @ v
    )


def oja(
    w: Float[Array, "*B H M"], x: Float[Array, "*B T H"], rate: float | int | Float[Array, ""]
) -> Float[Array, "*B H M"]:
    """Oja's rule, ``w <- w + rate (x - w y) y^T`` with ``y = w^T x``, one input after another.

    One column turns towards the first principal component, of unit length; M columns towards the space of the first M.

    Source: Oja, 1982 and 1989; named for attention by Qiao, 2025, arXiv 2508.08289.

    Args:
        w: what to begin with.
        x: inputs, in order.
        rate: positive; it diverges where ``rate |x|^2`` is not small.

    >>> import jax.numpy as jnp
    >>> from attnjax.linear import hebbian
    >>> x = jnp.tile(jnp.array([3.0, 4.0]), (500, 1))
    >>> [round(float(entry), 3) for entry in hebbian.oja(jnp.array([[1.0], [0.0]]), x, 0.01)[:, 0]]
    [0.6, 0.8]
    """
    rate = jnp.asarray(rate, w.dtype)

    def step(w, x):
        y = jnp.einsum("...hm,...h->...m", w, x)
        rest = x - jnp.einsum("...hm,...m->...h", w, y)
        return w + rate * rest[..., :, None] * y[..., None, :], None

    return lax.scan(step, w, jnp.moveaxis(x, -2, 0))[0]


def read(state: Float[Array, "*B K H V"], q: Float[Array, "*B T N H"]) -> Float[Array, "*B T N V"]:
    """``S^T q``; N is a multiple of K, and N / K queries read one state.

    Args:
        state: as a write returns it.
        q: queries.

    >>> import jax.numpy as jnp
    >>> from attnjax.linear import hebbian
    >>> hebbian.read(jnp.ones((1, 3, 2)), jnp.ones((5, 4, 3))).shape
    (5, 4, 2)
    """
    *batch, heads, features, width = state.shape
    grouped = q.reshape(*batch, -1, heads, q.shape[-2] // heads, features)
    return jnp.einsum("...khv,...tkgh->...tkgv", state, grouped).reshape(*q.shape[:-1], width)


def read_centered(memory: Centered, q: Float[Array, "*B T N H"]) -> Float[Array, "*B T N V"]:
    """``mean v + S^T (q - mean k)``: what ``covariance`` wrote.

    Args:
        memory: as ``covariance`` returns it.
        q: queries.

    >>> import jax.numpy as jnp
    >>> from attnjax.linear import hebbian
    >>> memory = hebbian.covariance(jnp.ones((4, 1, 3)), jnp.ones((4, 1, 2)))
    >>> hebbian.read_centered(memory, jnp.ones((1, 1, 3))).tolist()
    [[[1.0, 1.0]]]
    """
    group = q.shape[-2] // memory.key.shape[-2]
    over = lambda mean: jnp.repeat(mean, group, -2)[..., None, :, :]
    return over(memory.value) + read(memory.state, q - over(memory.key))


def interference(k: Float[Array, "*B S K H"]) -> Float[Array, "*B S K"]:
    """``sum_{j != i} |k_i . k_j|`` of each key: below ``|k_i|^2`` no values of the same size can outweigh its own.

    Args:
        k: keys.

    >>> import jax.numpy as jnp
    >>> from attnjax.linear import hebbian
    >>> hebbian.interference(jnp.eye(3)[:, None]).tolist()
    [[0.0], [0.0], [0.0]]
    """
    products = jnp.abs(jnp.einsum("...ikh,...jkh->...ikj", k, k))
    return jnp.sum(products, -1) - jnp.sum(k**2, -1)
