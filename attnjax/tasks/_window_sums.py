"""Sums over a moving window: numbers, a separator, then the sums, to be written one by one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key


def window_sums(
    key: Key[Array, ""], *, batch: int, length: int, window: int = 2, largest: int = 16, modulus: int = 17
) -> Int[Array, "B T"]:
    """Sequences x_1 .. x_L, SEP, y_1 .. y_L.

        x_i uniform on 1 .. largest,   y_i = x_i for i < window,   y_i = (x_{i-window+1} + .. + x_i) mod modulus after

    Args:
        key: Random key.
        batch: B.
        length: L; T = 2 L + 1.
        window: Terms in a sum, 1 .. L.
        largest: Of the numbers.
        modulus: Above `largest`; it is also the separator's token, so that the vocabulary is modulus + 1.

    Returns:
        Tokens.

    Raises:
        ValueError: A size below one, a window longer than the sequence, or a modulus not above `largest`.

    Example:
        >>> tokens = window_sums(jax.random.key(0), batch=1, length=4)[0]
        >>> x, y = tokens[:4], tokens[5:]
        >>> bool(tokens[4] == 17), bool((y[1:] == (x[1:] + x[:-1]) % 17).all()), bool(y[0] == x[0])
        (True, True, True)

    Source: Gopalani and Hu, 2025, "What Happens During the Loss Plateau? Understanding Abrupt Learning in
    Transformers", NeurIPS 2025, arXiv 2506.13688, and the authors' code, pulkitgopalani/tf-loss-plateau (src/data.py).
    """
    for name, size in (("batch", batch), ("length", length), ("window", window), ("largest", largest)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if window > length:
        raise ValueError(f"window must be at most length = {length}, got {window}")
    if modulus <= largest:
        raise ValueError(f"modulus must be larger than largest = {largest}, got {modulus}")
    x = jax.random.randint(key, (batch, length), 1, largest + 1)
    shifted = [jnp.pad(x, ((0, 0), (back, 0)))[:, :length] for back in range(window)]
    y = jnp.where((jnp.arange(length) < window - 1)[None], x, sum(shifted) % modulus)
    return jnp.concatenate([x, jnp.full((batch, 1), modulus), y], axis=1)
