"""Independent implementations: the plain references of flash-linear-attention, and transformers' state spaces."""

import functools
import importlib
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import linear
from tests.tolerances import assert_close

B, T, K, H, V = 2, 40, 2, 8, 6
CHUNK = 16


def reference(name: str):
    """The file ``fla/ops/NAME.py`` alone: the package around it wants Triton, and a GPU."""
    spec = importlib.util.find_spec("fla")
    assert spec is not None
    assert spec.submodule_search_locations
    path = Path(spec.submodule_search_locations[0]) / "ops" / f"{name}.py"
    of_file = importlib.util.spec_from_file_location(f"fla_{name.replace('/', '_')}", path)
    assert of_file is not None
    assert of_file.loader is not None
    module = importlib.util.module_from_spec(of_file)
    sys.modules[of_file.name] = module
    of_file.loader.exec_module(module)
    return module


def draw() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    arrays = {
        "q": normal(B, T, K, H), "k": normal(B, T, K, H), "v": normal(B, T, K, V),
        "unit": unit(normal(B, T, K, H)), "positive": np.abs(normal(B, T, K, H)), "sure": np.abs(normal(B, T, K, H)),
        "beta": rng.uniform(0, 1, (B, T, K)), "decay": -np.abs(normal(B, T, K)),
        "decays": -np.abs(normal(B, T, K, H)), "bonus": normal(K, H), "state": normal(B, K, H, V),
    }  # fmt: skip
    return {name: x.astype(np.float32) for name, x in arrays.items()}


def turned(function):
    """For references with heads before tokens."""

    def call(*tensors):
        found = function(*(x.transpose(1, 2) if x.ndim >= 3 else x for x in tensors))
        return found.transpose(1, 2)

    return call


def ours(mechanism, *arrays, state=None, **knobs):
    """Outputs, and the last state if there is a first one."""
    if state is None:
        return (mechanism(*arrays, chunk_size=CHUNK, **knobs),)
    given = linear.State(state[:, :, None])
    out, last = mechanism(*arrays, chunk_size=CHUNK, state=given, return_state=True, **knobs)
    return out, last.value[:, :, 0]


scaled = lambda q: q * q.shape[-1] ** -0.5

# File, names of arrays, what it computes of them, and what that is here: outputs, and the last state where one is given.
FLA = {
    "retention": (
        "retention/naive", ("q", "k", "v"),
        lambda of, *x: (turned(of.naive_retention)(*x),),
        lambda *x: ours(linear.retention, *x),
    ),
    "linear attention": (
        "linear_attn/naive", ("q", "k", "v", "state"),
        lambda of, q, k, v, s: of.naive_recurrent_linear_attn(q, k, v, initial_state=s, output_final_state=True),
        lambda q, k, v, s: ours(linear.attend, scaled(q), k, v, state=s),
    ),
    "normalized linear attention": (
        "linear_attn/naive", ("positive", "sure", "v"),
        lambda of, *x: of.naive_recurrent_linear_attn(*x, normalize=True)[:1],
        lambda *x: ours(linear.linear_attention, *x, feature_map=lambda x: x),
    ),
    "decay by token": (
        "simple_gla/naive", ("q", "k", "v", "decay", "state"),
        lambda of, q, k, v, a, s: of.naive_recurrent_simple_gla(q, k, v, a, initial_state=s),
        lambda q, k, v, a, s: ours(linear.attend, scaled(q), k, v, log_decay=a, state=s),
    ),
    "gated linear attention": (
        "gla/naive", ("q", "k", "v", "decays", "state"),
        lambda of, *x: of.naive_recurrent_gla(*x, output_final_state=True),
        lambda q, k, v, a, s: ours(linear.gated_linear_attention, q, k, v, a, state=s),
    ),
    "RWKV-6": (
        "rwkv6/recurrent_naive", ("q", "k", "v", "decays", "bonus"),
        lambda of, *x: (turned(lambda *y: of.naive_recurrent_rwkv6(*y)[0])(*x),),
        lambda q, k, v, a, u: ours(linear.attend, scaled(q), k, v, log_decay=a, exclusive=True, bonus=u),
    ),
    "delta rule": (
        "delta_rule/naive", ("q", "unit", "v", "beta"),
        lambda of, *x: (turned(lambda *y: of.delta_rule_recurrence(*y)[0])(*x),),
        lambda *x: ours(linear.delta_rule, *x),
    ),
    "delta rule in chunks": (
        "delta_rule/naive", ("q", "unit", "v", "beta"),
        lambda of, *x: (turned(lambda *y: of.delta_rule_chunkwise(*y, chunk_size=8)[0])(*x),),
        lambda *x: ours(linear.delta_rule, *x),
    ),
    "gated delta rule": (
        "gated_delta_rule/naive", ("q", "unit", "v", "beta", "decay", "state"),
        lambda of, *x: of.naive_recurrent_gated_delta_rule(*x[:5], initial_state=x[5], output_final_state=True),
        lambda q, k, v, beta, a, s: ours(linear.delta_rule, q, k, v, beta, a, state=s),
    ),
    "delta rule with decay by feature": (
        "kda/naive", ("q", "unit", "v", "decays", "beta", "state"),
        lambda of, *x: of.naive_recurrent_kda(*x[:5], initial_state=x[5], output_final_state=True),
        lambda q, k, v, a, beta, s: ours(linear.delta_rule, q, k, v, beta, a, state=s),
    ),
    "cut off exponentials": (
        "based/naive", ("q", "k", "v"),
        lambda of, *x: (turned(of.naive_parallel_based)(*x),),
        lambda *x: ours(linear.fastmax, *x),
    ),
}  # fmt: skip


def compare(arrays, theirs, ours):
    """Outputs of all kinds, and gradients of the sum of their squares by every array."""
    torch = importlib.import_module("torch")
    leaves = [torch.tensor(x, requires_grad=True) for x in arrays]
    wanted = theirs(*leaves)
    sum((x**2).sum() for x in wanted).backward()
    energy = lambda *x: sum((y**2).sum() for y in ours(*x))
    gradient = jax.grad(energy, tuple(range(len(arrays))))
    both = jax.jit(lambda *x: (ours(*x), gradient(*x)), compiler_options={"xla_backend_optimization_level": 0})
    found, moved = both(*(jnp.asarray(x) for x in arrays))
    assert_close(found, tuple(x.detach().numpy() for x in wanted))
    assert_close(moved, tuple(x.grad.numpy() for x in leaves), kind="derivative")


@pytest.mark.oracle("torch", "fla", "einops")
@pytest.mark.parametrize("name", FLA)
def test_flash_linear_attention(name):
    """Recurrences written in torch, in float32, by other people: layouts and scales are theirs."""
    file, names, theirs, here = FLA[name]
    drawn = draw()
    compare([drawn[x] for x in names], functools.partial(theirs, reference(file)), here)


def inputs_of_a_state_space(channels: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    arrays = {
        "x": rng.standard_normal((B, T, *channels)), "step": rng.uniform(0.01, 1, (B, T, channels[0])),
        "b": rng.standard_normal((B, T, H)), "c": rng.standard_normal((B, T, H)),
        "skip": rng.standard_normal(channels[0]),
    }  # fmt: skip
    return {name: x.astype(np.float32) for name, x in arrays.items()}


@pytest.mark.oracle("torch", "transformers")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_mamba_2():
    """Its scan in chunks, padded at the end: two sequences, four heads that share readers and writers, the last state."""
    theirs = importlib.import_module("transformers.models.mamba2.modeling_mamba2").mamba2_chunk_scan
    arrays = inputs_of_a_state_space((4, V)) | {"rate": -np.arange(1, 5, dtype=np.float32)}

    def scan(x, step, b, c, skip, rate):
        b, c = b[:, :, None], c[:, :, None]
        out, last = theirs(x, step, rate, b, c, chunk_size=CHUNK, D=skip, return_final_states=True)
        return out, last.transpose(-1, -2)

    def here(x, step, b, c, skip, rate):
        b, c = (jnp.broadcast_to(y[:, :, None], (B, T, 4, H)) for y in (b, c))
        out, last = linear.state_space(c, b, x, step, rate, skip, chunk_size=CHUNK, return_state=True)
        return out, last.value[:, :, 0]

    compare(list(arrays.values()), scan, here)


@pytest.mark.oracle("torch", "transformers")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_mamba():
    """Its selective scan, with heads before tokens, and the last state."""
    theirs = importlib.import_module("transformers.models.mamba.modeling_mamba").mamba_selective_scan
    rate = -np.abs(np.random.default_rng(2).standard_normal((3, H))).astype(np.float32)
    arrays = inputs_of_a_state_space((3,)) | {"rate": rate}

    def scan(x, step, b, c, skip, rate):
        x, step, b, c = (y.transpose(1, 2) for y in (x, step, b, c))
        out, last = theirs(x, step, rate, b, c, D=skip, return_last_state=True)
        return out.transpose(1, 2), last

    def here(x, step, b, c, skip, rate):
        out, last = linear.selective_state_space(c, b, x, step, rate, skip, return_state=True)
        return out, last.value[:, :, 0, :, 0]

    compare(list(arrays.values()), scan, here)
