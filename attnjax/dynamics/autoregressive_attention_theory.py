"""Gradient flow of causal linear self-attention on x_{t+1} = W x_t, and its closed forms.

From the diagonal start W_KQ[D:, :D] = a I, W_PV[:, :D] = b I the weights keep that shape, because averages over the
phases of W cancel everything else, and the prediction depends on a b alone. With |W_jj| = r and, for exchangeable
coordinates of x_1,

    k_0 = E x_j^2,   k_1 = E x_j^4,   k_2 = E x_j^6,   k_3 = sum_{i != j} E x_j^2 x_i^4,

the expected loss of time t per coordinate is a quadratic in s = a b,

    l_t(s) = r^{2t} [ k_0 / 2 - s k_1 S_t + s^2 (k_2 S_t^2 + k_3 Q_t) / 2 ],
    S_t = (1 - r^{2(t-1)}) / ((1 - r^2) (t - 1)),   Q_t = (1 - r^{4(t-1)}) / ((1 - r^4) (t - 1)^2),

which for unitary W is k_0 / 2 - s k_1 + s^2 (k_2 + k_3 / (t - 1)) / 2. An entry of the diagonals then moves as

    da/dt = b (G - K s),   db/dt = a (G - K s),   G = sum_t r^{2t} k_1 S_t,   K = sum_t r^{2t} (k_2 S_t^2 + k_3 Q_t).

Source: Zheng, Huang, Wang, Wu, Zhu, Li, 2024, "On Mesa-Optimization in Autoregressively Trained Transformers",
NeurIPS 2024 [Assumption 4.1, and the limit of the flow under it], arXiv 2405.16845.
Deviation: the time course in closed form and everything at r != 1 are own derivations. Assumption 4.1 asks that odd
moments of x_1 that mix coordinates vanish; constant starts (the full-one law) break it, and then the weights do not
keep their shape.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """Moments of the first state's coordinates; see the module's docstring."""

    k0: Float[Array, ""]
    k1: Float[Array, ""]
    k2: Float[Array, ""]
    k3: Float[Array, ""]


class Rates(NamedTuple):
    """Coefficients of the motion: G pushes a b up, K a b holds it.

    Attributes:
        g: G.
        k: K.
    """

    g: Float[Array, ""]
    k: Float[Array, ""]


def moments(law: str, *, dimension: int, scale: float | Float[Array, ""] = 1.0) -> Moments:
    """Moments of the laws that `attnjax.tasks.initial_states` draws from.

        gaussian   k = (s^2, 3 s^4, 15 s^6, 3 (D - 1) s^6)
        sparse     k = (s^2, s^4, s^6, 0) / D
        full-one   k = (s^2, s^4, s^6, (D - 1) s^6)

    Args:
        law: Which.
        dimension: D.
        scale: s.

    Returns:
        The moments.

    Raises:
        ValueError: An unknown law.

    Example:
        >>> print([float(k) for k in moments("gaussian", dimension=5)])
        [1.0, 3.0, 15.0, 12.0]

    Source: moments of the distributions that Zheng et al., 2024, study, arXiv 2405.16845.
    """
    powers = {
        "gaussian": (1, 3, 15, 3 * (dimension - 1)),
        "sparse": (1 / dimension, 1 / dimension, 1 / dimension, 0),
        "full-one": (1, 1, 1, dimension - 1),
    }
    if law not in powers:
        raise ValueError(f"law must be one of {', '.join(powers)}, got {law!r}")
    s = jnp.asarray(scale, float)
    return Moments(*(jnp.asarray(k * s**n) for k, n in zip(powers[law], (2, 4, 6, 6), strict=True)))


def rates(of: Moments, length: int, modulus: float | Float[Array, ""] = 1.0) -> Rates:
    """Coefficients of the motion of one diagonal entry.

    Args:
        of: Moments of the first state.
        length: T, at least 3.
        modulus: r = |W_jj|.

    Returns:
        G and K.

    Raises:
        ValueError: A length below three.

    Example:
        >>> found = rates(moments("sparse", dimension=1), length=6)
        >>> print(found.g, found.k)
        4.0 4.0

    Source: Zheng et al., 2024, arXiv 2405.16845, at r = 1; own derivation elsewhere.
    """
    size, linear, quadratic = _by_time(of, length, modulus)
    return Rates(jnp.sum(size * linear), jnp.sum(size * quadratic))


def limit(of: Moments, length: int, modulus: float | Float[Array, ""] = 1.0) -> Float[Array, ""]:
    """Where a b goes, G / K; for unitary W

        a b -> k_1 / (k_2 + k_3 / (T - 2) sum_{t=2}^{T-1} 1 / (t - 1)).

    Args:
        of: Moments of the first state.
        length: T.
        modulus: r.

    Returns:
        The limit.

    Example:
        >>> print(f"{limit(moments('gaussian', dimension=5), length=100):.4f}")
        0.1919

    Source: Zheng et al., 2024 [limit of the flow], arXiv 2405.16845. The line 1 / (5 s^2) that the paper draws for
    Gaussian states is the value at T = infinity.
    """
    found = rates(of, length, modulus)
    return found.g / found.k


def population_loss(
    product: float | Float[Array, ""], of: Moments, length: int, dimension: int, modulus: float | Float[Array, ""] = 1.0
) -> Float[Array, ""]:
    """Expected `autoregressive_attention.loss` at a I, b I, D sum_t l_t(a b).

    Args:
        product: a b.
        of: Moments of the first state.
        length: T.
        dimension: D.
        modulus: r.

    Returns:
        The loss, summed over time and coordinates.

    Example:
        >>> print(population_loss(0.0, moments("gaussian", dimension=5), length=4, dimension=5))
        5.0

    Source: own derivation, by averaging over phases.
    """
    size, linear, quadratic = _by_time(of, length, modulus)
    return dimension * jnp.sum(size * (of.k0 / 2 - product * linear + product**2 * quadratic / 2))


def flow(a: Float[Array, ""], b: Float[Array, ""], by: Rates) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Velocity of the two diagonals: (b, a) (G - K a b); a^2 - b^2 is conserved.

    Args:
        a: Diagonal entry in W_KQ.
        b: Diagonal entry in W_PV.
        by: Coefficients.

    Returns:
        da/dt and db/dt.

    Example:
        >>> da, db = flow(jnp.array(1.0), jnp.array(2.0), Rates(jnp.array(3.0), jnp.array(1.0)))
        >>> print(da, db)
        2.0 1.0

    Source: the gradient of `population_loss`.
    """
    push = by.g - by.k * a * b
    return b * push, a * push


def product_at(
    time: Float[Array, "*T"], a0: float | Float[Array, ""], b0: float | Float[Array, ""], by: Rates
) -> Float[Array, "*T"]:
    """a b over time, in closed form, from any start with a_0 + b_0 != 0.

    With P = (a_0 + b_0)^2 and M = (a_0 - b_0)^2, a + b grows by the factor by which a - b shrinks; its square y obeys
    a Riccati equation with constant coefficients,

        a b = (P y - M / y) / 4,   dy/dt = -(K P / 2) y^2 + 2 G y + K M / 2,   y(0) = 1,

    whose solution is (y - y_+) / (y - y_-) = (1 - y_+) / (1 - y_-) e^{-D t} with D = sqrt(4 G^2 + K^2 P M),
    y_+ = (2 G + D) / (K P) and y_- = -K M / (2 G + D). For a_0 = b_0 it is the logistic curve.

    Args:
        time: Gradient-flow time, for plain gradient descent steps times learning rate.
        a0: Start of a.
        b0: Start of b.
        by: Coefficients.

    Returns:
        a b at each time.

    Example:
        >>> by = Rates(jnp.array(3.0), jnp.array(15.0))
        >>> print([round(float(product), 4) for product in product_at(jnp.array([0.0, 100.0]), 0.5, 1.5, by)])
        [0.75, 0.2]

    Source: own derivation.
    """
    p, m = (a0 + b0) ** 2, (a0 - b0) ** 2
    root = jnp.sqrt(4 * by.g**2 + by.k**2 * p * m)
    above, below = (2 * by.g + root) / (by.k * p), -by.k * m / (2 * by.g + root)
    ratio = (1 - above) / (1 - below) * jnp.exp(-root * time)
    y = (above - below * ratio) / (1 - ratio)
    return (p * y - m / y) / 4


def _by_time(of: Moments, length: int, modulus) -> tuple[Array, Array, Array]:
    """r^{2t}, k_1 S_t and k_2 S_t^2 + k_3 Q_t for t = 2 .. T - 1."""
    if length < 3:
        raise ValueError(f"length must be at least 3, got {length}")
    r, steps = jnp.asarray(modulus, of.k0.dtype), jnp.arange(1, length - 1)  # steps = t - 1
    squares = r ** (2 * jnp.arange(length - 2))
    s, q = jnp.cumsum(squares) / steps, jnp.cumsum(squares**2) / steps**2
    return r ** (2 * (steps + 1)), of.k1 * s, of.k2 * s**2 + of.k3 * q
