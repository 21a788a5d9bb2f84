"""What a perceptron above attention does to it: joint invariants, and attention that turns sparse and then dense.

V is the first matrix of the perceptron on the contextual tokens. Along gradient flow, whatever the activation, the
matrices above and the loss,

    linear     z^2 / 2 - sum_k v_k^2 / 2                        is conserved, entrywise
    exp        z - sum_k v_k^2 / (2 tau)                        is conserved, entrywise
    softmax    z - (sum_k v_k^2 - b |V|^2) / (2 tau)            moves little, with b the mean attention over classes

so that attention can be eliminated. What is left for one unit of the perceptron is, with a nonlinear activation,

    v' = (mu - v) * softmax(v^2 / tau)                          (learn the largest first; then attention opens again)

and with a linear one, for discriminability Delta,

    v' = Delta * exp(v^2 / 2)                                   (the winner takes all, in finite time)

Source: Tian, Wang, Zhang, Chen, Du, 2024, "JoMA: Demystifying Multilayer Transformers via Joint Dynamics of MLP and
Attention", ICLR 2024, arXiv 2310.00535, and the authors' code, facebookresearch/luckmatters (ssl/real-dataset/joma).
Deviation: the invariants are derived here from the model of `joint_mlp_attention`; the authors' code adds the query's
weight to |V|^2, which the derivation has not.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, erfinv
from jaxtyping import Array, Float

from attnjax.dynamics.joint_mlp_attention import KINDS


def implied_logits(
    v: Float[Array, "K M"],
    kind: str,
    *,
    temperature: float | Float[Array, ""] = 1.0,
    mean_attention: Float[Array, " M"] | None = None,
) -> Float[Array, " M"]:
    """What the perceptron says of attention: z, or z^2 / 2 for the kind "linear", up to a constant of the motion.

    Args:
        v: The first matrix on the contextual tokens.
        kind: "linear", "exp" or "softmax".
        temperature: tau; linear attention has none.
        mean_attention: b, for "softmax" alone.

    Returns:
        One number per contextual token.

    Raises:
        ValueError: An unknown kind, or softmax without its mean attention.

    Example:
        >>> print(implied_logits(jnp.array([[1.0, 2.0]]), "exp"))
        [0.5 2. ]

    Source: Tian et al., 2024 [the joint dynamics of MLP and attention], arXiv 2310.00535; derived anew.
    """
    squares = jnp.sum(v**2, axis=0)
    if kind == "linear":
        return squares / 2
    if kind == "exp":
        return squares / (2 * temperature)
    if kind == "softmax":
        if mean_attention is None:
            raise ValueError("softmax attention needs mean_attention, the mean of its weights over classes")
        return (squares - mean_attention * squares.sum()) / (2 * temperature)
    raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")


def nonlinear_flow(
    v: Float[Array, " M"], mu: Float[Array, " M"], temperature: float | Float[Array, ""] = 1.0
) -> Float[Array, " M"]:
    """The velocity (mu - v) * softmax(v^2 / tau) of a unit with a nonlinear activation.

    Args:
        v: The unit's weights on the contextual tokens.
        mu: Where they end.
        temperature: tau.

    Returns:
        dv / dt.

    Example:
        >>> print(nonlinear_flow(jnp.zeros(2), jnp.array([1.0, 4.0])))
        [0.5 2. ]

    Source: Tian et al., 2024 [nonlinear activation], and the authors' code (draw_figure_4.py), arXiv 2310.00535.
    """
    return (mu - v) * jax.nn.softmax(v**2 / temperature)


def nonlinear_clock(
    v: Float[Array, " M"],
    start: Float[Array, " M"],
    mu: Float[Array, " M"],
    temperature: float | Float[Array, ""] = 1.0,
    *,
    nodes: int = 64,
) -> Float[Array, " M"]:
    """The integral from start to v of exp(-u^2 / tau) / (mu - u) du, the same for every token along `nonlinear_flow`.

    Attention's normalizer only changes the speed of all tokens together, so each token carries the same clock; a token
    of larger mu needs less of it.

    Args:
        v: Weights at some time, between start and mu.
        start: Weights at the beginning.
        mu: Where they end.
        temperature: tau.
        nodes: Of the Gauss-Legendre rule, which is applied to ln((mu - start) / (mu - u)).

    Returns:
        One reading per token.

    Example:
        >>> at = nonlinear_clock(jnp.array([0.5]), jnp.zeros(1), jnp.ones(1), 1e6)  # no attention: ln 2
        >>> print(at.round(4))
        [0.6931]

    Source: own derivation.
    """
    points, weights = (jnp.asarray(part, v.dtype) for part in _legendre(nodes))
    span = jnp.log((mu - start) / (mu - v))  # substitute u = mu - (mu - start) exp(-s)
    s = span[:, None] * points[None]
    u = mu[:, None] - (mu - start)[:, None] * jnp.exp(-s)
    return span * jnp.sum(weights[None] * jnp.exp(-(u**2) / temperature), axis=1)


def attention_entropy(v: Float[Array, "*T M"], temperature: float | Float[Array, ""] = 1.0) -> Float[Array, "*T"]:
    """Entropy of softmax(v^2 / tau).

    Args:
        v: Weights.
        temperature: tau.

    Returns:
        Nats.

    Example:
        >>> print(attention_entropy(jnp.zeros(10)).round(4))  # ln 10
        2.3026

    Source: the authors' code (draw_figure_4.py), arXiv 2310.00535.
    """
    log_p = jax.nn.log_softmax(v**2 / temperature, axis=-1)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def linear_flow(v: Float[Array, " M"], discriminability: Float[Array, " M"]) -> Float[Array, " M"]:
    """The velocity Delta * exp(v^2 / 2) of a unit without activation.

    Args:
        v: The unit's weights on the contextual tokens.
        discriminability: Delta.

    Returns:
        dv / dt.

    Example:
        >>> print(linear_flow(jnp.zeros(2), jnp.array([1.0, -2.0])))
        [ 1. -2.]

    Source: Tian et al., 2024 [linear activation], arXiv 2310.00535.
    """
    return discriminability * jnp.exp(v**2 / 2)


def linear_path(
    t: Float[Array, " T"], start: Float[Array, " M"], discriminability: Float[Array, " M"]
) -> Float[Array, "T M"]:
    """`linear_flow` solved: erf(v / sqrt 2) = erf(v_0 / sqrt 2) + sqrt(2 / pi) Delta t, entrywise.

    Args:
        t: Times before `blow_up_time`.
        start: v_0.
        discriminability: Delta.

    Returns:
        v at each time.

    Example:
        >>> print(linear_path(jnp.array([0.1]), jnp.zeros(1), jnp.ones(1)).round(4))
        [[0.1002]]

    Source: own derivation; that erf(v_j / sqrt 2) / Delta_j - erf(v_k / sqrt 2) / Delta_k is conserved is in
    Tian et al., 2024 [linear activation], arXiv 2310.00535.
    """
    reached = erf(start / jnp.sqrt(2.0))[None] + jnp.sqrt(2 / jnp.pi) * t[:, None] * discriminability[None]
    return jnp.sqrt(2.0) * erfinv(reached)


def blow_up_time(start: Float[Array, " M"], discriminability: Float[Array, " M"]) -> Float[Array, ""]:
    """When the first entry of `linear_path` is infinite: min over j of sqrt(pi / 2) (1 -+ erf(v_0 / sqrt 2)) / |Delta|.

    Args:
        start: v_0.
        discriminability: Delta, not all zero.

    Returns:
        The time.

    Example:
        >>> print(blow_up_time(jnp.zeros(2), jnp.array([1.0, 2.0])).round(4))  # sqrt(pi / 8)
        0.6267

    Source: own derivation.
    """
    signed = erf(start / jnp.sqrt(2.0)) * jnp.sign(discriminability)
    return jnp.min(jnp.sqrt(jnp.pi / 2) * (1 - signed) / jnp.abs(discriminability))


def _legendre(nodes: int):
    """Gauss-Legendre nodes and weights on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return (points + 1) / 2, weights / 2
