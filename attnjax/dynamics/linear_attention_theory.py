"""Gradient flow of linear self-attention on in-context regression, and its closed forms.

From the balanced start only two blocks of the weights ever move: u = W_KQ[:D, :D] and w = W_PV[D, D]. The prediction is
then g^T (w u) x_q with g = (1/N) sum_i y_i x_i, and everything below is quadratic in the product w u with coefficients
that are moments of g. With S the covariance of the inputs, P that of the task vector, s the standard deviation of the
label noise:

    M = E[g g^T] = (1 + 1/N) S P S + (tr(P S) + s^2) S / N,        E[(task vector) g^T] = P S.

Source: Zhang, Frei, Bartlett, 2024, "Trained Transformers Learn Linear Models In-Context", JMLR 25(49),
arXiv 2306.09927.
Deviation: the paper has P = I and s = 0, where M = Gamma S with Gamma = (1 + 1/N) S + (tr S / N) I. The general M, with
the minimum, flow and risk that follow from it, is an own derivation (Gaussian fourth moments), tested against sampled
prompts. The paper's 1/2 in the loss is kept; `risk` is without it.
Written for any dtype; run it under `jax.enable_x64(True)` when comparing to many digits.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.dynamics.linear_attention import Params


class Task(NamedTuple):
    """The distribution of prompts that a closed form is for.

    Attributes:
        covariance: S, of the inputs.
        length: N, the number of labeled examples in a prompt.
        prior: P, of the task vector; None is the identity.
        noise: s, standard deviation of the label noise.
    """

    covariance: Float[Array, "D D"]
    length: int | Float[Array, ""]
    prior: Float[Array, "D D"] | None = None
    noise: float | Float[Array, ""] = 0.0


class Blocks(NamedTuple):
    """The two blocks that move: u = W_KQ[:D, :D] and w = W_PV[D, D]."""

    u: Float[Array, "D D"]
    w: Float[Array, ""]


def blocks(params: Params) -> Blocks:
    """The blocks that move, out of the layer's full weights.

    Args:
        params: Full weights.

    Returns:
        u and w.

    Example:
        >>> from attnjax.dynamics.linear_attention import init
        >>> print(blocks(init(jnp.eye(1), 0.5).params))
        Blocks(u=Array([[0.5]], dtype=float32), w=Array(0.5, dtype=float32))
    """
    return Blocks(params.w_kq[:-1, :-1], params.w_pv[-1, -1])


def context_moment(task: Task) -> Float[Array, "D D"]:
    """Second moment of what a prompt says about its task, M = E[g g^T] with g = (1/N) sum_i y_i x_i.

        M = (1 + 1/N) S P S + (tr(P S) + s^2) S / N

    Args:
        task: Distribution of prompts.

    Returns:
        M. With P = I and s = 0 it is Gamma S of the paper.

    Example:
        >>> print(context_moment(Task(jnp.eye(2), length=4)))
        [[1.75 0.  ]
         [0.   1.75]]

    Source: Zhang, Frei, Bartlett, 2024, Theorem 4.1 [Gamma], arXiv 2306.09927; general P and s: own derivation.
    """
    s, n = task.covariance, task.length
    return (1 + 1 / n) * _signal(task) + (_label_variance(task) + task.noise**2) * s / n


def population_loss(at: Blocks, task: Task) -> Float[Array, ""]:
    """Half the expected squared error of the query's noise-free label, the loss that gradient flow descends.

        l(u, w) = w^2 tr(u S u^T M) / 2 - w tr(u S P S) + tr(P S) / 2

    Args:
        at: Point.
        task: Distribution of prompts.

    Returns:
        The loss.

    Example:
        >>> print(population_loss(Blocks(jnp.eye(2), jnp.zeros(())), Task(jnp.eye(2), length=4)))
        1.0

    Source: Zhang, Frei, Bartlett, 2024, Lemma 5.2 (up to a constant), arXiv 2306.09927.
    """
    return 0.5 * risk(at.w * at.u, task)


def flow(at: Blocks, task: Task) -> Blocks:
    """Velocity of gradient flow, minus the gradient of `population_loss`.

        du/dt = w S P S - w^2 M u S
        dw/dt = tr(u S P S) - w tr(u S u^T M)

    w^2 - |u|_F^2 is conserved, so a balanced start stays balanced.

    Args:
        at: Point.
        task: Distribution of prompts.

    Returns:
        Time derivatives of both blocks.

    Example:
        >>> at = global_minimum(Task(jnp.eye(2), length=4))
        >>> bool(jnp.abs(flow(at, Task(jnp.eye(2), length=4)).w) < 1e-5)
        True

    Source: Zhang, Frei, Bartlett, 2024, Lemma 5.2 and its proof, arXiv 2306.09927.
    """
    s, m, signal = task.covariance, context_moment(task), _signal(task)
    du = at.w * signal - at.w**2 * m @ at.u @ s
    dw = jnp.trace(at.u @ signal) - at.w * jnp.trace(at.u @ s @ at.u.T @ m)
    return Blocks(du, dw)


def best_product(task: Task) -> Float[Array, "D D"]:
    """The product w u that minimizes the loss, M^{-1} S P; with P = I and s = 0 it is Gamma^{-1}.

    Args:
        task: Distribution of prompts.

    Returns:
        The matrix A of the best predictor g^T A x_q.

    Example:
        >>> print(best_product(Task(jnp.eye(2), length=2)))
        [[0.4 0. ]
         [0.  0.4]]

    Source: Zhang, Frei, Bartlett, 2024, Theorem 4.1, arXiv 2306.09927; general P and s: own derivation.
    """
    s = task.covariance
    return jnp.linalg.solve(context_moment(task), s if task.prior is None else s @ task.prior)


def global_minimum(task: Task) -> Blocks:
    """Where gradient flow ends from a balanced start: the best product, split into blocks of equal norm.

        u = A / |A|_F^{1/2},   w = |A|_F^{1/2},   A = Gamma^{-1}   so that   w = tr(Gamma^{-2})^{1/4}

    Args:
        task: Distribution of prompts.

    Returns:
        The limit of both blocks; every other entry of the weights is zero.

    Example:
        >>> print(round(float(global_minimum(Task(jnp.diag(jnp.array([2.0, 1.0, 0.5, 0.25])), length=10)).w), 5))
        1.42695

    Source: Zhang, Frei, Bartlett, 2024, Theorem 4.1, arXiv 2306.09927.
    """
    a = best_product(task)
    w = jnp.sqrt(jnp.linalg.norm(a))
    return Blocks(a / w, w)


def minimal_loss(task: Task) -> Float[Array, ""]:
    """The least loss that one linear self-attention layer can reach on the task.

        l* = (tr(P S) - tr(A S P S)) / 2,   with P = I:  (tr S - tr(S^2 Gamma^{-1})) / 2

    Args:
        task: Distribution of prompts.

    Returns:
        The loss at `global_minimum`.

    Example:
        >>> print(round(float(minimal_loss(Task(jnp.diag(jnp.array([2.0, 1.0, 0.5, 0.25])), length=10))), 4))
        0.5761

    Source: Zhang, Frei, Bartlett, 2024, Theorem 4.1 and Lemma 5.2, arXiv 2306.09927.
    """
    return 0.5 * (_label_variance(task) - jnp.trace(best_product(task) @ _signal(task)))


def risk(product: Float[Array, "D D"], task: Task, query: Float[Array, "D D"] | None = None) -> Float[Array, ""]:
    """Expected squared error of the predictor g^T A x_q on prompts of `task`, whatever it was trained on.

        E (yhat - y_q)^2 = tr(P Q) - 2 tr(A Q P S) + tr(A Q A^T M),   Q the query's covariance

    `task.length` is the test prompt's: the training length enters through A alone.

    Args:
        product: A = w u.
        task: Distribution of the test prompts; y_q carries no noise.
        query: Covariance of the query where it is another than the context's, S.

    Returns:
        The risk, in the unit of y squared; twice `population_loss`.

    Example:
        >>> task = Task(jnp.eye(2), length=4)
        >>> print(round(float(risk(best_product(task), task)), 4), round(2 * float(minimal_loss(task)), 4))
        0.8571 0.8571

    Source: Zhang, Frei, Bartlett, 2024, Theorem 4.2 bounds it; the equality for every A is an own derivation.
    """
    q = task.covariance if query is None else query
    weighted = q if task.prior is None else q @ task.prior
    explained = jnp.trace(product @ weighted @ task.covariance)
    spread = jnp.trace(product @ q @ product.T @ context_moment(task))
    return jnp.trace(weighted) - 2 * explained + spread


def isotropic_product(
    t: Float[Array, "*T"],
    *,
    dimension: int,
    length: int,
    start: float,
    variance: float = 1.0,
    noise: float = 0.0,
) -> Float[Array, "*T"]:
    """Time course of gradient flow for S = variance I from u proportional to I: one abrupt, logistic rise.

        w u = p(t) I,   p(t) = p* / (1 + (p*/p(0) - 1) exp(-2 sqrt(D) variance^2 t))
        p* = variance / m,   M = m I,   m = (1 + 1/N) variance^2 + (D variance + s^2) variance / N

    Args:
        t: Times, in units of learning rate times steps.
        dimension: D.
        length: N.
        start: p(0) > 0; the balanced start of scale c has p(0) = c^2 / sqrt(D).
        variance: Of each input coordinate.
        noise: s.

    Returns:
        p at each time.

    Example:
        >>> print(round(float(isotropic_product(jnp.array(1.0), dimension=5, length=20, start=0.01)), 4))
        0.412

    Source: own derivation from the flow of Zhang, Frei, Bartlett, 2024, Lemma 5.2, arXiv 2306.09927: with w = sqrt(D) u
    the product obeys dp/dt = 2 sqrt(D) variance^2 p (1 - p / p*).
    """
    m = (1 + 1 / length) * variance**2 + (dimension * variance + noise**2) * variance / length
    limit = variance / m
    decay = jnp.exp(-2 * jnp.sqrt(1.0 * dimension) * variance**2 * t)
    return limit / (1 + (limit / start - 1) * decay)


def isotropic_half_time(
    *, dimension: int, length: int, start: float, variance: float = 1.0, noise: float = 0.0
) -> Float[Array, ""]:
    """The time at which `isotropic_product` is halfway to its limit, ln(p*/p(0) - 1) / (2 sqrt(D) variance^2).

    Args:
        dimension: D.
        length: N.
        start: p(0), below half of the limit.
        variance: Of each input coordinate.
        noise: s.

    Returns:
        The time.

    Example:
        >>> print(round(float(isotropic_half_time(dimension=5, length=20, start=0.01)), 4))
        0.9682

    Source: own derivation, see `isotropic_product`.
    """
    limit = isotropic_product(
        jnp.asarray(jnp.inf), dimension=dimension, length=length, start=start, variance=variance, noise=noise
    )
    return jnp.log(limit / start - 1) / (2 * jnp.sqrt(1.0 * dimension) * variance**2)


def largest_init_scale(task: Task) -> Float[Array, ""]:
    """The scale of the balanced start below which the theorem promises convergence, sqrt(2 / (|Gamma|_op sqrt(D))).

    Args:
        task: Distribution of prompts; its prior must be the identity and its noise zero, for the theorem has neither.

    Returns:
        The bound on `scale` of `linear_attention.init`.

    Raises:
        ValueError: The task has a prior.

    Example:
        >>> print(round(float(largest_init_scale(Task(jnp.eye(4), length=5))), 4))
        0.7071

    Source: Zhang, Frei, Bartlett, 2024, Theorem 4.1, arXiv 2306.09927.
    """
    if task.prior is not None:
        raise ValueError("task.prior must be None: the theorem's bound is for the identity prior")
    s, n, d = task.covariance, task.length, task.covariance.shape[0]
    gamma = (1 + 1 / n) * s + jnp.trace(s) / n * jnp.eye(d, dtype=s.dtype)
    return jnp.sqrt(2 / (jnp.linalg.norm(gamma, ord=2) * jnp.sqrt(1.0 * d)))


def _signal(task: Task) -> Array:
    """S P S, the cross moment of the label's direction and the prompt."""
    s = task.covariance
    return s @ s if task.prior is None else s @ task.prior @ s


def _label_variance(task: Task) -> Array:
    """tr(P S) = E y_q^2."""
    s = task.covariance
    return jnp.trace(s) if task.prior is None else jnp.trace(task.prior @ s)
