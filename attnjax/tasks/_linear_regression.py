"""In-context linear regression: prompts of labeled examples from a task drawn afresh for each prompt."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from attnjax._compat import is_traced


class Prompts(NamedTuple):
    """A batch of prompts.

    Attributes:
        x: Inputs of the examples.
        y: Their labels; several each, `[B, N, K]`, from `several_regressions`.
        x_query: Input to predict for.
        y_query: Its noise-free label, or labels `[B, K]`.
    """

    x: Float[Array, "B N D"]
    y: Float[Array, "B N *K"]
    x_query: Float[Array, "B D"]
    y_query: Float[Array, "B *K"]


def linear_regression(
    key: Key[Array, ""],
    *,
    batch: int,
    length: int,
    covariance: Float[Array, "D D"] | Float[Array, " D"],
    prior: Float[Array, "D D"] | Float[Array, " D"] | None = None,
    noise: float | Float[Array, ""] = 0.0,
    inputs: str = "gaussian",
    tail: float | Float[Array, ""] = 1.0,
    query_covariance: Float[Array, "D D"] | Float[Array, " D"] | None = None,
) -> Prompts:
    """Draw prompts of noisy linear regression tasks.

        w ~ N(0, prior);   x_i = covariance^{1/2} u_i;   y_i = <w, x_i> + noise * N(0, 1);   y_q = <w, x_q>

    The u_i and u_q are independent, with unit variance in every direction:

        gaussian    N(0, I)
        uniform     independent entries on (-sqrt 3, sqrt 3)
        sphere      sqrt(D) times a uniform direction
        gamma       the same times sqrt(g), g ~ Gamma(tail, 1 / tail): heavy-tailed where tail is small

    Args:
        key: Random key; the prompts are a function of it.
        batch: Number of prompts B, each with a task of its own.
        length: Number of labeled examples N.
        covariance: Of the inputs: a positive definite matrix, or its spectrum when the axes are the eigenvectors.
        prior: Covariance of the task vector, in the same two forms; None is the identity.
        noise: Standard deviation of the label noise, in the unit of y. The query's label has none.
        inputs: "gaussian", "uniform", "sphere" or "gamma".
        tail: Shape of the gamma law.
        query_covariance: Of the query alone, in the same two forms; None is `covariance`.

    Returns:
        Prompts in the dtype of `covariance`.

    Raises:
        ValueError: A size below one, a covariance that is neither a vector nor square, a prior of another dimension, or
            an unknown law of inputs; also negative noise, and a matrix that is not symmetric and positive definite or a
            spectrum with a negative entry, where they are not traced.

    Example:
        >>> prompts = linear_regression(jax.random.key(0), batch=2, length=7, covariance=jnp.ones(3))
        >>> prompts.x.shape, prompts.y.shape
        ((2, 7, 3), (2, 7))

    Source: Zhang, Frei, Bartlett, 2024, "Trained Transformers Learn Linear Models In-Context", Section 3.1,
    arXiv 2306.09927; uniform inputs: von Oswald et al., 2023, arXiv 2212.07677; sphere and gamma: Ahn et al., 2023,
    arXiv 2310.01082.
    Deviation: the first paper has no label noise and the identity as prior; noise = 0 and prior = None give its
    prompts. The others scale their inputs otherwise, which `covariance` does here.
    """
    for name, size in (("batch", batch), ("length", length)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    _require_noise(noise)
    covariance = jnp.asarray(covariance)
    d = covariance.shape[-1] if covariance.ndim else 0
    input_root = _root(covariance, "covariance", d)
    task_root = _root(jnp.ones(d, covariance.dtype) if prior is None else jnp.asarray(prior), "prior", d)
    dtype, vectors = covariance.dtype, (length + 2) * d
    white = jax.random.normal(key, (batch, vectors + length), dtype)  # one draw is twice as fast as one for each part
    directions = white[:, :vectors].reshape(batch, length + 2, d)
    if inputs != "gaussian":
        directions = directions.at[:, :-1].set(_standardized(key, directions[:, :-1], inputs, tail))
    query_root = input_root if query_covariance is None else _root(query_covariance, "query_covariance", d)
    parts = zip((slice(-2), -2, -1), (input_root, query_root, task_root), strict=True)
    x, x_query, w = (_times(directions[:, part], root) for part, root in parts)
    errors = jnp.asarray(noise, dtype) * white[:, vectors:]
    y = jnp.sum(x * w[:, None], axis=-1) + errors  # products and sums: XLA's CPU matrix products are slow at such sizes
    return Prompts(x, y, x_query, jnp.sum(x_query * w, axis=-1))


def _standardized(key: Array, white: Array, inputs: str, tail: float | Array) -> Array:
    """Inputs of another law than the Gaussian one, from Gaussian ones where they serve."""
    d = white.shape[-1]
    if inputs == "uniform":
        return 3**0.5 * jax.lax.erf(white / 2**0.5)
    on_sphere = white * (d**0.5 / jnp.linalg.norm(white, axis=-1, keepdims=True))
    if inputs == "sphere":
        return on_sphere
    if inputs == "gamma":
        squared_radii = jax.random.gamma(jax.random.fold_in(key, 1), tail, white.shape[:-1], white.dtype) / tail
        return on_sphere * jnp.sqrt(squared_radii)[..., None]
    raise ValueError(f"inputs must be gaussian, uniform, sphere or gamma, got {inputs!r}")


def several_regressions(
    key: Key[Array, ""],
    *,
    batch: int,
    length: int,
    priors: Float[Array, "K D"],
    noise: float | Float[Array, ""] = 0.0,
) -> Prompts:
    """Draw prompts whose examples carry the labels of K regression tasks on the same input.

        w_k ~ N(0, diag(priors_k));   x_i ~ N(0, I);   y_ik = <w_k, x_i> + noise * N(0, 1);   y_qk = <w_k, x_q>

    Args:
        key: Random key; the prompts are a function of it.
        batch: Number of prompts B.
        length: Number of labeled examples N.
        priors: Variances of the entries of each task vector; zeros where a task does not depend on an input.
        noise: Standard deviation of the label noise. The query's labels have none.

    Returns:
        Prompts with K labels.

    Raises:
        ValueError: A size below one; negative noise, where it is not traced.

    Example:
        >>> priors = jnp.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
        >>> several_regressions(jax.random.key(0), batch=2, length=7, priors=priors).y.shape
        (2, 7, 2)

    Source: the authors' code of He et al., 2025 (icl_linear_multitask.ipynb), arXiv 2503.12734.
    Deviation: there the variances are one; here they are arguments.
    """
    for name, size in (
        ("batch", batch),
        ("length", length),
        ("tasks", priors.shape[0]),
        ("dimension", priors.shape[1]),
    ):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    _require_noise(noise)
    tasks, d = priors.shape
    input_key, task_key, noise_key = jax.random.split(key, 3)
    x = jax.random.normal(input_key, (batch, length + 1, d), priors.dtype)
    w = jax.random.normal(task_key, (batch, tasks, d), priors.dtype) * jnp.sqrt(priors)[None]
    y = jnp.sum(x[:, :, None] * w[:, None], axis=-1)  # as above: not a matrix product
    errors = jnp.asarray(noise, priors.dtype) * jax.random.normal(noise_key, (batch, length, tasks), priors.dtype)
    return Prompts(x[:, :-1], y[:, :-1] + errors, x[:, -1], y[:, -1])


def prompt_tokens(prompts: Prompts) -> Float[Array, "B T E"]:
    """Embed prompts as tokens: (x_i, y_i) for the examples, then (x_q, 0) for the query.

    Args:
        prompts: What `linear_regression` or `several_regressions` returns.

    Returns:
        T = N + 1 tokens of size E = D + 1, or D + K for K labels, the query last.

    Example:
        >>> prompts = linear_regression(jax.random.key(0), batch=2, length=7, covariance=jnp.ones(3))
        >>> prompt_tokens(prompts).shape
        (2, 8, 4)

    Source: Zhang, Frei, Bartlett, 2024, Section 3.2 [embedding matrix E], arXiv 2306.09927.
    Deviation: tokens are rows here and columns in the paper.
    """
    labels = prompts.y.reshape(*prompts.x.shape[:2], -1)
    examples = jnp.concatenate([prompts.x, labels], axis=-1)
    query = jnp.pad(prompts.x_query, ((0, 0), (0, labels.shape[-1])))
    return jnp.concatenate([examples, query[:, None]], axis=1)


def geometric_spectrum(dimension: int, condition_number: float) -> Float[Array, " D"]:
    """Eigenvalues in geometric progression whose largest is `condition_number` times the smallest, with mean one.

    Args:
        dimension: Number of eigenvalues D.
        condition_number: Largest over smallest, at least 1.

    Returns:
        The eigenvalues, descending; they sum to D.

    Raises:
        ValueError: `dimension` or `condition_number` below 1.

    Example:
        >>> spectrum = geometric_spectrum(3, 4.0)
        >>> print((spectrum / spectrum[-1]).round(3))
        [4. 2. 1.]
    """
    if dimension < 1:
        raise ValueError(f"dimension must be at least 1, got {dimension}")
    if not condition_number >= 1:
        raise ValueError(f"condition_number must be at least 1 (1 is the identity), got {condition_number}")
    spectrum = jnp.geomspace(condition_number, 1.0, dimension)
    return spectrum * dimension / spectrum.sum()


def random_rotation(key: Key[Array, ""], dimension: int) -> Float[Array, "D D"]:
    """An orthogonal matrix from the Haar distribution.

    Args:
        key: Random key.
        dimension: D.

    Returns:
        Q with Q Q^T = I.

    Example:
        >>> q = random_rotation(jax.random.key(0), 3)
        >>> bool(jnp.allclose(q @ q.T, jnp.eye(3), atol=1e-5))
        True
    """
    return jax.random.orthogonal(key, dimension)


def rotated(spectrum: Float[Array, " D"], rotation: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """The covariance Q diag(spectrum) Q^T.

    Args:
        spectrum: Eigenvalues.
        rotation: Q, whose columns are the eigenvectors.

    Returns:
        The symmetric matrix.

    Example:
        >>> print(rotated(jnp.array([2.0, 1.0]), jnp.eye(2)))
        [[2. 0.]
         [0. 1.]]
    """
    return (rotation * spectrum[None]) @ rotation.T


def _root(covariance: Array, name: str, dimension: int) -> Array:
    """L with L L^T = covariance, as a vector of standard deviations for a spectrum."""
    if dimension < 1 or covariance.shape not in ((dimension,), (dimension, dimension)):
        raise ValueError(
            f"{name} must be a spectrum [D] or a matrix [D, D] with D the dimension of the inputs, "
            f"got shape {covariance.shape}"
        )
    if not is_traced(covariance):
        value = np.asarray(covariance)
        if value.ndim == 1 and not (value >= 0).all():
            raise ValueError(f"{name} must have no negative entry, got {value}")
        if value.ndim == 2 and not (np.allclose(value, value.T, 1e-4, 1e-6) and np.linalg.eigvalsh(value)[0] > 0):
            raise ValueError(f"{name} must be symmetric and positive definite, got\n{value}")
    return jnp.sqrt(covariance) if covariance.ndim == 1 else jnp.linalg.cholesky(covariance)


def _require_noise(noise: float | Array) -> None:
    if not is_traced(noise) and not (np.asarray(noise) >= 0).all():
        raise ValueError(f"noise is a standard deviation and must not be negative, got {noise}")


def _times(white: Array, root: Array) -> Array:
    if root.ndim == 1:
        return white * jnp.expand_dims(root, range(white.ndim - 1))
    return (white.reshape(-1, root.shape[0]) @ root.T).reshape(white.shape)
