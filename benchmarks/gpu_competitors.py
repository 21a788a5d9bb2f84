"""The competitors of `benchmarks.attention_gpu`, attnjax, jax.nn, tokamax and torch, each as a call to be timed."""

import dataclasses
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attnjax import attend, explain, masks, normalizers, scores
from benchmarks.gpu_cases import Data, Kind, Problem, named

OURS = "attnjax"
MAP_BYTES = 2e10
"""Float32 maps of T x S for all heads are made up to this size."""


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


def visited_share(problem: Problem) -> float:
    """Of the tiles of the plane."""
    shape = (problem.batch, problem.queries, problem.heads, problem.width)
    x = jax.ShapeDtypeStruct(shape, jnp.dtype(problem.dtype))
    plan = explain(x, x, x, mask=mask_of(problem), implementation="pallas")
    assert plan.tiles_visited is not None
    return plan.tiles_visited / plan.tiles


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


def require_small_map(problem: Problem) -> None:
    if problem.map_bytes > MAP_BYTES:
        raise NotImplementedError(f"{problem.map_bytes / 1e9:.0f} GB of a T x S map")


def like_jax_nn(attention: Callable, problem: Problem, bias_type: Any = None) -> Callable[..., jax.Array]:
    """``(q, k, v, *learned) -> output`` by a function with the interface of `jax.nn.dot_product_attention`."""
    case = problem.case
    if case.sigmoid:
        raise NotImplementedError("softmax only")
    if case.segments or case.learned:
        require_small_map(problem)
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


def jax_nn(backend: str, problem: Problem, data: Data, kind: Kind) -> Competitor:
    if backend == "xla":
        require_small_map(problem)
    function: Any = jax.nn.dot_product_attention
    attention = functools.partial(function, implementation=backend)
    bias_type = problem.dtype if backend == "cudnn" else None  # it wants that of the queries
    return in_jax(like_jax_nn(attention, problem, bias_type), data, kind)


def tokamax(problem: Problem, data: Data, kind: Kind) -> Competitor:
    return in_jax(like_jax_nn(importlib.import_module("tokamax").dot_product_attention, problem), data, kind)


def in_torch(backend: str, problem: Problem, data: Data, kind: Kind, device="cuda") -> Competitor:
    """A back end of torch, on copies of the arrays in its own layout, ``[B, N, T, H]``."""
    torch: Any = importlib.import_module("torch")
    if kind == "tangent":
        raise NotImplementedError("no forward mode")

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
    names = {"flash": "FLASH_ATTENTION", "cudnn": "CUDNN_ATTENTION", "math": "MATH"}
    chosen = getattr(attention.SDPBackend, names[backend])
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


PEERS: dict[str, Callable[[Problem, Data, Kind], Competitor]] = {
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
