"""What softmax attention can reach on in-context linear regression, at any finite dimension and length.

Trained layers end with kq_h = omega_h I on the inputs and ov_h = mu_h on the label alone, so that

    y_hat = sum_h mu_h sum_i p_hi y_i,   p_h = softmax_i(omega_h x_i . x_q).

Averaged over the task vector b ~ N(0, I / D) and the label noise s, given the inputs, its risk is a quadratic in mu,

    R = 1 - 2 mu^T c + mu^T A mu,   u_h = sum_i p_hi x_i,
    c_h = E[u_h . x_q] / D,   A_hk = E[u_h . u_k] / D + s^2 E[p_h . p_k],

for x ~ N(0, I); a pair of heads (omega, -omega) with mu of opposite signs is, as omega goes to zero, one step of
gradient descent on centered examples ("debiased").

Source: He, Pan, Chen, Yang, 2025, "In-Context Linear Regression Demystified", ICML 2025, arXiv 2503.12734.
Deviation: risks are of the noise-free label; the paper's losses are larger by s^2. The paper's formulas are limits of
large D; the averages over sampled inputs here (`moments`), and the debiased step's optimum, are own derivations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from attnjax.dynamics.linear_attention_theory import Task, best_product, minimal_loss


class Moments(NamedTuple):
    """Coefficients of the risk as a quadratic in mu; see the module's docstring."""

    c: Float[Array, " H"]
    a: Float[Array, "H H"]


def approximate_moments(
    omega: Float[Array, " H"], *, dimension: int, length: int, noise: float | Float[Array, ""]
) -> Moments:
    """The paper's coefficients, for large dimension.

        c = omega,   A = omega omega^T + (1 + s^2) / L exp(D omega omega^T)   (entrywise)

    Args:
        omega: Strength of each head's KQ circuit.
        dimension: D.
        length: L, examples in a prompt.
        noise: s, standard deviation of the label noise.

    Returns:
        The coefficients.

    Example:
        >>> one_head = approximate_moments(jnp.array([5**-0.5]), dimension=5, length=40, noise=0.1**0.5)
        >>> print(f"{risk(best_mu(one_head), one_head) + 0.1:.4f}")
        0.3721

    Source: the authors' code (src/funcs.py, TFEst.approx_loss), arXiv 2503.12734.
    """
    outer = omega[:, None] * omega[None]
    return Moments(omega, outer + (1 + noise**2) / length * jnp.exp(dimension * outer))


def moments(
    key: Key[Array, ""],
    omega: Float[Array, " H"],
    *,
    dimension: int,
    length: int,
    noise: float | Float[Array, ""],
    samples: int = 16384,
    chunk: int = 1024,
) -> Moments:
    """The coefficients at this dimension and length, averaged over sampled inputs only.

    The same key gives the same inputs whatever omega is, so that the result is smooth in omega.

    Args:
        key: Random key.
        omega: Strength of each head's KQ circuit.
        dimension: D.
        length: L.
        noise: s.
        samples: Prompts, rounded up to a multiple of `chunk`.
        chunk: Prompts in memory at a time.

    Returns:
        The coefficients; their relative error is near 1 / sqrt(samples).

    Example:
        >>> at = dict(dimension=5, length=40, noise=0.1**0.5, samples=4096)
        >>> one_head = moments(jax.random.key(0), jnp.array([0.52]), **at)
        >>> print(f"{risk(best_mu(one_head), one_head) + 0.1:.1f}")
        0.4

    Source: own derivation.
    """

    def of_chunk(key):
        x = jax.random.normal(key, (chunk, length + 1, dimension), omega.dtype)
        inputs, query = x[:, :-1], x[:, -1]
        scores = jnp.einsum("bid,bd->bi", inputs, query)
        p = jax.nn.softmax(omega[None, :, None] * scores[:, None], axis=-1)
        u = jnp.einsum("bhi,bid->bhd", p, inputs)
        c = jnp.einsum("bhd,bd->bh", u, query) / dimension
        a = jnp.einsum("bhd,bkd->bhk", u, u) / dimension + noise**2 * jnp.einsum("bhi,bki->bhk", p, p)
        return Moments(c.mean(0), a.mean(0))

    found = jax.lax.map(of_chunk, jax.random.split(key, -(-samples // chunk)))
    return jax.tree.map(lambda part: part.mean(0), found)


def risk(mu: Float[Array, " H"], of: Moments) -> Float[Array, ""]:
    """Expected squared error of the noise-free label, 1 - 2 mu^T c + mu^T A mu.

    Args:
        mu: What each head's average label counts.
        of: Coefficients.

    Returns:
        The risk.

    Example:
        >>> print(risk(jnp.zeros(1), Moments(jnp.ones(1), jnp.ones((1, 1)))))
        1.0

    Source: the authors' code (src/funcs.py, TFEst.approx_loss), arXiv 2503.12734, less the noise on the query's label.
    """
    return 1 - 2 * mu @ of.c + mu @ of.a @ mu


def best_mu(of: Moments) -> Float[Array, " H"]:
    """The mu of least risk, A^{-1} c.

    Args:
        of: Coefficients.

    Returns:
        mu.

    Example:
        >>> print(best_mu(Moments(jnp.array([2.0]), jnp.array([[4.0]]))))
        [0.5]

    Source: the authors' code (src/funcs.py, TFEst.calculate_optimal_mu), arXiv 2503.12734.
    """
    return jnp.linalg.solve(of.a, of.c)


def debiased(task: Task) -> Task:
    """The task whose plain gradient descent is the debiased one of a given task: one example fewer.

    Sums over L centered Gaussian examples are distributed as sums over L - 1 that are not.

    Args:
        task: Distribution of prompts.

    Returns:
        The task with L - 1 examples; `linear_attention_theory` has its least risk.

    Raises:
        ValueError: Fewer than two examples.

    Example:
        >>> print(debiased(Task(jnp.eye(5), length=40)).length)
        39

    Source: own derivation (Cochran's theorem).
    """
    if task.length < 2:
        raise ValueError(f"length must be at least 2, got {task.length}")
    return task._replace(length=task.length - 1)


def debiased_step(task: Task) -> Float[Array, "D D"]:
    """The best preconditioner of y_hat = (1/L) sum_i (y_i - mean y) (x_i - mean x)^T G x_q.

    Args:
        task: Distribution of prompts, with L examples.

    Returns:
        G.

    Example:
        >>> step = debiased_step(Task(jnp.eye(5), length=40, prior=jnp.eye(5) / 5, noise=0.1**0.5))
        >>> print(f"{step[0, 0]:.3f}")
        0.879

    Source: own derivation; for large D the paper's 1 / (1 + (1 + s^2) D / L), arXiv 2503.12734.
    """
    return best_product(debiased(task)) * task.length / (task.length - 1)


def debiased_risk(task: Task) -> Float[Array, ""]:
    """The least risk of one debiased step, which a pair of heads approaches as omega goes to zero.

    Args:
        task: Distribution of prompts, with L examples.

    Returns:
        Expected squared error of the noise-free label.

    Example:
        >>> risk = debiased_risk(Task(jnp.eye(5), length=40, prior=jnp.eye(5) / 5, noise=0.1**0.5))
        >>> print(f"{risk + 0.1:.4f}")
        0.2429

    Source: own derivation.
    """
    return 2 * minimal_loss(debiased(task))


def ridge_risk(key: Key[Array, ""], task: Task, *, samples: int = 16384, chunk: int = 1024) -> Float[Array, ""]:
    """The least risk of any predictor, that of the posterior mean: E tr(S C), C = (X^T X / s^2 + P^{-1})^{-1}.

    Args:
        key: Random key.
        task: Distribution of prompts; the noise must be positive.
        samples: Prompts, rounded up to a multiple of `chunk`.
        chunk: Prompts in memory at a time.

    Returns:
        Expected squared error of the noise-free label.

    Example:
        >>> risk = ridge_risk(jax.random.key(0), Task(jnp.eye(5), length=40, prior=jnp.eye(5) / 5, noise=0.1**0.5))
        >>> print(f"{risk + 0.1:.3f}")
        0.114

    Source: the posterior mean is ridge regression with penalty s^2 P^{-1}, as in He et al., 2025, arXiv 2503.12734.
    """
    s = task.covariance
    precision = jnp.linalg.inv(jnp.eye(len(s), dtype=s.dtype) if task.prior is None else task.prior)
    root = jnp.linalg.cholesky(s)

    def of_chunk(key):
        x = jax.random.normal(key, (chunk, int(task.length), len(s)), s.dtype) @ root.T
        posterior = jnp.linalg.inv(jnp.einsum("bid,bie->bde", x, x) / task.noise**2 + precision[None])
        return jnp.einsum("de,bed->b", s, posterior).mean()

    return jax.lax.map(of_chunk, jax.random.split(key, -(-samples // chunk))).mean()


class Rates(NamedTuple):
    """How the risk of K labels depends on the rates a_kd of a debiased gradient step, one for each label and input.

        R_k = power_k + sum_d (curvature_kd a_kd^2 - 2 gain_kd a_kd)

    Attributes:
        power: Risk of predicting nothing.
        gain: E[w_kd g_kd], g being the debiased gradient.
        curvature: E[g_kd^2].
    """

    power: Float[Array, " K"]
    gain: Float[Array, "K D"]
    curvature: Float[Array, "K D"]


def rates(priors: Float[Array, "K D"], *, length: int, noise: float | Float[Array, ""]) -> Rates:
    """The coefficients for prompts of `attnjax.tasks.several_regressions`.

        y_hat_k = sum_d a_kd g_kd x_qd,   g_kd = (1/L) sum_i (y_ik - mean y_k) (x_id - mean x_d),
        gain = (n / L) v,   curvature = (n / L^2) ((n + 1) v + sum_d v + s^2),   n = L - 1, v = priors

    Args:
        priors: Variances of the task vectors' entries.
        length: L, examples in a prompt.
        noise: s, standard deviation of the label noise.

    Returns:
        The coefficients.

    Raises:
        ValueError: Fewer than two examples.

    Example:
        >>> of = rates(jnp.ones((1, 5)) / 5, length=40, noise=0.1**0.5)
        >>> best = of.gain / of.curvature
        >>> print(f"{best[0, 0]:.3f} {rates_risk(best, of)[0] + 0.1:.4f}")
        0.879 0.2429

    Source: own derivation (second moments of Wishart matrices).
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, got {length}")
    n, power = length - 1, priors.sum(axis=1)
    curvature = ((n + 1) * priors + power[:, None] + noise**2) * n / length**2
    return Rates(power, priors * n / length, curvature)


def rates_risk(a: Float[Array, "K D"], of: Rates) -> Float[Array, " K"]:
    """Expected squared error of each noise-free label.

    Args:
        a: Rates.
        of: Coefficients.

    Returns:
        The risks.

    Example:
        >>> print(rates_risk(jnp.zeros((1, 2)), rates(jnp.ones((1, 2)), length=9, noise=0.0)))
        [2.]
    """
    return of.power + jnp.sum(of.curvature * a**2 - 2 * of.gain * a, axis=1)


def best_rates(of: Rates, heads: int, *, rounds: int = 500) -> Float[Array, "K D"]:
    """The rates of least total risk that H weak heads can take.

    A head of strengths omega_hd reads label k with mu_hk. For weak heads a_kd = sum_h mu_hk omega_hd, and the labels'
    means drop out only if sum_h mu_hk = 0 for every label: any matrix of rank at most H - 1, and no other. With
    H > min(K, D) that is no constraint and each label has its own best rates; with fewer, heads serve several labels.

    The least of sum curvature (a - gain / curvature)^2 over matrices of that rank, by alternating least squares from
    the leading singular vectors: exact where the rank is no constraint, else a local minimum.

    Args:
        of: Coefficients.
        heads: H, at least 2.
        rounds: Of alternating least squares.

    Returns:
        The rates.

    Raises:
        ValueError: Fewer than two heads.

    Example:
        >>> of = rates(jnp.array([[1.0, 0.0], [0.0, 1.0]]), length=50, noise=0.1)
        >>> [round(float(rates_risk(best_rates(of, heads), of).sum()), 2) for heads in (2, 3)]
        [1.04, 0.08]

    Source: own derivation; that heads are shared where there are too few is observed in He et al., 2025,
    arXiv 2503.12734 [superposition].
    """
    if heads < 2:
        raise ValueError(f"one head cannot take a debiased step: heads must be at least 2, got {heads}")
    target = of.gain / of.curvature
    rank = min(heads - 1, *target.shape)
    if rank == min(target.shape):
        return target
    _, _, directions = jnp.linalg.svd(target, full_matrices=False)
    ridge = 1e-12 * jnp.eye(rank, dtype=target.dtype)

    def fitted(weights, values, basis):  # least squares of each row of values, weighted, in a basis [rank, .]
        normal = jnp.einsum("kd,rd,sd->krs", weights, basis, basis) + ridge[None]
        return jnp.linalg.solve(normal, jnp.einsum("kd,kd,rd->kr", weights, values, basis)[..., None])[..., 0]

    def one(_, omega):
        mu = fitted(of.curvature, target, omega)
        return fitted(of.curvature.T, target.T, mu.T).T

    omega = jax.lax.fori_loop(0, rounds, one, directions[:rank])
    return fitted(of.curvature, target, omega) @ omega
