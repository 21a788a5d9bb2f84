"""Sequences of tokens, read by Grain: every host reads what its devices hold, and any step can be gone back to."""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from attnjax import parallel
from experiments.framework.context import UsageError
from experiments.language_model import corpus
from experiments.pod.config import Data


class Batch(NamedTuple):
    """Sequences in a placement's order.

    Attributes:
        tokens: `[B, T]` int32.
        targets: The token that follows each `[B, T]`.
        weights: 1, and 0 where the next token is another document's `[B, T]` float32.
        segments: The document of each token, counted from the start of its sequence `[B, T]` int32.
    """

    tokens: Any
    targets: Any
    weights: Any
    segments: Any


class Sequences:
    """Token numbers cut into equal sequences: a random-access source for Grain."""

    def __init__(self, tokens: np.ndarray, data: Data, placement: parallel.Placement, vocab: int):
        self.tokens, self.data, self.order, self.vocab = tokens, data, placement(data.length), vocab
        if len(self) < 1:
            raise UsageError(f"{len(tokens)} tokens of data: want more than a sequence of {data.length}")

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.data.length

    def __getitem__(self, index: Any) -> Batch:
        start = int(index) * self.data.length
        window = np.asarray(self.tokens[start : start + self.data.length + 1], np.int32)
        if window.min() < 0 or window.max() >= self.vocab:
            raise UsageError(
                f"sequence {int(index)}: has tokens from {window.min()} to {window.max()}, want 0 to {self.vocab - 1} "
                f"(model.vocab={self.vocab})"
            )
        tokens, targets = window[:-1], window[1:]
        ends = np.zeros(len(tokens), np.int32)
        if self.data.document_end is not None:
            ends = (tokens == self.data.document_end).astype(np.int32)
        found = Batch(tokens, targets, (1 - ends).astype(np.float32), np.cumsum(ends, dtype=np.int32) - ends)
        return Batch(*(x[self.order] for x in found))

    def __repr__(self) -> str:
        return f"Sequences({len(self)} of {self.data.length})"


def load(data: Data) -> np.ndarray:
    """The token numbers; a file of them stays on disk."""
    if data.path is None:
        return corpus.load((), held_out_bytes=100_000).train
    try:
        tokens = np.load(data.path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UsageError(f"data.path={data.path}: cannot be read as .npy: {error}") from error
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise UsageError(f"{data.path}: got {tokens.dtype}{list(tokens.shape)}, want one axis of integers")
    return tokens


def fingerprint(tokens: np.ndarray) -> str:
    """What a file of tokens is told from others by: its length, and 64 pieces of it."""
    starts = np.linspace(0, max(len(tokens) - 1024, 0), 64).astype(int)
    pieces = b"".join(np.asarray(tokens[i : i + 1024], np.int64).tobytes() for i in starts)
    return f"{len(tokens)} tokens, {hashlib.sha256(pieces).hexdigest()[:8]}"


def share(sharding: jax.sharding.Sharding, shape: tuple[int, int]) -> tuple[int, int]:
    """Which of how many equal parts of a batch this process's devices hold.

    Processes whose devices hold parts of the same sequences read the same ones.
    """
    held = sharding.addressable_devices_indices_map(shape).values()
    rows = [index[0].indices(shape[0])[:2] for index in held if index is not None]
    first, last = min(start for start, _ in rows), max(stop for _, stop in rows)
    if shape[0] % (last - first) or first % (last - first):
        raise UsageError(f"a process holds sequences {first} to {last} of {shape[0]}, which is no equal part")
    return first // (last - first), shape[0] // (last - first)


def batches(data: Data, sequences: Sequences, sharding: jax.sharding.NamedSharding, first: int) -> Iterator[Batch]:
    """The batches of steps `first`, `first + 1`, ...: global arrays.

    Which sequences a step reads depends on `data.seed` and the step alone, not on the number of hosts: to resume, say
    the step. Every epoch is shuffled anew.
    """
    shape = (data.batch, data.length)
    part, parts = share(sharding, shape)
    order = grain.MapDataset.source(sequences).seed(data.seed).shuffle().repeat(None)
    stack = lambda rows: Batch(*map(np.stack, zip(*rows, strict=True)))
    order = order[part::parts].batch(data.batch // parts, batch_fn=stack)
    ahead = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=2 * data.threads)
    reader = iter(order.to_iter_dataset(ahead))
    reader.set_state({"next_index": first})
    begin = part * (data.batch // parts)

    def spread(own: np.ndarray) -> jax.Array:
        def piece(index: Any) -> np.ndarray:
            rows, columns = index
            start, stop, _ = rows.indices(shape[0])
            return own[start - begin : stop - begin, columns]

        return jax.make_array_from_callback(shape, sharding, piece)

    for batch in reader:
        yield Batch(*map(spread, batch))
