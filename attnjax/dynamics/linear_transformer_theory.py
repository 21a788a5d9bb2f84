"""The least risk of steps of gradient descent in context: one step in closed form, more by orthogonal polynomials.

For inputs of unit variance in every direction and task vectors w ~ N(0, I), L steps with rates a_l leave the residual
R(S) = (I - a_1 S) .. (I - a_L S) w, with S = X^T X / N the prompt's own second moment, and risk E tr R(S)^2: the best
rates are those of the polynomial with R(0) = 1 that is least over the expected spectrum of S. If the inputs move too
("GD++"), the spectrum that the next step sees has moved: s <- s (1 - c_l s)^2.

Source: Ahn, Cheng, Daneshmand, Sra, 2023, arXiv 2306.00297 [layers as steps of preconditioned gradient descent];
von Oswald et al., 2023, arXiv 2212.07677 [GD and GD++]. The risks are own derivations.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.optimize import minimize
from jaxtyping import Array, Float

from attnjax.tasks import Prompts


class Rates(NamedTuple):
    """Steps of gradient descent, and of the inputs' own.

    Attributes:
        labels: a_l.
        inputs: c_l; zeros for plain gradient descent.
    """

    labels: Float[Array, " L"]
    inputs: Float[Array, " L"]


def fourth_moment(inputs: str, dimension: int, tail: float = 1.0) -> float:
    """E[|x|^2 x_1^2] of a law of inputs with unit variance in every direction.

        gaussian D + 2,   uniform D + 4/5,   sphere D,   gamma D (1 + 1 / tail)

    Args:
        inputs: A law that `attnjax.tasks.linear_regression` knows.
        dimension: D.
        tail: Shape of the gamma law.

    Returns:
        The moment.

    Raises:
        ValueError: An unknown law.

    Example:
        >>> fourth_moment("gaussian", 5), fourth_moment("gamma", 5, tail=2.5)  # |x|^2 of a Gaussian is such a gamma
        (7.0, 7.0)

    Source: own derivation.
    """
    known = {"gaussian": dimension + 2.0, "uniform": dimension + 0.8, "sphere": float(dimension)}
    if inputs == "gamma":
        return dimension * (1 + 1 / tail)
    if inputs not in known:
        raise ValueError(f"inputs must be one of {', '.join(known)}, gamma, got {inputs!r}")
    return known[inputs]


def best_rate(length: int, fourth: float) -> float:
    """The rate of least risk for one step: 1 / E[(S^2)_11] = 1 / (1 - 1 / N + E[|x|^2 x_1^2] / N).

    For inputs of variance v, divide it by v.

    Args:
        length: N.
        fourth: From `fourth_moment`.

    Returns:
        a.

    Example:
        >>> print(round(12 * best_rate(10, fourth_moment("uniform", 10)), 4))  # on (-1/2, 1/2): v = 1 / 12
        6.0606

    Source: own derivation; for Gaussian inputs it is `linear_attention_theory.best_product`.
    """
    return 1 / (1 - 1 / length + fourth / length)


def one_step_risk(dimension: int, length: int, fourth: float) -> float:
    """The least risk of one step, D (1 - a) with the best rate a; for inputs of variance v, times v.

    Args:
        dimension: D.
        length: N.
        fourth: From `fourth_moment`.

    Returns:
        Expected squared error of the query's label.

    Example:
        >>> print(round(one_step_risk(5, 20, fourth_moment("gaussian", 5)), 4))  # D (D + 1) / (N + D + 1)
        1.1538

    Source: own derivation.
    """
    return dimension * (1 - best_rate(length, fourth))


def residual(spectrum: Float[Array, "*S"], rates: Rates) -> Float[Array, "*S"]:
    """What is left of a direction of the task vector after all steps, as a function of S's eigenvalue there.

        r <- r (1 - a_l s),   s <- s (1 - c_l s)^2

    Args:
        spectrum: Eigenvalues s.
        rates: Of the steps.

    Returns:
        R(s).

    Example:
        >>> print(residual(jnp.array([0.5, 1.0]), Rates(jnp.array([1.0, 1.0]), jnp.zeros(2))))
        [0.25 0.  ]

    Source: own derivation; with c = 0 it is Ahn et al., 2023, arXiv 2306.00297.
    """
    left, s = jnp.ones_like(spectrum), spectrum
    for a, c in zip(*rates, strict=True):
        left, s = left * (1 - a * s), s * (1 - c * s) ** 2
    return left


def risk(spectrum: Float[Array, "B D"], rates: Rates) -> Float[Array, ""]:
    """Expected squared error of the query's label, averaged over sampled spectra.

    Args:
        spectrum: Eigenvalues of S for sampled prompts.
        rates: Of the steps.

    Returns:
        Mean over prompts of the sum over directions of R(s)^2.

    Example:
        >>> print(risk(jnp.ones((1, 5)), Rates(jnp.zeros(1), jnp.zeros(1))))
        5.0

    Source: own derivation.
    """
    return jnp.sum(residual(spectrum, rates) ** 2, axis=-1).mean()


def best_rates(spectrum: Float[Array, "B D"], steps: int) -> Rates:
    """The rates of least risk for plain gradient descent, by least squares over polynomials of degree `steps`.

    Call it under `jax.enable_x64(True)`: the equations are those of moments of S up to 2 `steps`.

    Args:
        spectrum: Eigenvalues of S for sampled prompts.
        steps: L, at least 1.

    Returns:
        Rates, smallest first; their order does not matter.

    Raises:
        ValueError: Fewer than one step.

    Example:
        >>> print(best_rates(jnp.array([[0.5, 2.0]]), 2).labels.round(3))  # two steps end two directions
        [0.5 2. ]

    Source: own derivation: the roots are those of an orthogonal polynomial, so they are real and positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    powers = spectrum.ravel()[None] ** jnp.arange(1, 2 * steps + 1)[:, None]
    moments = powers.mean(axis=1)
    order = jnp.arange(steps)
    coefficients = jnp.linalg.solve(moments[order[:, None] + order[None] + 1], -moments[:steps])
    # 1 + c_1 s + .. + c_L s^L = (1 - a_1 s) .. (1 - a_L s): the a's are the roots of u^L + c_1 u^(L - 1) + .. + c_L.
    companion = jnp.eye(steps, k=-1, dtype=spectrum.dtype).at[0].set(-coefficients)
    return Rates(jnp.sort(jnp.linalg.eigvals(companion).real), jnp.zeros(steps, spectrum.dtype))


def best_transforming_rates(spectrum: Float[Array, "B D"], steps: int) -> Rates:
    """The rates of least risk when the inputs move too: the best that BFGS finds from many starts.

    The starts are the plain rates in every order beside several rates of the inputs, thinned to about a hundred; from
    three steps on there are many local minima, and other starts may find a slightly lower one.

    Call it under `jax.enable_x64(True)`.

    Args:
        spectrum: Eigenvalues of S for sampled prompts.
        steps: L, at least 1.

    Returns:
        Rates; the last step's rate of the inputs is zero, since nothing sees them afterwards.

    Raises:
        ValueError: Fewer than one step.

    Example:
        >>> sampled = jnp.linspace(0.2, 2.0, 10)[None]
        >>> plain, moving = best_rates(sampled, 2), best_transforming_rates(sampled, 2)
        >>> bool(risk(sampled, moving) < 0.5 * risk(sampled, plain))
        True

    Source: own derivation; the class of maps is GD++ of von Oswald et al., 2023, arXiv 2212.07677.
    """
    plain = best_rates(spectrum, steps).labels
    if steps == 1:
        return Rates(plain, jnp.zeros_like(plain))
    unpack = lambda flat: Rates(flat[:steps], jnp.append(flat[steps:], 0.0))
    of = lambda flat: jnp.log(risk(spectrum, unpack(flat)))
    orders, inputs = itertools.permutations(range(steps)), itertools.product((0.1, 0.3, 1.0), repeat=steps - 1)
    pairs = list(itertools.product(orders, inputs))[:: max(1, math.factorial(steps) * 3 ** (steps - 1) // 100)]
    starts = jnp.stack([jnp.append(plain[jnp.array(order)], jnp.array(moving, plain.dtype)) for order, moving in pairs])
    found = jax.lax.map(lambda start: minimize(of, start, method="BFGS"), starts)
    return unpack(found.x[jnp.argmin(jnp.where(jnp.isnan(found.fun), jnp.inf, found.fun))])


def spectra(prompts: Prompts) -> Float[Array, "B D"]:
    """Eigenvalues of S = X^T X / N of every prompt.

    Args:
        prompts: What `attnjax.tasks.linear_regression` returns, of unit variance in every direction.

    Returns:
        Ascending.

    Example:
        >>> from attnjax.tasks import linear_regression
        >>> spectra(linear_regression(jax.random.key(0), batch=2, length=5, covariance=jnp.ones(3))).shape
        (2, 3)
    """
    x = prompts.x
    return jnp.linalg.eigvalsh(jnp.einsum("bid,bie->bde", x, x) / x.shape[1])


def descend(prompts: Prompts, preconditioners: Float[Array, "L D D"]) -> Float[Array, " B"]:
    """Predictions of gradient descent itself, on w, from zero: w <- w + Q_l^T sum_i (y_i - w^T x_i) x_i / N.

    Args:
        prompts: What `attnjax.tasks.linear_regression` returns.
        preconditioners: Q_l.

    Returns:
        w^T x_q after all steps.

    Example:
        >>> from attnjax.tasks import linear_regression
        >>> prompts = linear_regression(jax.random.key(0), batch=2, length=50, covariance=jnp.ones(3))
        >>> found = descend(prompts, jnp.tile(jnp.eye(3) / 2, (200, 1, 1)))
        >>> bool(jnp.allclose(found, prompts.y_query, atol=1e-4))
        True

    Source: von Oswald et al., 2023, Section 2 [gradient descent on the in-context loss], arXiv 2212.07677.
    """
    w = jnp.zeros_like(prompts.x_query)
    for q in preconditioners:
        errors = prompts.y - jnp.einsum("bd,bid->bi", w, prompts.x)
        w = w + jnp.einsum("bi,bid,de->be", errors, prompts.x, q) / prompts.x.shape[1]
    return jnp.sum(w * prompts.x_query, axis=1)
