"""Trained memories that are not least squares: another loss, or another geometry of what is remembered."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from attnjax.linear import _learner, _validate
from attnjax.linear._learner import Apply, Rule
from attnjax.linear._memory import Outputs, Run, learn, linear_memory

Image = Literal["printed", "dual"]
Bend = Literal["norm", "coordinate"]
Numbers = Float[Array, "*#B #T #K"]


def moneta(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    rate: Numbers,
    forget: Numbers | None = None,
    *,
    power: float | int = 3.0,
    norm: float | int = 4.0,
    image: Image = "printed",
    sharpness: float | int | None = None,
    eps: float | int = 1e-6,
    params: PyTree[Float[Array, "K ..."]] | None = None,
    apply: Apply = linear_memory,
    **run: Any,
) -> Outputs:
    """Moneta: errors to the power p, and a memory whose q-norm is held.

        A_t = (1 - alpha_t) A_{t-1} - theta_t grad |apply(W_{t-1}, k_t) - v_t|_p^p,    W_t = image(A_t),

    with p ``power`` and q ``norm``, and

        image "printed":    A / |A|_q^{q-2}
        image "dual":       sign(A) |A|^{q-1} / |A|_q^{q-2}

    The second is the W that ``<A, W> - |W|_r^2 / 2`` is greatest at, ``1 / q + 1 / r = 1``: the mirror map of the norm.
    The first is what the paper's update says; of degree 3 - q, it makes a larger A a smaller W where q is above 3, and
    from zero its first steps are large. They are equal at q = 2; with p = 2 too it is the delta rule of ``beta = 2
    theta``.

    Source: Behrouz et al., 2025, It's All Connected, arXiv 2504.13173 (its equations as a public note gives them).
    Deviations: numbers for each head, not for each channel; in a chunk only gradients are taken at the memory before
    it, the image at every token, where theirs is taken at the ends of chunks.

    Args:
        q: queries ``[*B, T, N, H]``; not scaled.
        k: keys ``[*B, T, K, H]``.
        v: values ``[*B, T, K, V]``.
        rate: ``theta >= 0``.
        forget: ``0 <= alpha <= 1``, one less what they call alpha, or None.
        power: at least 1.
        norm: at least 2.
        image: see above; of every leaf of a head's parameters.
        sharpness: None takes the sign of an error; a number a takes ``tanh(a x)`` for it, and ``sqrt(x^2 + 1e-6)`` for
            its size.
        eps: added to the sum of powers under the norm.
        params: what A begins with, as for ``neural_memory``; None is a linear memory of zeros.
        apply: as for ``neural_memory``.
        run: chunk_size, state, return_state, segment_ids, lengths: as for ``neural_memory``.

    Returns:
        As ``neural_memory``; the state holds A.

    Raises:
        ValueError: a number is out of its range, a name is unknown, or as for ``neural_memory``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x, rate = jnp.ones((8, 2, 4)) / 2, jnp.full((8, 2), 0.5)
    >>> delta = linear.delta_rule(2 * x, x, x, 2 * rate)
    >>> bool(jnp.allclose(linear.moneta(x, x, x, rate, power=2, norm=2), delta))
    True
    """
    _validate.choice("image", image, Image)
    for name, number, least in (("power", power, 1), ("norm", norm, 2)):
        if not number >= least:
            raise ValueError(f"{name}: got {number}, want at least {least}")
    sharp = None if sharpness is None else float(sharpness)
    rule = Rule(apply, _Power(float(power), sharp), _Held(float(norm), image == "dual", float(eps)))
    return learn(q, k, v, rate, None, forget, _start(params, k, v), rule, Run(**run))


def yaad(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    rate: Numbers,
    threshold: Numbers,
    forget: Numbers | None = None,
    *,
    bend: Bend = "norm",
    params: PyTree[Float[Array, "K ..."]] | None = None,
    apply: Apply = linear_memory,
    **run: Any,
) -> Outputs:
    """Yaad: Huber's loss, so that one wild value moves the memory no further than the threshold delta,

        W_t = (1 - alpha_t) W_{t-1} - theta_t grad H(apply(W_{t-1}, k_t) - v_t),    H(e) = |e|^2 / 2 up to |e| = delta,
                                                                            H(e) = delta (|e| - delta / 2) beyond,

    with |e| the Euclidean norm of all errors, or summed over errors one by one.

    Source: Behrouz et al., 2025, It's All Connected, arXiv 2504.13173 (its equations as a public note gives them).
    Deviations: half of the squared error below the threshold, and the direction of the error above, the one choice
    whose gradient does not jump; numbers for each head, not for each channel.

    Args:
        q: queries ``[*B, T, N, H]``; not scaled.
        k: keys ``[*B, T, K, H]``.
        v: values ``[*B, T, K, V]``.
        rate: ``theta >= 0``.
        threshold: ``delta >= 0``; with infinity it is least squares.
        forget: ``0 <= alpha <= 1``, one less what they call alpha, or None.
        bend: "norm" or "coordinate": what is held against the threshold.
        params: what W begins with, as for ``neural_memory``; None is a linear memory of zeros.
        apply: as for ``neural_memory``.
        run: chunk_size, state, return_state, segment_ids, lengths: as for ``neural_memory``.

    Returns:
        As ``neural_memory``.

    Raises:
        ValueError: a name is unknown, or as for ``neural_memory``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x, rate = jnp.ones((8, 2, 4)) / 2, jnp.full((8, 2), 0.5)
    >>> out = linear.yaad(x, x, 100 * x, rate, 2 * rate)  # steps of length 1/2
    >>> [round(float(step), 3) for step in jnp.linalg.norm(out[:3, 0], axis=-1)]
    [0.5, 1.0, 1.5]
    """
    _validate.choice("bend", bend, Bend)
    rule = Rule(apply, _by_norm if bend == "norm" else _by_coordinate, _learner.identity)
    return learn(q, k, v, rate, None, forget, _start(params, k, v), rule, Run(**run), threshold=threshold)


def memora(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    rate: Numbers,
    forget: Numbers | None = None,
    *,
    params: PyTree[Float[Array, "K ..."]] | None = None,
    apply: Apply = linear_memory,
    **run: Any,
) -> Outputs:
    """Memora: what every value is read from is a distribution over features, and moves as in entropic mirror descent,

        W_t = softmax((1 - alpha_t) log W_{t-1} - theta_t grad l_t(W_{t-1})),    l_t(W) = |apply(W, k_t) - v_t|^2 / 2,

    the softmax over features, of each column of a matrix ``[H, V]``. The logits are kept, not W: it is the same, and
    no weight is ever zero for good. Negative weights cannot be stored.

    Source: Behrouz et al., 2025, It's All Connected, arXiv 2504.13173 (its equations as a public note gives them).
    Deviations: half of their loss; weights sum to 1; numbers for each head, not for each channel; in a chunk only
    gradients are taken at the memory before it, the softmax at every token, where theirs skips it until the end.

    Args:
        q: queries ``[*B, T, N, H]``; not scaled.
        k: keys ``[*B, T, K, H]``.
        v: values ``[*B, T, K, V]``.
        rate: ``theta >= 0``.
        forget: ``0 <= alpha <= 1``, one less what they call alpha, or None: 1 makes all weights equal.
        params: the logits at the start, leaves ``[K, in, out]``, as for ``neural_memory``; None is a linear memory of
            equal weights.
        apply: as for ``neural_memory``.
        run: chunk_size, state, return_state, segment_ids, lengths: as for ``neural_memory``.

    Returns:
        As ``neural_memory``; the state holds logits.

    Raises:
        ValueError: as for ``neural_memory``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x, rate = jnp.ones((8, 2, 4)), jnp.full((8, 2), 0.5)
    >>> bool(jnp.allclose(linear.memora(x, x, 5 * x, rate), x))  # an average of features, whatever the values
    True
    """
    rule = Rule(apply, _learner.error, _columns)
    return learn(q, k, v, rate, None, forget, _start(params, k, v), rule, Run(**run))


def elastic_net(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    rate: Numbers,
    ridge: Numbers,
    lasso: Numbers,
    *,
    params: PyTree[Float[Array, "K ..."]] | None = None,
    apply: Apply = linear_memory,
    **run: Any,
) -> Outputs:
    """Elastic net retention: small weights become zero, large ones shrink,

        W_t = the W least in  <grad l_t(W_{t-1}), W> + |W - W_{t-1}|^2 / (2 theta_t) + ridge |W|^2 / 2 + lasso |W|_1
            = lambda soft(W_{t-1} - theta_t grad l_t(W_{t-1}), theta_t lasso_t),    lambda = 1 / (1 + theta_t ridge_t),

    with ``l_t(W) = |apply(W, k_t) - v_t|^2 / 2`` and ``soft(x, c) = sign(x) max(|x| - c, 0)``.

    Source: Behrouz et al., 2025, It's All Connected, arXiv 2504.13173 (its equations as a public note gives them, with
    ridge one over their beta and lasso one over their alpha). Deviations: half of the loss; in a chunk gradients are
    taken at the memory before it, and the soft threshold at every token.

    Args:
        q: queries ``[*B, T, N, H]``; not scaled.
        k: keys ``[*B, T, K, H]``.
        v: values ``[*B, T, K, V]``.
        rate: ``theta >= 0``.
        ridge: at least 0; with ``lasso`` zero this is ``titans`` without momentum of ``forget = 1 - lambda`` and rate
            ``lambda theta``.
        lasso: at least 0.
        params: what W begins with, as for ``neural_memory``; None is a linear memory of zeros.
        apply: as for ``neural_memory``.
        run: chunk_size, state, return_state, segment_ids, lengths: as for ``neural_memory``.

    Returns:
        As ``neural_memory``.

    Raises:
        ValueError: as for ``neural_memory``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x, ones = jnp.ones((8, 2, 4)) / 2, jnp.ones((8, 2))
    >>> out, state = linear.elastic_net(x, x, x, ones, ones, ones, return_state=True)
    >>> float(jnp.max(jnp.abs(state.memory)))  # nothing is worth its weight
    0.0
    """
    for name, x in (("ridge", ridge), ("lasso", lasso)):
        _validate.not_negative(name, x)
    kept = 1 / (1 + rate * ridge)
    rule = Rule(apply, _learner.error, _learner.identity)
    start = _start(params, k, v)
    return learn(q, k, v, kept * rate, None, 1 - kept, start, rule, Run(**run), shrink=kept * rate * lasso)


def _start(params: Any, k: Array, v: Array) -> Any:
    return jnp.zeros((k.shape[-2], k.shape[-1], v.shape[-1])) if params is None else params


@dataclasses.dataclass(frozen=True)
class _Power:
    """The gradient of ``sum |e|^p``."""

    power: float
    sharpness: float | None

    def __call__(self, read: Array, value: Array, threshold: Any) -> Array:
        error = read - value
        if self.sharpness is None:
            return self.power * jnp.sign(error) * jnp.abs(error) ** (self.power - 1)
        size = jnp.sqrt(error**2 + 1e-6)
        return self.power * jnp.tanh(self.sharpness * error) * size ** (self.power - 1)


def _by_norm(read: Array, value: Array, threshold: Array) -> Array:
    error = read - value
    size = jnp.sum(error**2)
    far = size > threshold**2
    return jnp.where(far, threshold * jax.lax.rsqrt(jnp.where(far, size, 1)), 1) * error


def _by_coordinate(read: Array, value: Array, threshold: Array) -> Array:
    return jnp.clip(read - value, -threshold, threshold)


@dataclasses.dataclass(frozen=True)
class _Held:
    """``A / |A|_q^{q-2}``, or the mirror map, of every leaf."""

    norm: float
    dual: bool
    eps: float

    def __call__(self, tree: Any) -> Any:
        return jax.tree.map(self._one, tree)

    def _one(self, a: Array) -> Array:
        sizes = jnp.sum(jnp.abs(a) ** self.norm)
        top = jnp.sign(a) * jnp.abs(a) ** (self.norm - 1) if self.dual else a
        return top / (sizes + self.eps) ** (1 - 2 / self.norm)


def _columns(tree: Any) -> Any:
    return jax.tree.map(lambda logits: jax.nn.softmax(logits, axis=-2), tree)
