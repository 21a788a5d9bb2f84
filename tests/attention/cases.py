"""The registry of the conformance suite. A new mask, score or normalizer gets every test by one entry here.

An entry makes the component from arrays and says the same thing once more for the loop reference, one query and one
key at a time. Arrays that an entry carries are drawn by ``draw`` and differentiated; integers that it carries (segment
ids, lengths) are traced.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from attnjax import BlockSizes, masks, normalizers, scores
from attnjax.attention.normalizers import Normalizer
from tests.references import attention as reference


class Sizes(NamedTuple):
    """Lengths of the axes; ``batch`` may have any number of axes."""

    batch: tuple[int, ...]
    t: int
    s: int
    n: int
    k: int
    h: int
    v: int

    @property
    def flat(self) -> int:
        return math.prod(self.batch)


Arrays = dict[str, Any]
Draw = Callable[[np.random.Generator, Sizes], Arrays]
NOTHING: Draw = lambda rng, size: {}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A component twice: as attnjax makes it, and for the loops.

    Attributes:
        make: ``make(arrays, size) -> component``.
        reference: masks: ``(arrays, size, b, n, t, s) -> bool``; scores: ``(arrays, size, scale, q, k, b, n, t, s) ->
            float``; normalizers: ``(arrays, row, n, S) -> weights``. Arrays are NumPy's, batch axes flattened.
        draw: the arrays that it carries, of floating point (differentiated) or integers (traced).
        batched: names of those that begin with the batch axes.
        fits: whether it can be used at these sizes.
    """

    make: Callable[[Arrays, Sizes], Any]
    reference: Callable[..., Any]
    draw: Draw = NOTHING
    batched: tuple[str, ...] = ()
    fits: Callable[[Sizes], bool] = lambda size: True


def _normal(*letters: str, spread: float = 1.0, **shift: float):
    """Draws an array of each letter's size under each name, as name=shift."""

    def draw(rng: np.random.Generator, size: Sizes) -> Arrays:
        extents = {"n": (size.n,), "t": (size.t,), "s": (size.s,), "h": (size.h,), "b": size.batch}
        shape = sum((extents[x] if x in extents else (int(x),) for x in letters), ())
        return {name: mean + spread * rng.standard_normal(shape) for name, mean in shift.items()}

    return draw


def _segments(rng: np.random.Generator, size: Sizes) -> Arrays:
    """Ascending ids, the last of the queries' in no key, so that some rows see nothing."""
    ids = lambda length: np.sort(rng.integers(0, 4, (*size.batch, length)), -1).astype(np.int32)
    q_ids = ids(size.t)
    q_ids[..., -1] = 7
    return {"q_ids": q_ids, "kv_ids": ids(size.s)}


def _lengths(rng: np.random.Generator, size: Sizes) -> Arrays:
    draw = lambda most: rng.integers(0, most + 1, size.batch).astype(np.int32)
    return {"q_lengths": draw(size.t), "kv_lengths": draw(size.s)}


def _some(rng: np.random.Generator, size: Sizes) -> Arrays:
    visible = rng.random((*size.batch, size.n, size.t, size.s)) < 0.3
    visible[..., 0, :] = False
    return {"visible": visible}


def _at_most(t: int, s: int, n: int):
    return lambda size: size.t <= t and size.s <= s and size.n <= n


def _grid(*shape: int) -> Callable[[Sizes], bool]:
    return lambda size: size.t == size.s == math.prod(shape)


def _near(shape, window, stride, dilation, causal):
    """Reference of a neighborhood; each argument has one number for each dimension."""

    def visible(arrays, size, b, n, t, s):
        each = zip(reference.coordinates(t, shape), reference.coordinates(s, shape), shape, window, stride, dilation,
                   causal, strict=True)  # fmt: skip
        return all(j in reference.neighbors(i, *rest) for i, j, *rest in each)

    return visible


MASKS: dict[str, Entry] = {
    "none": Entry(lambda a, z: None, lambda a, z, b, n, t, s: True),
    "causal": Entry(lambda a, z: masks.causal(), lambda a, z, b, n, t, s: s <= t),
    "causal, aligned at the end": Entry(
        lambda a, z: masks.causal(offset=z.s - z.t), lambda a, z, b, n, t, s: s <= t + z.s - z.t
    ),
    "window": Entry(lambda a, z: masks.window(9, 4), lambda a, z, b, n, t, s: -4 <= t - s <= 9),
    "window per head": Entry(
        lambda a, z: masks.window(a["left"]),
        lambda a, z, b, n, t, s: 0 <= t - s <= a["left"][n],
        lambda rng, z: {"left": (3 * np.arange(z.n)).astype(np.int32)},
    ),
    "window or sinks, causal": Entry(
        lambda a, z: masks.causal() & (masks.window(11) | masks.sinks(3)),
        lambda a, z, b, n, t, s: s <= t and (t - s <= 11 or s < 3),
    ),
    "prefix": Entry(lambda a, z: masks.causal() | masks.prefix(6), lambda a, z, b, n, t, s: s <= t or s < 6),
    "segments": Entry(
        lambda a, z: masks.segments(a["q_ids"], a["kv_ids"]),
        lambda a, z, b, n, t, s: a["q_ids"][b, t] == a["kv_ids"][b, s],
        _segments,
        batched=("q_ids", "kv_ids"),
    ),
    "causal segments": Entry(
        lambda a, z: masks.causal() & masks.segments(a["q_ids"], a["kv_ids"]),
        lambda a, z, b, n, t, s: s <= t and a["q_ids"][b, t] == a["kv_ids"][b, s],
        _segments,
        batched=("q_ids", "kv_ids"),
    ),
    "dilated": Entry(
        lambda a, z: masks.dilated(3, left=5, right=2),
        lambda a, z, b, n, t, s: (t - s) % 3 == 0 and -2 * 3 <= t - s <= 5 * 3,
    ),
    "block local": Entry(lambda a, z: masks.block_local(10), lambda a, z, b, n, t, s: t // 10 == s // 10),
    "neighborhood 1-D": Entry(
        lambda a, z: masks.neighborhood(63, 5, stride=2, dilation=3),
        _near((63,), (5,), (2,), (3,), (False,)),
        fits=_grid(63),
    ),
    "neighborhood 2-D": Entry(
        lambda a, z: masks.neighborhood((7, 9), (3, 4), stride=(1, 3), causal=(False, True)),
        _near((7, 9), (3, 4), (1, 3), (1, 1), (False, True)),
        fits=_grid(7, 9),
    ),
    "neighborhood 3-D": Entry(
        lambda a, z: masks.neighborhood((3, 3, 7), (3, 2, 3), dilation=(1, 1, 2)),
        _near((3, 3, 7), (3, 2, 3), (1, 1, 1), (1, 1, 2), (False, False, False)),
        fits=_grid(3, 3, 7),
    ),
    "lengths": Entry(
        lambda a, z: masks.lengths(a["q_lengths"], a["kv_lengths"]),
        lambda a, z, b, n, t, s: t < a["q_lengths"][b] and s < a["kv_lengths"][b],
        _lengths,
        batched=("q_lengths", "kv_lengths"),
    ),
    "array": Entry(
        lambda a, z: masks.from_array(a["visible"]),
        lambda a, z, b, n, t, s: bool(a["visible"][b, n, t, s]),
        _some,
        batched=("visible",),
    ),
    "function": Entry(
        lambda a, z: masks.from_function(lambda b, n, t, s: ((t // 8 + s // 8 + n) % 3 == 0) & (2 * s <= 3 * t + b)),
        lambda a, z, b, n, t, s: (t // 8 + s // 8 + n) % 3 == 0 and 2 * s <= 3 * t + b,
    ),
    "per head": Entry(
        lambda a, z: masks.heads(0) & masks.window(6) | masks.heads(*range(1, z.n + 1)) & ~masks.causal(),
        lambda a, z, b, n, t, s: 0 <= t - s <= 6 if n == 0 else s > t,
    ),
    "nothing": Entry(lambda a, z: ~masks.causal(offset=10_000), lambda a, z, b, n, t, s: False),
}


def _dot(a, scale, q, k):
    return reference.dot_product(q, k, scale)


SCORES: dict[str, Entry] = {
    "dot product": Entry(lambda a, z: scores.dot_product(), lambda a, z, c, q, k, b, n, t, s: _dot(a, c, q, k)),
    "alibi": Entry(
        lambda a, z: scores.alibi(a["slopes"]),
        lambda a, z, c, q, k, b, n, t, s: _dot(a, c, q, k) - a["slopes"][n] * abs(t - s),
        _normal("n", slopes=0.3, spread=0.1),
    ),
    "cosine": Entry(
        lambda a, z: scores.cosine(), lambda a, z, c, q, k, b, n, t, s: reference.cosine(q, k, c)
    ),
    "relative bias": Entry(
        lambda a, z: scores.relative_bias(a["table"], offset=1),
        lambda a, z, c, q, k, b, n, t, s: _dot(a, c, q, k) + a["table"][n, reference.clipped_distance(t, s, 5, 1)],
        _normal("n", "11", table=0.0),
    ),
    "softcap": Entry(
        lambda a, z: scores.softcap(a["cap"]),
        lambda a, z, c, q, k, b, n, t, s: a["cap"][n] * math.tanh(_dot(a, c, q, k) / a["cap"][n]),
        _normal("n", cap=1.5, spread=0.1),
    ),
    "bias": Entry(
        lambda a, z: scores.bias(a["values"]),
        lambda a, z, c, q, k, b, n, t, s: _dot(a, c, q, k) + a["values"][b, n, t, s],
        _normal("b", "n", "t", "s", values=0.0),
        batched=("values",),
        fits=_at_most(100, 257, 8),
    ),
    "bias over all heads and batches": Entry(
        lambda a, z: scores.bias(a["values"]),
        lambda a, z, c, q, k, b, n, t, s: _dot(a, c, q, k) + a["values"][t, s],
        _normal("t", "s", values=0.0),
    ),
    "bias of keys": Entry(
        lambda a, z: scores.bias(a["values"]),
        lambda a, z, c, q, k, b, n, t, s: _dot(a, c, q, k) + a["values"][n, 0, s],
        _normal("n", "1", "s", values=0.0),
    ),
    "additive": Entry(
        lambda a, z: scores.additive(a["w_q"], a["w_k"], a["v"]),
        lambda a, z, c, q, k, b, n, t, s: reference.additive(q, k, a["w_q"][n], a["w_k"][n], a["v"][n]),
        lambda rng, z: _normal("n", "h", "3", w_q=0.0, w_k=0.0)(rng, z) | _normal("n", "3", v=0.0)(rng, z),
    ),
    "additive, shared by the heads": Entry(
        lambda a, z: scores.additive(a["w_q"], a["w_k"], a["v"]),
        lambda a, z, c, q, k, b, n, t, s: reference.additive(q, k, a["w_q"], a["w_k"], a["v"]),
        lambda rng, z: _normal("h", "3", w_q=0.0, w_k=0.0)(rng, z) | _normal("3", v=0.0)(rng, z),
    ),
    "function": Entry(
        lambda a, z: scores.from_function(lambda x, b, n, t, s: a["temperature"][n] * x + 0.1 * ((t + s + b) % 4)),
        lambda a, z, c, q, k, b, n, t, s: a["temperature"][n] * _dot(a, c, q, k) + 0.1 * ((t + s + b) % 4),
        _normal("n", temperature=1.0, spread=0.2),
    ),
    "negative distance": Entry(
        lambda a, z: scores.from_query_key(
            lambda q, k: -a["rate"] * ((q[:, None, :] - k[None, :, :]) ** 2).sum(-1)
        ),
        lambda a, z, c, q, k, b, n, t, s: -a["rate"] * ((q - k) ** 2).sum(),
        _normal(rate=0.3, spread=0.05),
    ),
    "softcap, then alibi, then bias": Entry(
        lambda a, z: scores.dot_product() >> scores.softcap(2.0) >> scores.alibi(a["slopes"]) >> scores.bias(a["bias"]),
        lambda a, z, c, q, k, b, n, t, s: 2 * math.tanh(_dot(a, c, q, k) / 2) - a["slopes"][n] * abs(t - s)
        + a["bias"][n, 0, 0],
        lambda rng, z: _normal("n", slopes=0.2, spread=0.1)(rng, z) | _normal("n", "1", "1", bias=0.0)(rng, z),
    ),
}  # fmt: skip
WITHOUT_SCALE = {"additive", "additive, shared by the heads", "negative distance"}


def _log_sum_monoid() -> Normalizer:
    """Softmax as a user would write it with the four verbs."""

    def lift(score, visible, v):
        top = jnp.max(jnp.where(visible, score, -jnp.inf), axis=1)
        finite = jnp.where(jnp.isneginf(top), 0, top)
        mass = jnp.where(visible, jnp.exp(jnp.where(visible, score, 0) - finite[:, None]), 0)
        return top, mass.sum(1), mass @ v

    def combine(a, b):
        top = jnp.maximum(a[0], b[0])
        finite = jnp.where(jnp.isneginf(top), 0, top)
        by_a, by_b = jnp.exp(a[0] - finite), jnp.exp(b[0] - finite)
        return top, a[1] * by_a + b[1] * by_b, a[2] * by_a[:, None] + b[2] * by_b[:, None]

    def finalize(state):
        seen = state[1] > 0
        return jnp.where(seen[:, None], state[2] / jnp.where(seen, state[1], 1)[:, None], 0)

    def init(rows, width, dtype):
        return jnp.full(rows, -jnp.inf, dtype), jnp.zeros(rows, dtype), jnp.zeros((rows, width), dtype)

    return normalizers.from_monoid(init, lift, combine, finalize)


NORMALIZERS: dict[str, Entry] = {
    "softmax": Entry(lambda a, z: normalizers.softmax(), lambda a, x, n, keys: reference.softmax(x)),
    "softmax with a sink": Entry(
        lambda a, z: normalizers.softmax(sink=a["sink"]),
        lambda a, x, n, keys: reference.softmax_with_sink(x, a["sink"][n]),
        _normal("n", sink=0.5),
    ),
    "softmax plus one": Entry(
        lambda a, z: normalizers.softmax_plus_one(), lambda a, x, n, keys: reference.softmax(x, extra=1.0)
    ),
    "softmax plus n": Entry(
        lambda a, z: normalizers.softmax_plus_one(a["zeros"]),
        lambda a, x, n, keys: reference.softmax(x, extra=a["zeros"][n]),
        _normal("n", zeros=3.0, spread=0.2),
    ),
    "softmax with a stable maximum": Entry(
        lambda a, z: normalizers.softmax(tie_factor=2.0), lambda a, x, n, keys: reference.softmax(x)
    ),
    "log-n softmax": Entry(
        lambda a, z: normalizers.log_n_softmax(a["coefficient"]),
        lambda a, x, n, keys: reference.log_n_softmax(x, a["coefficient"][n]),
        _normal("n", coefficient=0.5, spread=0.1),
    ),
    "log-n softmax, n given": Entry(
        lambda a, z: normalizers.log_n_softmax(n=float(z.s)),
        lambda a, x, n, keys: reference.log_n_softmax(x, 1.0, keys),
    ),
    "sigmoid": Entry(
        lambda a, z: normalizers.sigmoid(), lambda a, x, n, keys: reference.sigmoid(x, -math.log(keys))
    ),
    "sigmoid, learned bias": Entry(
        lambda a, z: normalizers.sigmoid(a["bias"]),
        lambda a, x, n, keys: reference.sigmoid(x, a["bias"][n]),
        _normal("n", bias=-2.0),
    ),
    "relu": Entry(lambda a, z: normalizers.relu(), lambda a, x, n, keys: reference.relu(x, 1)),
    "squared relu": Entry(lambda a, z: normalizers.relu_squared(), lambda a, x, n, keys: reference.relu(x, 2)),
    "squared relu, not over keys": Entry(
        lambda a, z: normalizers.relu_squared(over_keys=False), lambda a, x, n, keys: reference.relu(x, 2, False)
    ),
    "signed softmax": Entry(
        lambda a, z: normalizers.signed_softmax(), lambda a, x, n, keys: reference.signed_softmax(x)
    ),
    "sparsemax": Entry(lambda a, z: normalizers.sparsemax(), lambda a, x, n, keys: reference.sparsemax(x)),
    "1.5-entmax": Entry(lambda a, z: normalizers.entmax15(), lambda a, x, n, keys: reference.entmax15(x)),
    "user's monoid": Entry(lambda a, z: _log_sum_monoid(), lambda a, x, n, keys: reference.softmax(x)),
    "laplace": Entry(lambda a, z: normalizers.laplace(), lambda a, x, n, keys: reference.laplace(x)),
}  # fmt: skip
ROWS_ONLY = {"sparsemax", "1.5-entmax"}
NO_WEIGHTS = {"user's monoid"}
"""Normalizers without weights, so without statistics but ``max_logit``."""

# Lengths 1, 7, 63, 100, 257; N/K of 1, 2, 8; V above, below and equal to H; 0, 1 and 2 batch axes.
SIZES = [
    Sizes((2,), 63, 63, 4, 2, 8, 5),
    Sizes((), 100, 7, 2, 2, 4, 6),
    Sizes((), 1, 257, 8, 1, 4, 3),
    Sizes((2, 2), 7, 7, 2, 1, 4, 4),
    Sizes((1,), 257, 1, 2, 2, 3, 5),
    Sizes((2,), 7, 100, 8, 1, 5, 2),
    Sizes((), 63, 63, 1, 1, 4, 8),
    Sizes((1,), 257, 63, 2, 1, 4, 3),
    Sizes((2,), 1, 1, 4, 4, 3, 2),
    Sizes((2,), 100, 100, 2, 1, 4, 6),
    Sizes((), 63, 257, 4, 4, 4, 4),
]
# Dividing and not, wider than long and the reverse, above the lengths.
BLOCKS = [BlockSizes(16, 16), BlockSizes(7, 33), BlockSizes(64, 5), BlockSizes(1, 50), BlockSizes(128, 128)]


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of attention, by the names of its parts."""

    mask: str
    score: str
    normalizer: str
    size: Sizes
    blocks: BlockSizes

    def __str__(self) -> str:
        z, x = self.size, self.blocks
        shape = f"B{'x'.join(map(str, z.batch))} T{z.t} S{z.s} N{z.n} K{z.k} H{z.h} V{z.v}"
        return f"{self.mask} / {self.score} / {self.normalizer} / {shape} / tiles {x.q}x{x.kv}"

    @property
    def streams(self) -> bool:
        return self.normalizer not in ROWS_ONLY

    def draw(self, seed: int = 0) -> tuple[Arrays, Arrays]:
        """Arrays to differentiate and arrays of integers, float64: q, k, v, scale, and what the components carry."""
        rng, z = np.random.default_rng(seed), self.size
        found = {
            "q": rng.standard_normal((*z.batch, z.t, z.n, z.h)),
            "k": rng.standard_normal((*z.batch, z.s, z.k, z.h)),
            "v": rng.standard_normal((*z.batch, z.s, z.k, z.v)),
            "scale": np.asarray(0.7),
        }
        for prefix, entry in self._entries():
            found |= {f"{prefix} {name}": np.asarray(x) for name, x in entry.draw(rng, z).items()}
        if self.score in WITHOUT_SCALE:
            del found["scale"]
        floats = {name: x for name, x in found.items() if x.dtype == np.float64}
        return floats, {name: x for name, x in found.items() if name not in floats}

    def _entries(self):
        return [
            ("mask", MASKS[self.mask]),
            ("score", SCORES[self.score]),
            ("normalizer", NORMALIZERS[self.normalizer]),
        ]

    def knobs(self, arrays: Arrays) -> Arrays:
        """Keyword arguments of ``attend``."""
        made = {kind: entry.make(_own(arrays, kind), self.size) for kind, entry in self._entries()}
        return made | {"scale": arrays.get("scale")}

    def loops(self, arrays: Arrays) -> reference.Attention:
        """The loop reference, batch axes flattened."""
        z = self.size
        flat = {name: np.reshape(arrays[name], (z.flat, *arrays[name].shape[-3:])) for name in ("q", "k", "v")}
        (_, mask), (_, score), (_, normalizer) = self._entries()
        of_mask, of_score, of_normalizer = (self._flattened(arrays, *entry) for entry in self._entries())
        scale = arrays.get("scale")
        return reference.attend(
            *flat.values(),
            visible=lambda *at: mask.reference(of_mask, z, *at),
            score=lambda q, k, *at: score.reference(of_score, z, scale, q, k, *at),
            normalizer=lambda row, n, keys: normalizer.reference(of_normalizer, row, n, keys),
        )

    def _flattened(self, arrays: Arrays, kind: str, entry: Entry) -> Arrays:
        """What an entry carries, batch axes made one; a call without them is a batch of one."""
        rank = len(self.size.batch)
        return {
            name: x.reshape(self.size.flat, *x.shape[rank:]) if name in entry.batched else x
            for name, x in _own(arrays, kind).items()
        }


def _own(arrays: Arrays, kind: str) -> Arrays:
    return {name.removeprefix(kind + " "): x for name, x in arrays.items() if name.startswith(kind + " ")}


def _cycle() -> list[Case]:
    """Every mask, score, normalizer, size and tiling, each in a few combinations: a cover, not the product."""
    cases, names = [], (list(MASKS), list(SCORES), list(NORMALIZERS))
    for i in range(max(map(len, (*names, SIZES, BLOCKS)))):
        mask, score, normalizer = (each[i % len(each)] for each in names)
        turn = [SIZES[(i + j) % len(SIZES)] for j in range(len(SIZES))]
        size = next(z for z in turn if MASKS[mask].fits(z) and SCORES[score].fits(z))
        cases.append(Case(mask, score, normalizer, size, BLOCKS[i % len(BLOCKS)]))
    return cases


# Pairs that deserve a case of their own.
EXTRA = [
    Case("causal segments", "alibi", "softmax", Sizes((2,), 257, 257, 4, 2, 4, 3), BlockSizes(64, 64)),
    Case("nothing", "dot product", "softmax with a sink", Sizes((), 7, 63, 2, 1, 4, 3), BlockSizes(4, 16)),
    Case("segments", "dot product", "softmax plus one", Sizes((2,), 63, 100, 2, 1, 4, 3), BlockSizes(16, 16)),
    Case("window per head", "relative bias", "sigmoid, learned bias", Sizes((), 100, 100, 8, 1, 4, 3), BlockSizes(32, 16)),
]  # fmt: skip
CASES = _cycle() + EXTRA
