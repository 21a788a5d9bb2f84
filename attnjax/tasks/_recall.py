"""Sequences of tokens of which some have to be remembered: recall by key, copying, a bit that is written and read."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

IGNORED = -100
"""The target where nothing is asked."""


class Recall(NamedTuple):
    """Sequences and what is asked of them.

    Attributes:
        tokens: ``[B, T]``.
        targets: ``[B, T]``: the token to predict at each position, or ``IGNORED``.
    """

    tokens: Int[Array, "B T"]
    targets: Int[Array, "B T"]


def slot_probabilities(slots: int, power: float = 0.01) -> Float[Array, " S"]:
    """How likely multi-query recall asks in each slot first, ``p_i ~ i^(power - 1)``.

    Args:
        slots: at least 1.
        power: a small one asks soon after the pairs were seen.

    Example:
        >>> print(slot_probabilities(28)[0].round(4))
        0.2511

    Source: Arora et al., 2023, Zoology, arXiv 2312.04927, and the authors' code.
    """
    logits = (power - 1) * jnp.log(jnp.arange(1, slots + 1, dtype=jnp.float32))
    return jax.nn.softmax(logits)


def multi_query_recall(
    key: Key[Array, ""],
    *,
    batch: int,
    length: int,
    pairs: int,
    vocabulary: int,
    power: float = 0.01,
    passes: int = 1,
    random_fillers: bool = True,
) -> Recall:
    """Multi-query associative recall (MQAR): pairs of a key and a value, then the keys again, each to be answered.

    Keys are drawn without replacement from tokens 1 to V/2 - 1, values from V/2 to V - 1, the pairs written one after
    the other, ``passes`` times. Of the slots of two tokens that follow, each pair takes one, drawn by
    ``slot_probabilities`` without replacement, and puts its key there; the target there is its value.

    Args:
        key: Random key.
        batch: B.
        length: T, even; at least ``2 pairs (passes + 1)``.
        pairs: how many there are.
        vocabulary: V, greater than T.
        power: see ``slot_probabilities``.
        passes: how often the pairs are shown.
        random_fillers: whether all other tokens are drawn uniformly; otherwise they are 0.

    Returns:
        Tokens and targets.

    Raises:
        ValueError: the sizes do not fit.

    Example:
        >>> task = multi_query_recall(jax.random.key(0), batch=1, length=16, pairs=2, vocabulary=32)
        >>> print(int((task.targets != IGNORED).sum()), task.tokens.shape)
        2 (1, 16)

    Source: Arora et al., 2023, Zoology, arXiv 2312.04927, and the authors' code (their figure 2 has fillers of 0).
    Deviation: random fillers come from the same key, where theirs come from a global generator. Slots are drawn by
    Gumbel noise, which has the same law, order of the pairs included.
    """
    context = 2 * pairs * passes
    if length % 2 or pairs < 1 or passes < 1 or context + 2 * pairs > length:
        raise ValueError(
            f"length={length}: want an even number of at least 2 * pairs * (passes + 1) = {context + 2 * pairs}"
        )
    if vocabulary <= length or vocabulary // 2 - 1 < pairs:
        raise ValueError(
            f"vocabulary={vocabulary}: want more than length={length} tokens, and pairs={pairs} keys in half"
        )
    half = vocabulary // 2
    of_keys, of_values, of_slots, of_fillers = jax.random.split(key, 4)
    keys = 1 + _distinct(of_keys, batch, half - 1, pairs)
    values = half + _distinct(of_values, batch, vocabulary - half, pairs)
    shown = jnp.tile(jnp.stack([keys, values], -1).reshape(batch, -1), (1, passes))
    slots = (length - context) // 2
    noise = jax.random.gumbel(of_slots, (batch, slots))
    _, places = jax.lax.top_k(jnp.log(slot_probabilities(slots, power))[None] + noise, pairs)
    rows, places = jnp.arange(batch)[:, None], context + 2 * places
    tokens = jnp.zeros((batch, length), jnp.int32).at[:, :context].set(shown).at[rows, places].set(keys)
    targets = jnp.full((batch, length), IGNORED, jnp.int32).at[rows, places].set(values)
    if random_fillers:
        tokens = jnp.where(tokens == 0, jax.random.randint(of_fillers, tokens.shape, 0, vocabulary), tokens)
    return Recall(tokens, targets)


def _distinct(key: Array, batch: int, choices: int, count: int) -> Array:
    """Numbers below ``choices``, all different in a row."""
    return jax.lax.top_k(jax.random.uniform(key, (batch, choices)), count)[1]


BLANK, MARKER = 0, 1


def copying(
    key: Key[Array, ""], *, batch: int, symbols: int, blanks: int, vocabulary: int, selective: bool = False
) -> Recall:
    """Symbols, blanks, and a marker, from which on the symbols are to be said again in their order.

    Token 0 is the blank, 1 the marker, 2 to V + 1 are symbols. With ``selective`` the symbols stand at random places
    among the blanks, so that a fixed delay does not find them.

    Args:
        key: Random key.
        batch: B.
        symbols: how many are to be copied.
        blanks: how many there are before the marker.
        vocabulary: V, different symbols.
        selective: see above.

    Returns:
        Tokens and targets ``[B, 2 symbols + blanks]``.

    Raises:
        ValueError: a size is too small.

    Example:
        >>> task = copying(jax.random.key(0), batch=1, symbols=2, blanks=3, vocabulary=8)
        >>> print(task.tokens.shape, int(task.tokens[0, 5]), bool((task.targets[0, 5:] == task.tokens[0, :2]).all()))
        (1, 7) 1 True

    Source: Arjovsky et al., 2016, Unitary Evolution Recurrent Neural Networks, arXiv 1511.06464; selective: Gu and Dao,
    2023, Mamba, arXiv 2312.00752.
    """
    if min(batch, symbols, vocabulary) < 1 or blanks < 0:
        raise ValueError(
            f"batch={batch}, symbols={symbols}, vocabulary={vocabulary}, blanks={blanks}: want positive sizes"
        )
    of_symbols, of_places = jax.random.split(key)
    drawn = jax.random.randint(of_symbols, (batch, symbols), 2, vocabulary + 2)
    places = jnp.broadcast_to(jnp.arange(symbols), (batch, symbols))
    if selective:
        places = jnp.sort(_distinct(of_places, batch, symbols + blanks, symbols), axis=-1)
    rows, begin, length = jnp.arange(batch)[:, None], symbols + blanks, 2 * symbols + blanks
    tokens = jnp.full((batch, length), BLANK, jnp.int32).at[rows, places].set(drawn).at[:, begin].set(MARKER)
    targets = jnp.full((batch, length), IGNORED, jnp.int32).at[:, begin:].set(drawn)
    return Recall(tokens, targets)


WRITE, READ, IGNORE = 0, 1, 2


def flip_flop(key: Key[Array, ""], *, batch: int, length: int, ignore: float = 0.8) -> Recall:
    """Pairs of an instruction and a bit: after a read the bit is the one last written; others are random.

    Tokens 0, 1 and 2 are write, read and ignore, 3 and 4 the bits. The first instruction writes and the last reads; the
    others ignore with a probability and otherwise write or read, as likely. The target stands at the read.

    Args:
        key: Random key.
        batch: B.
        length: T, even, at least 4.
        ignore: probability.

    Returns:
        Tokens and targets.

    Raises:
        ValueError: a size or the probability does not fit.

    Example:
        >>> task = flip_flop(jax.random.key(0), batch=1, length=6)
        >>> print(int(task.tokens[0, 0]), int(task.tokens[0, 4]), bool(task.targets[0, 4] == task.tokens[0, 5]))
        0 1 True

    Source: Liu et al., 2023, Exposing Attention Glitches with Flip-Flop Language Modeling, arXiv 2306.00946.
    """
    if length % 2 or length < 4 or batch < 1:
        raise ValueError(f"batch={batch}, length={length}: want at least one sequence, of an even length of at least 4")
    if not 0 <= ignore <= 1:
        raise ValueError(f"ignore={ignore}: want a probability")
    of_instructions, of_bits = jax.random.split(key)
    steps = length // 2
    chances = jnp.array([(1 - ignore) / 2, (1 - ignore) / 2, ignore])
    instructions = jax.random.choice(of_instructions, 3, (batch, steps), p=chances)
    instructions = instructions.at[:, 0].set(WRITE).at[:, -1].set(READ)
    bits = jax.random.randint(of_bits, (batch, steps), 3, 5)
    written = jax.lax.cummax(jnp.where(instructions == WRITE, jnp.arange(steps)[None], 0), axis=1)
    bits = jnp.where(instructions == READ, jnp.take_along_axis(bits, written, 1), bits)
    tokens = jnp.stack([instructions, bits], -1).reshape(batch, length)
    asked = jnp.where(instructions == READ, bits, IGNORED)
    targets = jnp.stack([asked, jnp.full_like(asked, IGNORED)], -1).reshape(batch, length)
    return Recall(tokens.astype(jnp.int32), targets.astype(jnp.int32))
