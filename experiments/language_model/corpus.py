"""Bytes to learn from: real text found on this machine, split by file, and what simple models make of it."""

import gzip
import hashlib
import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.framework.context import UsageError

START = 0  # the byte that precedes every file and every context window; it does not occur in text
SMALLEST, LARGEST = 1_000, 32_000  # bytes of a file that may be held out
_SKIPPED = {  # of the standard library: other people's packages, tests, and tables that are no text
    "site-packages",
    "dist-packages",
    "lib-dynload",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
}


class Corpus(NamedTuple):
    """Text split by file.

    Attributes:
        train: `[n]` uint8: the training files in order of their names, each preceded by `START`.
        held_out: The bytes of each held-out file.
        names: Name of each held-out file.
        digest: Hash of all of the above.
        origin: One line on where the text comes from.
    """

    train: np.ndarray
    held_out: tuple[bytes, ...]
    names: tuple[str, ...]
    digest: str
    origin: str


def load(paths: Sequence[Path], *, held_out_bytes: int) -> Corpus:
    """Read the files and hold some out.

    The files are ranked by the hash of their names and held out in that order until `held_out_bytes` are reached, so
    the split depends on names and sizes alone. Of a single file the last tenth, in ten pieces, is held out.

    Args:
        paths: Files, or folders whose files are read recursively. Empty: the Python standard library's modules.
        held_out_bytes: Least size of the held-out text; at most a third of the files are held out.

    Raises:
        UsageError: A path does not exist or cannot be read, or there is too little text.
    """
    files = _read(paths) if paths else _standard_library()
    origin = (
        f"{len(files)} files of {', '.join(map(str, paths))}" if paths else f"{len(files)} modules of Python's library"
    )
    names = _held_out_names(files, held_out_bytes) if len(files) > 1 else ()
    held_out = tuple(files[name] for name in names)
    train = [content for name, content in sorted(files.items()) if name not in names]
    if len(files) == 1:
        cut = len(train[0]) * 9 // 10
        held_out = tuple(piece.tobytes() for piece in np.array_split(np.frombuffer(train[0][cut:], np.uint8), 10))
        names = tuple(f"tenth tenth, piece {i}" for i in range(10))
        train = [train[0][:cut]]
    if min(map(len, held_out), default=0) < 1 or sum(map(len, train)) < 10_000:
        raise UsageError(f"--text: got {sum(map(len, files.values()))} bytes of text, wanted at least 20 000.")
    joined = np.frombuffer(b"".join(bytes([START]) + content for content in train), np.uint8)
    digest = hashlib.sha256(joined.tobytes() + b"".join(held_out)).hexdigest()[:16]
    return Corpus(joined, held_out, names, digest, origin)


def _read(paths: Sequence[Path]) -> dict[str, bytes]:
    """Content of every non-empty file, by its name in its folder (after the path's number, if there are several)."""
    contents = {}
    try:
        for number, path in enumerate(paths):
            prefix = f"{number}/" if len(paths) > 1 else ""
            inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
            contents |= {prefix + file.relative_to(path).as_posix(): file.read_bytes() for file in inside}
            if not path.is_dir():
                contents[prefix + path.name] = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"--text: cannot read {error.filename} ({error.strerror}); name text files or folders."
        ) from error
    contents = {name: content for name, content in contents.items() if content}
    if not contents:
        raise UsageError(f"--text: {', '.join(map(str, paths))} holds no text; name text files or folders.")
    return contents


def _standard_library() -> dict[str, bytes]:
    """Content of every module of the running Python's standard library, by its path there."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {}
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in _SKIPPED)
        modules = (Path(folder, name) for name in files if name.endswith(".py"))
        found |= {path.relative_to(root).as_posix(): path.read_bytes() for path in modules}
    found = {name: content for name, content in found.items() if len(content) >= SMALLEST}
    if sum(map(len, found.values())) < 1_000_000:
        raise UsageError(f"{root} holds less than a megabyte of Python; name your own text with --text FILE ...")
    return found


def _held_out_names(files: dict[str, bytes], wanted: int) -> tuple[str, ...]:
    fitting = [name for name, content in files.items() if SMALLEST <= len(content) <= LARGEST] or list(files)
    ranked = sorted(fitting, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    ranked = ranked[: max(1, len(files) // 3)]
    sizes = np.cumsum([len(files[name]) for name in ranked])
    return tuple(ranked[: int(np.searchsorted(sizes, wanted)) + 1])


def unigram_bits(train: np.ndarray, held_out: Sequence[bytes]) -> np.ndarray:
    """Bits of each held-out file under `p(b) = (count(b) + 1) / (n + 256)`, the counts taken on the training text."""
    bits = -np.log2(_unigram(train))
    return np.array([bits[np.frombuffer(content, np.uint8)].sum() for content in held_out])


def bigram_bits(train: np.ndarray, held_out: Sequence[bytes]) -> np.ndarray:
    """Bits of each held-out file under a bigram model that backs off to the unigram,

        p(b | a) = (count(a, b) + alpha p(b)) / (count(a) + alpha),

    with counts of the training text and the alpha, of powers of two, that makes the training text most likely when
    every pair is predicted from all the others (leave-one-out). The first byte of a file follows `START`.
    """
    unigram = _unigram(train)
    pairs = np.bincount(train[:-1].astype(np.int64) * 256 + train[1:], minlength=256**2).reshape(256, 256).astype(float)
    totals = pairs.sum(axis=1, keepdims=True)

    def left_out(alpha: float) -> float:
        rest = np.log(np.maximum(pairs - 1, 0) + alpha * unigram) - np.log(np.maximum(totals - 1, 0) + alpha)
        return float((pairs * rest).sum())

    alpha = max(2.0 ** np.arange(-6, 11), key=left_out)
    bits = -np.log2((pairs + alpha * unigram) / (totals + alpha))

    def cost(content: bytes) -> float:
        after = np.frombuffer(content, np.uint8)
        before = np.concatenate([np.array([START], np.uint8), after[:-1]])
        return float(bits[before, after].sum())

    return np.array([cost(content) for content in held_out])


def _unigram(train: np.ndarray) -> np.ndarray:
    return (np.bincount(train, minlength=256) + 1) / (len(train) + 256)


def gzip_bits(held_out: Sequence[bytes]) -> np.ndarray:
    """Bits of each held-out file as part of one `gzip -9` stream of all of them, in order.

    The cost of a file is what the compressed stream grows by when the file is appended, so that the costs add up to the
    size of the whole, which flatters gzip: one header, and matches across files within its window of 32 KiB.
    """
    sizes = [8 * len(gzip.compress(b"".join(held_out[:count]), 9, mtime=0)) for count in range(1, len(held_out) + 1)]
    return np.diff(np.array(sizes, float), prepend=0.0)
