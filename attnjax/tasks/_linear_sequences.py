"""Sequences that a diagonal linear map moves, x_{t+1} = W x_t, with a map drawn afresh for each sequence."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Key

InitialLaw = Literal["gaussian", "sparse", "full-one"]


def initial_states(
    key: Key[Array, ""], law: str, *, batch: int, dimension: int, scale: float | Float[Array, ""] = 1.0
) -> Float[Array, "B D"]:
    """Draw where sequences start.

        gaussian   x_1 ~ N(0, scale^2 I)
        sparse     x_1 = +-scale e_j with j and the sign uniform
        full-one   x_1 = scale (1, ..., 1)

    Args:
        key: Random key.
        law: Which of the three.
        batch: Number of sequences B.
        dimension: D.
        scale: Size, in the unit of x.

    Returns:
        The first states.

    Raises:
        ValueError: An unknown law, or a size below one.

    Example:
        >>> print(initial_states(jax.random.key(0), "full-one", batch=1, dimension=3, scale=2.0))
        [[2. 2. 2.]]

    Source: Zheng, Huang, Wang, Wu, Zhu, Li, 2024, "On Mesa-Optimization in Autoregressively Trained Transformers",
    arXiv 2405.16845, and the authors' code (data/generate_data.py).
    """
    for name, size in (("batch", batch), ("dimension", dimension)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if law == "gaussian":
        return scale * jax.random.normal(key, (batch, dimension))
    if law == "sparse":
        where, sign = jax.random.split(key)
        place = jax.nn.one_hot(jax.random.randint(where, (batch,), 0, dimension), dimension)
        return scale * place * jax.random.rademacher(sign, (batch, 1), place.dtype)
    if law == "full-one":
        return scale * jnp.ones((batch, dimension))
    raise ValueError(f"law must be one of {', '.join(get_args(InitialLaw))}, got {law!r}")


def linear_sequences(
    key: Key[Array, ""], start: Float[Array, "B D"], *, length: int, modulus: float | Float[Array, ""] = 1.0
) -> Complex[Array, "B T D"]:
    """Follow x_{t+1} = W x_t from given states, W drawn afresh for each sequence.

        W = modulus * diag(exp(i theta_1), ..., exp(i theta_D)),   theta_j ~ U[0, 2 pi)

    Args:
        key: Random key.
        start: x_1 of each sequence.
        length: T.
        modulus: |W_jj|; at 1 the map is unitary, as the theory asks.

    Returns:
        x_1 ... x_T.

    Raises:
        ValueError: A length below one.

    Example:
        >>> x = linear_sequences(jax.random.key(0), jnp.ones((2, 3)), length=4, modulus=0.5)
        >>> print(x.shape, jnp.abs(x[0, :, 0]).round(3))
        (2, 4, 3) [1.    0.5   0.25  0.125]

    Source: Zheng et al., 2024, arXiv 2405.16845.
    Deviation: the paper has unitary maps only, and up to a change of basis that all sequences share; here the basis is
    that of the coordinates, as in the authors' code.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    phases = jax.random.uniform(key, start.shape, start.dtype, maxval=2 * jnp.pi)
    steps = jnp.arange(length)[None, :, None]
    size = jnp.asarray(modulus, start.dtype) ** steps
    return (start[:, None] * size) * jnp.exp(1j * (steps * phases[:, None]))
