"""Independent implementations: ``jax.nn``, torch on CPU, entmax."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import BlockSizes, attend, attention_weights, masks, normalizers, scores
from tests.tolerances import assert_close

FORMS = ("dense", "blocks")
BLOCKS = BlockSizes(16, 24)
B, T, S, N, K, H, V = 2, 40, 40, 4, 2, 8, 8


def arrays(queries: int = T) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (B, queries, N, H), (B, S, K, H), (B, S, K, V)
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))


JAX_NN = {
    "causal": ({"is_causal": True}, {"mask": masks.causal()}),
    "window": ({"local_window_size": (5, 3)}, {"mask": masks.window(5, 3)}),
    "causal window": ({"is_causal": True, "local_window_size": (7, 0)}, {"mask": masks.window(7)}),
    "key lengths": (
        {"key_value_seq_lengths": jnp.array([11, 40])},
        {"mask": masks.lengths(kv_lengths=jnp.array([11, 40]))},
    ),
    "scale": ({"scale": 0.3}, {"scale": 0.3}),
    "bias": (
        {"bias": jnp.sin(jnp.arange(N * T * S, dtype=jnp.float32)).reshape(1, N, T, S)},
        {"score": scores.bias(jnp.sin(jnp.arange(N * T * S, dtype=jnp.float32)).reshape(1, N, T, S))},
    ),
    "mask": (
        {"mask": (jnp.arange(T)[:, None] * 7 % 5 >= jnp.arange(S)[None] % 4)[None, None]},
        {"mask": masks.from_array(jnp.arange(T)[:, None] * 7 % 5 >= jnp.arange(S)[None] % 4)},
    ),
}


@pytest.mark.parametrize("name", JAX_NN)
def test_jax_nn(name):
    """``jax.nn.dot_product_attention`` with grouped queries: outputs and gradients of every visible row."""
    theirs, ours = JAX_NN[name]
    inputs = arrays()

    @jax.jit
    def everything(*inputs):
        def with_gradient(f):
            output, pull_back = jax.vjp(f, *inputs)
            return output, pull_back(jnp.cos(output))

        named = {form: with_gradient(
            lambda *x, form=form: attend(*x, **ours, implementation=form, block_sizes=BLOCKS)
        ) for form in FORMS}  # fmt: skip
        return named, with_gradient(lambda *x: jax.nn.dot_product_attention(*x, **theirs))

    named, (output, gradient) = everything(*inputs)
    for got, moved in named.values():
        assert_close(got, output)
        assert_close(moved, gradient, kind="derivative")


def to_torch(torch, x):
    """``[B, T, N, H]`` to torch's ``[B, N, T, H]``, as a leaf to differentiate."""
    return torch.tensor(np.asarray(x).swapaxes(1, 2).copy(), requires_grad=True)


def from_torch(x) -> np.ndarray:
    return x.detach().numpy().swapaxes(1, 2)


def compare_with_torch(torch, theirs, knobs: dict) -> None:
    """Outputs and gradients of ``(output^2).sum()``."""
    inputs = arrays()
    leaves = [to_torch(torch, x) for x in inputs]
    output = theirs(*leaves)
    (output**2).sum().backward()
    for form in FORMS:
        of = lambda *x, form=form: attend(*x, **knobs, implementation=form, block_sizes=BLOCKS)
        gradient = jax.grad(lambda *x, of=of: (of(*x) ** 2).sum(), (0, 1, 2))
        got, moved = jax.jit(lambda *x, of=of, gradient=gradient: (of(*x), gradient(*x)))(*inputs)
        assert_close(got, from_torch(output))
        assert_close(moved, tuple(from_torch(x.grad) for x in leaves), kind="derivative")


SDPA = {
    "causal": ({"is_causal": True}, {"mask": masks.causal()}),
    "plain, with a scale": ({"scale": 0.2}, {"scale": 0.2}),
}


@pytest.mark.oracle("torch")
@pytest.mark.parametrize("name", SDPA)
def test_torch_sdpa(name):
    """``scaled_dot_product_attention`` on CPU, grouped queries."""
    torch = importlib.import_module("torch")
    theirs, ours = SDPA[name]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    compare_with_torch(torch, lambda q, k, v: sdpa(q, k, v, enable_gqa=True, **theirs), ours)


# score_mod(score, b, h, q_idx, kv_idx) and mask_mod(b, h, q_idx, kv_idx), written for torch; and what they are here.
FLEX = {
    "alibi, causal": (
        lambda s, b, h, t, u: s - 0.1 * (h + 1) * abs(t - u),
        lambda b, h, t, u: u <= t,
        {"mask": masks.causal(), "score": scores.alibi(0.1 * jnp.arange(1.0, N + 1))},
    ),
    "window or sinks": (
        None,
        lambda b, h, t, u: (u <= t) & ((t - u <= 6) | (u < 2)),
        {"mask": masks.causal() & (masks.window(6) | masks.sinks(2))},
    ),
    "segments": (None, lambda b, h, t, u: t // 13 == u // 13, {"mask": masks.segments(jnp.arange(T) // 13)}),
    "prefix LM": (None, lambda b, h, t, u: (u <= t) | (u < 9), {"mask": masks.causal() | masks.prefix(9)}),
    "dilated": (
        None,
        lambda b, h, t, u: ((t - u) % 3 == 0) & (t - u <= 12) & (u <= t),
        {"mask": masks.dilated(3, 4)},
    ),
    "a user's functions": (
        lambda s, b, h, t, u: s * (1 + 0.1 * h) + 0.01 * (t * u % 7),
        lambda b, h, t, u: (t + u + h) % 3 != 1,
        {
            "score": scores.from_function(lambda s, b, n, t, u: s * (1 + 0.1 * n) + 0.01 * (t * u % 7)),
            "mask": masks.from_function(lambda b, n, t, u: (t + u + n) % 3 != 1),
        },
    ),
}


@pytest.mark.oracle("torch")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", FLEX)
def test_torch_flex_attention(name):
    """FlexAttention's own semantics, materialized by torch: ``create_mask`` and the eager score_mod."""
    torch = importlib.import_module("torch")
    flex = importlib.import_module("torch.nn.attention.flex_attention")
    score_mod, mask_mod, knobs = FLEX[name]
    # On CPU the kernel itself has no backward; torch's create_mask and vmap of score_mod define what it computes.
    indices = torch.meshgrid(*(torch.arange(n) for n in (B, N, T, S)), indexing="ij")
    visible = flex.create_mask(mask_mod, B, N, T, S, device="cpu")

    def theirs(q, k, v):
        k, v = (x.repeat_interleave(N // K, dim=1) for x in (k, v))
        score = q @ k.transpose(-1, -2) / math.sqrt(H)
        score = score if score_mod is None else score_mod(score, *indices)
        return torch.softmax(score.masked_fill(~visible, -math.inf), -1) @ v

    compare_with_torch(torch, theirs, knobs)
    with torch.no_grad():
        q, k, v = (to_torch(torch, x).detach() for x in arrays())
        block_mask = flex.create_block_mask(mask_mod, B, N, T, S, device="cpu")
        own = flex.flex_attention(q, k, v, score_mod=score_mod, block_mask=block_mask, enable_gqa=True)
    assert_close(jnp.asarray(from_torch(own)), from_torch(theirs(q, k, v)))


@pytest.mark.oracle("torch", "entmax")
@pytest.mark.parametrize("name", ["sparsemax", "entmax15"])
def test_entmax(name):
    """The package of entmax's authors: weights, and the gradient of the scores through them."""
    torch, entmax = importlib.import_module("torch"), importlib.import_module("entmax")
    score = 2 * jax.random.normal(jax.random.key(3), (1, 9, 21))
    cotangent = jax.random.normal(jax.random.key(4), score.shape)
    normalizer = getattr(normalizers, name)()
    q, k = jnp.zeros((9, 1, 1)), jnp.zeros((21, 1, 1))
    ours = lambda score: attention_weights(q, k, score=scores.bias(score), normalizer=normalizer)
    weights, pull_back = jax.vjp(ours, score)
    leaf = torch.tensor(np.asarray(score), requires_grad=True)
    theirs = getattr(entmax, name)(leaf, dim=-1)
    theirs.backward(torch.tensor(np.asarray(cotangent)))
    assert_close(weights, theirs.detach().numpy())
    assert_close(pull_back(cotangent)[0], leaf.grad.numpy(), kind="derivative")
