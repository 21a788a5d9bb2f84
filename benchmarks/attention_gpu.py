"""Speed of `attend`'s kernels on a Hopper GPU, beside jax.nn, torch and tokamax, once their values are right.

One process. Every case is first held, at a moderate length, against formulas in float64 NumPy; one that is wrong or
raises is reported and not timed, and the others go on. At the timed length every competitor's values are compared with
float64 again, at a few queries. Then competitors run in turns whose order alternates: a turn is a loop of calls with
one wait at its end, the figures are medians. The most telling cases come first, and the figures are written after each,
so that a run cut short keeps what it has:

    python -m benchmarks.attention_gpu --out benchmarks/results/h200.json

``--quick`` runs one tiny case anywhere, in interpreted kernels where there is no GPU; its times mean nothing.
"""

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from attnjax import attend, explain, masks, normalizers, scores
from benchmarks.measuring import WrongValues, alternate, calls_within, environment, relative_error, version
from pallas_kernels import Target, _compat, compile_for

Name = Literal["full", "causal", "sigmoid", "window", "segments", "grouped", "alibi", "bias", "decode"]
Kind = Literal["forward", "backward", "tangent", "forward+backward"]
NAMES: tuple[Name, ...] = ("full", "causal", "sigmoid", "window", "segments", "grouped", "alibi", "bias", "decode")
KINDS: tuple[Kind, ...] = ("forward", "backward", "tangent", "forward+backward")
OPERATIONS: dict[Kind, float] = {"forward": 1, "backward": 2.5, "forward+backward": 3.5}
"""Floating-point operations over those of the forward pass, as FlashAttention's papers count them."""

TOLERANCES = {"bfloat16": (6e-3, 1e-2), "float32": (1e-5, 1e-4)}
"""Relative RMS errors of outputs and of derivatives, against float64 from the same rounded arrays."""
PEERS_SLACK = 3
"""Peers need only compute the same function; how they round is their own business."""
OURS = "attnjax"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        quick: one tiny case, few repetitions, on any machine: shows that everything runs, its times mean nothing.
        gate_only: compare values with float64 and time nothing.
        out: where to write the figures as JSON.
        minutes: after these no case is begun; those left out are named.
        dtype: of queries, keys and values.
        cases: which ones; ``grouped`` is causal with grouped queries, ``decode`` one query against a cache, ``alibi``
            and ``bias`` have gradients of their slopes and of a bias of every pair.
        kinds: passes. ``backward`` is the pull of `jax.vjp` alone, with saved residuals; ``tangent`` is `jax.jvp`.
        peers: other implementations.
        lengths: T = S.
        widths: H = V.
        heads: query heads.
        group: query heads to a key/value head, in ``grouped`` and ``decode``.
        tokens: batch times length, as far as it goes.
        decode_batch: batch of ``decode``.
        window: keys to the left that a query of ``window`` sees.
        gate_length: T = S at which all values are compared.
        gate_heads: query heads there, a multiple of ``group``.
        repetitions: turns.
        seconds: that the calls of a turn fill.
        map_bytes: float32 maps of T x S for all heads are made up to this size.
    """

    quick: bool = False
    gate_only: bool = False
    out: Path | None = None
    minutes: float = 8
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    cases: tuple[Name, ...] = NAMES
    kinds: tuple[Kind, ...] = KINDS
    peers: tuple[str, ...] = ("jax.nn cudnn", "jax.nn xla", "torch flash", "torch cudnn", "torch flex", "tokamax")
    lengths: tuple[int, ...] = (16384, 4096, 1024, 65536)
    widths: tuple[int, ...] = (128, 64, 256)
    heads: int = 16
    group: int = 8
    tokens: int = 16384
    decode_batch: int = 16
    window: int = 1024
    gate_length: int = 512
    gate_heads: int = 8
    repetitions: int = 7
    seconds: float = 0.03
    map_bytes: float = 2e10


QUICK = {
    "cases": ("causal",),
    "kinds": ("forward", "backward"),
    "lengths": (128,),
    "widths": (64,),
    "heads": 1,
    "group": 1,
    "tokens": 128,
    "window": 48,
    "gate_length": 128,
    "gate_heads": 1,
    "repetitions": 1,
    "seconds": 0.0,
}


# --- cases ------------------------------------------------------------------------------------------------------------


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


def problem_of(config: Config, name: Name, width: int, length: int, *, gate: bool = False) -> Problem:
    case = CASES[name]
    heads = config.gate_heads if gate else config.heads
    batch = 2 if gate else config.decode_batch if case.decoding else max(1, config.tokens // length)
    return Problem(
        case,
        batch=batch,
        queries=1 if case.decoding else length,
        keys=length,
        heads=heads,
        kv_heads=heads // config.group if case.grouped else heads,
        width=width,
        window=min(config.window, length // 4) if gate else config.window,
        dtype=config.dtype,
    )


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


# --- attnjax ----------------------------------------------------------------------------------------------------------


def ours(problem: Problem) -> Callable[..., jax.Array]:
    """``(q, k, v, *learned) -> output``, in kernels."""
    knobs = {"mask": mask_of(problem), "normalizer": normalizers.sigmoid() if problem.case.sigmoid else None}
    kinds = {"slopes": scores.alibi, "bias": scores.bias}

    def run(q, k, v, *learned):
        score = kinds[problem.case.learned](*learned) if problem.case.learned else None
        return attend(q, k, v, score=score, implementation="pallas", **knobs)

    return run


def mask_of(problem: Problem) -> masks.Mask | None:
    if problem.case.window:
        return masks.window(problem.window)
    if problem.case.segments:
        return masks.causal() & masks.segments(problem.segment_ids)
    return masks.causal() if problem.case.causal else None


@contextlib.contextmanager
def kernels(config: Config) -> Iterator[str]:
    """What kernels run within the context: the GPU's, else interpreted ones, which are for ``quick`` alone.

    Raises:
        SystemExit: there is no GPU, and sizes are not those of ``quick``.
    """
    if jax.default_backend() == "gpu":
        yield "compiled"
    elif not config.quick:
        raise SystemExit(f"this needs a Hopper GPU and finds {jax.devices()[0].device_kind}; --quick runs anywhere")
    elif _compat.can_interpret():  # whose callbacks are in an order that no jit knows of
        with compile_for(Target("gpu", "h100", interpret=True)), jax.disable_jit():
            yield "those for GPU, interpreted"
    else:
        with compile_for(Target("tpu", interpret=True)):
            yield "those for TPU, interpreted: this jax cannot interpret those for GPU"


# --- float64 ----------------------------------------------------------------------------------------------------------


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


# --- competitors ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Competitor:
    """What is timed.

    Attributes:
        run: enqueues one call and returns its results.
        some: of results, those of the last head of the last batch entry, ``[T, H]``, by name.
        memory: bytes.
    """

    run: Callable[[], Any]
    some: Callable[[Any], dict[str, np.ndarray]]
    memory: dict[str, int]


def calls_of(function: Callable, data: Data, kind: Kind) -> tuple[Callable, tuple[Any, ...]]:
    """What a pass calls, and on what."""
    if kind == "forward":
        return function, data.arrays
    if kind == "tangent":
        return lambda x, tangents: jax.jvp(function, x, tangents), (data.arrays, data.tangents)
    if kind == "backward":
        _, pull = jax.jit(lambda *x: jax.vjp(function, *x))(*data.arrays)
        return lambda pull, cotangent: pull(cotangent), (pull, data.cotangent)

    def both(x, cotangent):
        output, pull = jax.vjp(function, *x)
        return output, pull(cotangent)

    return both, (data.arrays, data.cotangent)


def in_jax(function: Callable, data: Data, kind: Kind) -> Competitor:
    called, arguments = calls_of(function, data, kind)
    memory = {}
    settings: Any = jax.config
    if not settings.jax_disable_jit:
        called = jax.jit(called).lower(*arguments).compile()
        found: Any = called.memory_analysis()
        memory = {"temporary_bytes": found.temp_size_in_bytes} if found is not None else {}

    def some(found):
        taken = {name: x for name, x in named(kind, found).items() if name in ("output", "dq", "tangent")}
        return {name: np.asarray(x[-1, :, -1], np.float64) for name, x in taken.items()}

    return Competitor(functools.partial(called, *arguments), some, memory)


def like_jax_nn(attention: Callable, problem: Problem, bias_type: Any = None) -> Callable[..., jax.Array]:
    """``(q, k, v, *learned) -> output`` by a function with the interface of `jax.nn.dot_product_attention`."""
    case = problem.case
    if case.sigmoid:
        raise NotImplementedError("softmax only")
    knobs: dict[str, Any] = {"is_causal": case.causal}
    if case.window:
        knobs["local_window_size"] = (problem.window, 0)

    def run(q, k, v, *learned):
        bias = mask = None
        if case.segments:
            ids = jax.lax.optimization_barrier(jnp.asarray(problem.segment_ids))  # else XLA folds a T x S constant
            mask = (ids[:, None] == ids[None])[None, None]
        if case.learned == "slopes":
            distance = jnp.abs(jnp.arange(problem.queries)[:, None] - jnp.arange(problem.keys)[None])
            bias = (-learned[0][:, None, None] * distance[None])[None].astype(bias_type or jnp.float32)
        elif case.learned == "bias":
            bias = learned[0][None]
        return attention(q, k, v, bias, mask, **knobs)

    return run


def _small_enough(config: Config, problem: Problem) -> None:
    if problem.map_bytes > config.map_bytes:
        raise NotImplementedError(f"{problem.map_bytes / 1e9:.0f} GB of a T x S map")


def jax_nn(backend: str, config: Config, problem: Problem, data: Data, kind: Kind) -> Competitor:
    if backend == "xla" or problem.case.segments or problem.case.learned:
        _small_enough(config, problem)
    function: Any = jax.nn.dot_product_attention
    attention = functools.partial(function, implementation=backend)
    bias_type = problem.dtype if backend == "cudnn" else None  # it wants that of the queries
    return in_jax(like_jax_nn(attention, problem, bias_type), data, kind)


def tokamax(config: Config, problem: Problem, data: Data, kind: Kind) -> Competitor:
    if problem.case.segments or problem.case.learned:
        _small_enough(config, problem)
    attention = importlib.import_module("tokamax").dot_product_attention
    return in_jax(like_jax_nn(attention, problem), data, kind)


# --- torch ------------------------------------------------------------------------------------------------------------


def in_torch(backend: str, config: Config, problem: Problem, data: Data, kind: Kind, device="cuda") -> Competitor:
    """A back end of torch, on copies of the arrays in its own layout, ``[B, N, T, H]``."""
    torch: Any = importlib.import_module("torch")
    if kind == "tangent":
        raise NotImplementedError("no forward mode")
    if problem.case.learned == "bias":
        _small_enough(config, problem)

    def copied(x):
        x = torch.from_dlpack(x).to(device)
        return (x.transpose(1, 2) if x.ndim == 4 else x).clone(memory_format=torch.contiguous_format)

    tensors = [copied(x).requires_grad_(kind != "forward") for x in data.arrays]
    forward = _flex(torch, problem, tensors) if backend == "flex" else _sdpa(torch, backend, problem, tensors)
    run = _torch_pass(torch, forward, tensors, copied(data.cotangent), kind)

    def some(found):
        taken = {name: x for name, x in named(kind, found).items() if name in ("output", "dq")}
        return {name: x.detach()[-1, -1].double().cpu().numpy() for name, x in taken.items()}

    return Competitor(run, some, _torch_memory(torch, run) if device == "cuda" else {})


def _torch_pass(torch: Any, forward: Callable, tensors: list, cotangent: Any, kind: Kind) -> Callable[[], Any]:
    if kind == "forward":
        return torch.no_grad()(forward)
    if kind == "backward":
        output = forward()
        return lambda: torch.autograd.grad(output, tensors, cotangent, retain_graph=True)

    def both():
        output = forward()
        return output, torch.autograd.grad(output, tensors, cotangent)

    return both


def _torch_memory(torch: Any, run: Callable[[], Any]) -> dict[str, int]:
    """The peak of a call above what was there before it, results included."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return {"peak_bytes": torch.cuda.max_memory_allocated() - before}


def _sdpa(torch: Any, backend: str, problem: Problem, tensors: list) -> Callable[[], Any]:
    case = problem.case
    if case.sigmoid or case.window or case.segments or case.learned:
        raise NotImplementedError("full and causal softmax only")
    attention: Any = importlib.import_module("torch.nn.attention")
    chosen = getattr(
        attention.SDPBackend, {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "math": "MATH"}[backend]
    )
    knobs = {"is_causal": case.causal, "enable_gqa": problem.heads != problem.kv_heads}

    def forward():
        with attention.sdpa_kernel(chosen):
            return torch.nn.functional.scaled_dot_product_attention(*tensors, **knobs)

    return forward


def _flex(torch: Any, problem: Problem, tensors: list) -> Callable[[], Any]:
    """FlexAttention: its block map is made beforehand, as its users do."""
    case = problem.case
    if case.sigmoid:
        raise NotImplementedError("softmax only")
    flex: Any = importlib.import_module("torch.nn.attention.flex_attention")
    q, k, v, *learned = tensors
    ids = torch.as_tensor(problem.segment_ids, device=q.device) if case.segments else None

    def seen(b, h, t, s):
        near = (t >= s) & (t - s <= problem.window) if case.window else t >= s
        return near & (ids[t] == ids[s]) if ids is not None else near

    def changed(score, b, h, t, s):
        return score - learned[0][h] * (t - s).abs() if case.learned == "slopes" else score + learned[0][h, t, s]

    blocks = flex.create_block_mask(seen, None, None, problem.queries, problem.keys, q.device) if case.causal else None
    attention = flex.flex_attention
    if q.is_cuda:
        torch.compiler.reset()  # else the ninth shape is run uncompiled
        settings: Any = importlib.import_module("torch._functorch.config")
        settings.donated_buffer = False  # for retain_graph
        attention = torch.compile(attention, dynamic=False)
    knobs = {"score_mod": changed if case.learned else None, "block_mask": blocks}
    return lambda: attention(q, k, v, **knobs, enable_gqa=problem.heads != problem.kv_heads)


PEERS: dict[str, Callable[[Config, Problem, Data, Kind], Competitor]] = {
    "jax.nn cudnn": functools.partial(jax_nn, "cudnn"),
    "jax.nn xla": functools.partial(jax_nn, "xla"),
    "torch flash": functools.partial(in_torch, "flash"),
    "torch cudnn": functools.partial(in_torch, "cudnn"),
    "torch flex": functools.partial(in_torch, "flex"),
    "tokamax": tokamax,
}


def message_of(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def absence(peer: str) -> str | None:
    """Why a peer does not run here, or None."""
    package = peer.split()[0].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    try:
        module: Any = importlib.import_module(package)
    except Exception as error:  # built for another machine, say
        return message_of(error)
    if package == "torch" and not module.cuda.is_available():
        return "torch sees no CUDA device"
    if peer == "jax.nn cudnn" and jax.default_backend() != "gpu":
        return "jax sees no GPU"
    return None


def wait(found: Any) -> None:
    """Until the device has done all that was enqueued, by jax or torch."""
    jax.block_until_ready(found)
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


# --- what is measured -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Unit:
    """One row of figures."""

    name: Name
    width: int
    length: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.name}, H={self.width}, T={self.length}, {self.kind}"


@dataclasses.dataclass(frozen=True)
class Bar:
    """What a figure is asked to be: ``"at least"`` or ``"at most"`` so much."""

    figure: str
    unit: Unit
    sense: Literal["at least", "at most"]
    asked: float


BARS = (
    Bar("TFLOP/s", Unit("full", 128, 16384, "forward"), "at least", 600),
    Bar("TFLOP/s", Unit("causal", 128, 16384, "forward"), "at least", 560),
    Bar("TFLOP/s", Unit("full", 128, 16384, "backward"), "at least", 455),
    Bar("TFLOP/s", Unit("full", 64, 16384, "forward"), "at least", 480),
    Bar("TFLOP/s", Unit("full", 256, 16384, "backward"), "at least", 210),
    Bar("softmax's time over sigmoid's", Unit("sigmoid", 128, 16384, "forward"), "at least", 1),
    Bar("tangent's time over forward's", Unit("full", 128, 16384, "tangent"), "at most", 3),
    Bar("time over the visited share of full's", Unit("window", 128, 16384, "forward"), "at most", 1.1),
)


def units(config: Config) -> list[Unit]:
    """All rows, the most telling first: what a bar asks; plain cases at all widths; other cases at the first width."""
    asked = {bar.unit: number for number, bar in enumerate(BARS)}

    def rank(unit: Unit) -> tuple:
        plain = unit.name in ("full", "causal", "decode")
        far = not plain and unit.width != config.widths[0]
        late = unit.kind == "forward+backward"
        return asked.get(unit, len(asked)), far, late, config.lengths.index(unit.length), not plain

    every = [
        Unit(name, width, length, kind)
        for length in config.lengths
        for name in config.cases
        for width in config.widths
        for kind in config.kinds
        if kind == "forward" or name != "decode"
    ]
    return sorted(every, key=rank)


class Gate:
    """Whether a pass has the right values, at a moderate length; found once for each case, width and pass."""

    def __init__(self, config: Config, tell: Callable[[str], Any]):
        self.config, self.tell = config, tell
        self.found: dict[tuple[Name, int, Kind], dict[str, Any]] = {}

    def __call__(self, unit: Unit) -> dict[str, Any]:
        kind = "backward" if unit.kind == "forward+backward" else unit.kind
        if (unit.name, unit.width, kind) not in self.found:
            row = {"case": unit.name, "width": unit.width, "pass": kind, "length": self.config.gate_length}
            try:
                row |= self._errors(unit.name, unit.width, kind)
            except Exception as error:  # a kernel that does not compile or run must not end the others' measurement
                row |= {"passed": False, "message": message_of(error)}
            self.found[unit.name, unit.width, kind] = row
            errors = ", ".join(f"{part} {error:.1e}" for part, error in row.get("errors", {}).items())
            self.tell(f"values of {unit.name}, H={unit.width}, {kind}: {errors} {row['message']}")
        return self.found[unit.name, unit.width, kind]

    def _errors(self, name: Name, width: int, kind: Kind) -> dict[str, Any]:
        problem = problem_of(self.config, name, width, self.config.gate_length, gate=True)
        data = data_of(problem)
        function, arguments = calls_of(ours(problem), data, kind)
        got = named(kind, jax.jit(function)(*arguments))
        want = Formulas(problem, data).expected(kind)
        errors = {part: relative_error(got[part], want[part]) for part in want}
        wrong = [part for part, error in errors.items() if not error <= tolerance(problem, part)]
        message = "; ".join(
            f"{part} is off by {errors[part]:.1e}, above {tolerance(problem, part):.0e}" for part in wrong
        )
        return {"errors": errors, "passed": not wrong, "message": message}


def checked(problem: Problem, data: Data, kind: Kind) -> Callable[[Competitor, float], None]:
    """Compares some of a competitor's values with float64.

    Raises:
        WrongValues: they lie further apart than the tolerance times the given factor.
    """
    rows = np.unique(np.linspace(0, problem.queries - 1, 16).astype(int))
    want = Formulas(problem, data, rows).expected(kind)

    def check(competitor: Competitor, factor: float) -> None:
        for name, got in competitor.some(competitor.run()).items():
            error, bound = relative_error(got[rows], want[name][0, :, 0]), factor * tolerance(problem, name)
            if not error <= bound:
                raise WrongValues(f"{name} is off by {error:.1e} at some queries, above {bound:.0e}")

    return check


def beside(config: Config, unit: Unit, data: Data) -> dict[str, Callable[[], Competitor]]:
    """Our own other passes and cases that a row's ratios are taken to."""
    problem = problem_of(config, unit.name, unit.width, unit.length)
    full = dataclasses.replace(problem, case=CASES["full"])
    found = {}
    if unit.kind == "tangent":
        found[f"{OURS}, forward"] = lambda: in_jax(ours(problem), data, "forward")
    if unit.name == "sigmoid":
        found[f"{OURS}, softmax"] = lambda: in_jax(ours(full), data, unit.kind)
    if unit.name == "window":
        found[f"{OURS}, full"] = lambda: in_jax(ours(full), data, unit.kind)
    return found


def measure(config: Config, unit: Unit, peers: tuple[str, ...]) -> dict[str, Any]:
    """Times of a row's competitors; one that fails, or is wrong, is not timed and says why."""
    problem = problem_of(config, unit.name, unit.width, unit.length)
    row: dict[str, Any] = {"case": unit.name, "width": unit.width, "length": unit.length, "pass": unit.kind}
    row |= {"batch": problem.batch, "heads": [problem.heads, problem.kv_heads], "not_timed": {}}
    if problem.case.learned == "bias":
        _small_enough(config, problem)
    data = data_of(problem)
    check = checked(problem, data, unit.kind)
    competitors = {OURS: in_jax(ours(problem), data, unit.kind)}
    check(competitors[OURS], 1)
    row |= _device_peak()
    others = beside(config, unit, data)
    others |= {name: functools.partial(PEERS[name], config, problem, data, unit.kind) for name in peers}
    for name, build in others.items():
        try:
            competitor = build()
            check(competitor, PEERS_SLACK) if name in peers else wait(competitor.run())
            competitors[name] = competitor
        except Exception as error:
            row["not_timed"][name] = message_of(error)
    runs = {name: c.run for name, c in competitors.items()}
    calls = {name: calls_within(run, config.seconds, wait) for name, run in runs.items()}
    row |= alternate(runs, config.repetitions, calls, wait, compiled=True) | {"calls": calls}
    row["memory"] = {name: c.memory for name, c in competitors.items()}
    return row | derived(config, unit, problem, row, peers)


def _device_peak() -> dict[str, int]:
    """The greatest memory that jax had in use, since the process began."""
    found = jax.devices()[0].memory_stats() or {}
    return {"peak_bytes_since_start": found["peak_bytes_in_use"]} if "peak_bytes_in_use" in found else {}


def derived(
    config: Config, unit: Unit, problem: Problem, row: dict[str, Any], peers: tuple[str, ...]
) -> dict[str, Any]:
    """Rates, the ratio to the best peer, and the ratios that bars ask for."""
    over = row["ratio_to_first"]  # the other's time over ours
    timed = [name for name in peers if name in over]
    best = min(timed, key=lambda name: row["ms"][name]) if timed else None
    found: dict[str, Any] = {"best_peer": best, "best_peers_time_over_ours": over[best] if best else None}
    own = {name: ms for name, ms in row["ms"].items() if name == OURS or name in peers}
    if unit.name == "decode":
        cache = 2 * problem.batch * problem.keys * problem.kv_heads * problem.width * jnp.dtype(problem.dtype).itemsize
        found["GB/s"] = {name: cache / ms / 1e6 for name, ms in own.items()}
    elif (operations := problem.operations(unit.kind)) is not None:
        found["TFLOP/s"] = {name: operations / ms / 1e9 for name, ms in own.items()}
    ratios = {}
    if f"{OURS}, forward" in over:
        ratios["tangent's time over forward's"] = 1 / over[f"{OURS}, forward"]
    if f"{OURS}, softmax" in over:
        ratios["softmax's time over sigmoid's"] = over[f"{OURS}, softmax"]
    if f"{OURS}, full" in over:
        found["visited_share"] = share = visited_share(problem)
        ratios["time over the visited share of full's"] = 1 / over[f"{OURS}, full"] / share
    return found | {"ratios": ratios}


def visited_share(problem: Problem) -> float:
    """Of the tiles of the plane."""
    shape = (problem.batch, problem.queries, problem.heads, problem.width)
    x = jax.ShapeDtypeStruct(shape, jnp.dtype(problem.dtype))
    plan = explain(x, x, x, mask=mask_of(problem), implementation="pallas")
    assert plan.tiles_visited is not None
    return plan.tiles_visited / plan.tiles


def unit_of(row: dict[str, Any]) -> Unit:
    return Unit(row["case"], row["width"], row["length"], row["pass"])


def against_bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every bar, with what was measured; None where it was not."""
    by_unit = {unit_of(row): row for row in rows if "ms" in row}
    found = []
    for bar in BARS:
        row = by_unit.get(bar.unit, {})
        measured = (
            row.get("TFLOP/s", {}).get(OURS) if bar.figure == "TFLOP/s" else row.get("ratios", {}).get(bar.figure)
        )
        passed = None
        if measured is not None:
            passed = measured >= bar.asked if bar.sense == "at least" else measured <= bar.asked
        asked = {"figure": bar.figure, "of": str(bar.unit), "asked": f"{bar.sense} {bar.asked:g}"}
        found.append(asked | {"measured": measured, "passed": passed})
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What is read off the rows: the ratios within each, and the bars."""
    ratios = [
        {"ratio": name, "of": str(unit_of(row)), "value": value}
        for row in rows
        for name, value in row.get("ratios", {}).items()
    ]
    return {"ratios": ratios, "bars": against_bars(rows)}


# --- output -----------------------------------------------------------------------------------------------------------


def line_of(row: dict[str, Any]) -> list[str]:
    """A row of the table of times."""
    if "ms" not in row:
        return [row["case"], str(row["width"]), str(row["length"]), row["pass"], "-", "", "", "", "", row["failed"]]
    rates, best = row.get("TFLOP/s") or row.get("GB/s") or {}, row["best_peer"]
    rate = lambda name: f"{rates[name]:.0f}" if name in rates else ""
    remarks = [f"{name} {value:.2f}" for name, value in row["ratios"].items()]
    remarks += [f"no {name}: {why}"[:60] for name, why in row["not_timed"].items() if name.startswith(OURS)]
    memory = row["memory"][OURS].get("temporary_bytes")
    return [
        *(row["case"], str(row["width"]), str(row["length"]), row["pass"]),
        *(f"{row['ms'][OURS]:.3g}", rate(OURS), "" if memory is None else f"{memory / 1e6:.0f}"),
        *(best or "none", "" if best is None else f"{row['best_peers_time_over_ours']:.2f}", "; ".join(remarks)),
    ]


def times_table(rows: list[dict[str, Any]]) -> Table:
    columns = "case, H, T, pass, ms, TFLOP/s or GB/s, temporary MB, best peer, its time over ours, remarks"
    table = Table(*columns.split(", "), title="times of attnjax's kernels")
    for row in rows:
        table.add_row(*line_of(row))
    return table


def bars_table(bars: list[dict[str, Any]]) -> Table:
    table = Table("figure", "of", "asked", "measured", "", title="bars")
    for bar in bars:
        verdict = {True: "met", False: "not met", None: "not measured"}[bar["passed"]]
        measured = "" if bar["measured"] is None else f"{bar['measured']:.3g}"
        table.add_row(bar["figure"], bar["of"], bar["asked"], measured, verdict)
    return table


def opening(config: Config, how: str, peers: dict[str, str]) -> dict[str, Any]:
    """The report before anything is measured."""
    packages = ("tokamax", "triton", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")
    report = environment()
    report["versions"] |= {name: found for name in packages if (found := version(name)) is not None}
    return report | {
        "dtype": config.dtype,
        "device_kind": jax.devices()[0].device_kind,
        "kernels": how,
        "times_mean": "nothing: tiny sizes, to see that everything runs" if config.quick else "milliseconds of a call",
        "config": dataclasses.asdict(config) | {"out": None},
        "peers": peers,
        "sections": {"gate": [], "times": []},
        **summary([]),
        "left_out": [],
        "at_work_on": None,
    }


def save(report: dict[str, Any], out: Path | None) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def run_unit(config: Config, unit: Unit, gate: Gate, peers: tuple[str, ...]) -> dict[str, Any] | None:
    """The row of a unit, with why where nothing was timed; None where nothing was to be timed."""
    row = {"case": unit.name, "width": unit.width, "length": unit.length, "pass": unit.kind}
    needed = [unit, dataclasses.replace(unit, kind="forward")]
    wrong = [found["message"] for found in map(gate, needed) if not found["passed"]]
    if config.gate_only:
        return None
    if wrong:
        return row | {"failed": wrong[0]}
    try:
        return measure(config, unit, peers)
    except Exception as error:
        return row | {"failed": message_of(error)}


def main(config: Config) -> dict[str, Any]:
    """Check, time, print and write, row by row."""
    begin = time.monotonic()
    if config.quick:
        config = dataclasses.replace(config, **QUICK)
    else:  # leaves torch its share; jax reads it at its first use of the device
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")
    console = Console(width=160)
    missing = {name: absence(name) for name in config.peers}
    peers = tuple(name for name, why in missing.items() if why is None)
    with kernels(config) as how:
        report = opening(config, how, {name: why or "present" for name, why in missing.items()})
        console.print(f"{report['device_kind']}, kernels {how}; {report['versions']}; peers {report['peers']}")
        gate, sections = Gate(config, console.print), report["sections"]
        for unit in units(config):
            if time.monotonic() - begin > 60 * config.minutes:
                report["left_out"].append(str(unit))
                continue
            report["at_work_on"] = str(unit)
            save(report, config.out)
            row = run_unit(config, unit, gate, peers)
            sections["gate"] = list(gate.found.values())
            if row is not None:
                sections["times"].append(row)
                line = line_of(row)
                console.print(
                    f"{time.monotonic() - begin:.0f} s: {unit}: {line[4]} ms, {line[5]}; {'; '.join(line[7:])}"
                )
                report |= summary(sections["times"])
        report["at_work_on"] = None
        save(report, config.out)
    conclude(console, report)
    return report


def conclude(console: Console, report: dict[str, Any]) -> None:
    console.print(times_table(report["sections"]["times"]), bars_table(report["bars"]))
    for row in report["sections"]["gate"]:
        if not row["passed"]:
            console.print(f"FAILED, not timed: {row['case']}, H={row['width']}, {row['pass']}: {row['message']}")
    passed = sum(row["passed"] for row in report["sections"]["gate"])
    console.print(f"{passed} of {len(report['sections']['gate'])} passes have the values of float64")
    if report["left_out"]:
        console.print(
            f"left out, time being up: {len(report['left_out'])} rows: {'; '.join(report['left_out'][:8])} ..."
        )
    if report["config"]["quick"]:
        console.print("tiny sizes: these times mean nothing")


if __name__ == "__main__":
    import tyro  # here, as machines lent for an hour may lack it

    found = main(tyro.cli(Config, description=__doc__))
    if not all(row["passed"] for row in found["sections"]["gate"]):
        sys.exit("WRONG VALUES, or kernels that do not run: see FAILED above")
