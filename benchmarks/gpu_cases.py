"""The cases of `benchmarks.attention_gpu`: their sizes and arrays, and their formulas in float64 NumPy."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

Name = Literal["full", "causal", "sigmoid", "window", "segments", "grouped", "alibi", "bias", "decode"]
Kind = Literal["forward", "backward", "tangent", "forward+backward"]
NAMES: tuple[Name, ...] = get_args(Name)
KINDS: tuple[Kind, ...] = get_args(Kind)
OPERATIONS: dict[Kind, float] = {"forward": 1, "backward": 2.5, "forward+backward": 3.5}
"""Floating-point operations over those of the forward pass, as FlashAttention's papers count them."""

TOLERANCES = {"bfloat16": (6e-3, 1e-2), "float32": (1e-5, 1e-4)}
"""Relative RMS errors of outputs and of derivatives, against float64 from the same rounded arrays."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What attention: which keys are seen, how they are weighted, and what is learned beside q, k and v."""

    causal: bool = False
    window: bool = False
    segments: bool = False
    sigmoid: bool = False
    grouped: bool = False
    decoding: bool = False
    learned: Literal["slopes", "bias"] | None = None


CASES: dict[Name, Case] = {
    "full": Case(),
    "causal": Case(causal=True),
    "sigmoid": Case(sigmoid=True),
    "window": Case(causal=True, window=True),
    "segments": Case(causal=True, segments=True),
    "grouped": Case(causal=True, grouped=True),
    "alibi": Case(causal=True, learned="slopes"),
    "bias": Case(learned="bias"),
    "decode": Case(grouped=True, decoding=True),
}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A case with its sizes."""

    case: Case
    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    width: int
    window: int
    dtype: str

    @property
    def map_bytes(self) -> int:
        """Of one float32 number for each query and key."""
        return 4 * self.batch * self.heads * self.queries * self.keys

    @property
    def segment_ids(self) -> np.ndarray:
        """Eight documents of uneven lengths."""
        ends = np.sort(np.random.default_rng(0).choice(np.arange(1, self.keys), 7, replace=False))
        return np.searchsorted(ends, np.arange(self.keys), side="right").astype(np.int32)

    @property
    def pairs(self) -> float:
        """Visible queries and keys of a head; half of the square where causal, as FlashAttention's papers count."""
        if self.case.window:
            return float(np.minimum(np.arange(self.queries), self.window).sum() + self.queries)
        if self.case.segments:
            return float((np.bincount(self.segment_ids) ** 2).sum() / 2)
        return self.queries * self.keys / (2 if self.case.causal else 1)

    def operations(self, kind: Kind) -> float | None:
        """Floating-point operations; None where no count is usual."""
        forward = 4 * self.pairs * self.width * self.heads * self.batch
        return OPERATIONS[kind] * forward if kind in OPERATIONS else None

    def visible(self, t: np.ndarray, s: np.ndarray) -> np.ndarray:
        """Which keys ``s`` queries ``t`` see, by their definition."""
        seen = s <= t if self.case.causal else np.ones(np.broadcast_shapes(t.shape, s.shape), bool)
        if self.case.window:
            seen = seen & (t - s <= self.window)
        if self.case.segments:
            seen = seen & (self.segment_ids[t] == self.segment_ids[s])
        return seen


@dataclasses.dataclass(frozen=True)
class Data:
    """Arrays of a problem: q, k, v and what is learned; a tangent of each; a cotangent of the output."""

    arrays: tuple[jax.Array, ...]
    tangents: tuple[jax.Array, ...]
    cotangent: jax.Array


def data_of(problem: Problem) -> Data:
    p = problem
    query = (p.batch, p.queries, p.heads, p.width)
    shapes: list[tuple[int, ...]] = [query, *[(p.batch, p.keys, p.kv_heads, p.width)] * 2]
    if p.case.learned == "bias":
        shapes.append((p.heads, p.queries, p.keys))
    draw = lambda seed, shape: jax.random.normal(jax.random.key(seed), shape, p.dtype)
    arrays, tangents = ([draw(10 * part + n, shape) for n, shape in enumerate(shapes)] for part in range(2))
    if p.case.learned == "slopes":
        slopes = 2.0 ** (-8 * jnp.arange(1, p.heads + 1) / p.heads)
        arrays.append(slopes)
        tangents.append(slopes * jax.random.normal(jax.random.key(13), slopes.shape))
    return Data(tuple(arrays), tuple(tangents), draw(20, query))


class Formulas:
    """Attention and its derivatives by their formulas in float64 NumPy.

    Of all queries, or of some queries of the last head of the last batch entry; the keys are always all of them.
    """

    def __init__(self, problem: Problem, data: Data, queries: np.ndarray | None = None):
        self.problem, self.data = problem, data
        self.few = slice(None) if queries is None else slice(-1, None)
        self.t = np.arange(problem.queries) if queries is None else queries
        self.group = problem.heads // problem.kv_heads if queries is None else 1
        self.scale = problem.width**-0.5
        self.distance = np.abs(self.t[:, None] - np.arange(problem.keys))
        self.q, self.k, self.v, bias = self._taken(data.arrays)
        self.weights = self._normalized(self.scale * self.q @ _turned(self.k) + bias)

    def _taken(self, arrays: tuple[jax.Array, ...]) -> tuple[Any, ...]:
        """Queries, keys and values ``[B, N, length, H]``, and what is added to the scores."""
        q, k, v, *learned = arrays
        added: Any = 0.0
        if self.problem.case.learned == "slopes":
            added = -np.asarray(learned[0][self.few], np.float64)[:, None, None] * self.distance
        elif self.problem.case.learned == "bias":
            added = np.asarray(learned[0][self.few, self.t], np.float64)
        return self._heads(q)[:, :, self.t], self._heads(k, self.group), self._heads(v, self.group), added

    def _heads(self, x: jax.Array, group: int = 1) -> np.ndarray:
        """``[B, length, N, H]`` as ``[B, N, length, H]``, heads repeated."""
        return np.repeat(np.asarray(x[self.few, :, self.few], np.float64).swapaxes(1, 2), group, axis=1)

    def _normalized(self, score: np.ndarray) -> np.ndarray:
        seen = self.problem.visible(self.t[:, None], np.arange(self.problem.keys)[None])
        if self.problem.case.sigmoid:
            return np.where(seen, 1 / (1 + self.problem.keys * np.exp(-score)), 0)
        score = np.where(seen, score, -np.inf)
        mass = np.exp(score - score.max(-1, keepdims=True))
        return mass / mass.sum(-1, keepdims=True)

    def _through_weights(self, x: np.ndarray) -> np.ndarray:
        """The (symmetric) Jacobian of a row's weights by its scores, times ``x``."""
        p = self.weights
        return p * (1 - p) * x if self.problem.case.sigmoid else p * (x - (p * x).sum(-1, keepdims=True))

    def output(self) -> np.ndarray:
        return self.weights @ self.v

    def tangent(self) -> np.ndarray:
        q, k, v, added = self._taken(self.data.tangents)
        score = self.scale * (q @ _turned(self.k) + self.q @ _turned(k)) + added
        return self._through_weights(score) @ self.v + self.weights @ v

    def gradients(self) -> dict[str, np.ndarray]:
        """Those of keys and values are right only if all queries are there."""
        cotangent = self._heads(self.data.cotangent)[:, :, self.t]
        score = self._through_weights(cotangent @ _turned(self.v))
        shared = lambda x: x.reshape(x.shape[0], -1, self.group, *x.shape[2:]).sum(2)
        found = {
            "dq": self.scale * score @ self.k,
            "dk": shared(self.scale * _turned(score) @ self.q),
            "dv": shared(_turned(self.weights) @ cotangent),
        }
        found = {name: x.swapaxes(1, 2) for name, x in found.items()}
        if self.problem.case.learned == "slopes":
            found["dlearned"] = -(score * self.distance).sum((0, 2, 3))
        elif self.problem.case.learned == "bias":
            found["dlearned"] = score.sum(0)
        return found

    def expected(self, kind: Kind) -> dict[str, np.ndarray]:
        """What a pass returns, by name: ``[B, T, N, H]``, as `attend` has it."""
        found = {} if kind == "backward" else {"output": self.output().swapaxes(1, 2)}
        if kind == "tangent":
            found["tangent"] = self.tangent().swapaxes(1, 2)
        return found | (self.gradients() if "backward" in kind else {})


def _turned(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -1, -2)


def named(kind: Kind, found: Any) -> dict[str, Any]:
    """What a pass returned, by the names of `Formulas.expected`."""
    gradients = lambda found: {name: x for name, x in zip(("dq", "dk", "dv", "dlearned"), found, strict=False)}
    if kind == "forward":
        return {"output": found}
    if kind == "backward":
        return gradients(found)
    if kind == "tangent":
        return dict(zip(("output", "tangent"), found, strict=True))
    return {"output": found[0]} | gradients(found[1])


def tolerance(problem: Problem, name: str) -> float:
    return TOLERANCES[problem.dtype][name != "output"]
