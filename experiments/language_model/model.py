"""The language model of the experiment: which attention, which mask, which positions, and what is measured in it."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from attnjax import masks, normalizers, scores, statistics
from attnjax.nn import Attention as SoftmaxAttention
from attnjax.nn import TransformerLM
from experiments.framework.context import UsageError
from experiments.language_model.corpus import START

Attention = Literal[
    "softmax",
    "softmax-sink",
    "softmax-plus-one",
    "log-n",
    "sigmoid",
    "sigmoid-bias",
    "relu",
    "relu-squared",
    "signed-softmax",
    "entmax15",
    "sparsemax",
    "linear-attention",
    "taylor",
    "retention",
    "gated-linear-attention",
    "rwkv6",
    "state-space",
    "delta-rule",
    "gated-delta-rule",
    "titans",
]
Positions = Literal["rotary", "alibi", "none"]

_NORMALIZERS: dict[str, Callable[[int, int], Any]] = {  # from the number of heads and the context length
    "softmax": lambda heads, context: normalizers.softmax(),
    "softmax-sink": lambda heads, context: normalizers.softmax(sink=jnp.zeros(heads)),
    "softmax-plus-one": lambda heads, context: normalizers.softmax_plus_one(),
    "log-n": lambda heads, context: normalizers.log_n_softmax(jnp.full(heads, 1 / np.log(context), jnp.float32)),
    "sigmoid": lambda heads, context: normalizers.sigmoid(),
    "sigmoid-bias": lambda heads, context: normalizers.sigmoid(jnp.full(heads, -np.log(context), jnp.float32)),
    "relu": lambda heads, context: normalizers.relu(),
    "relu-squared": lambda heads, context: normalizers.relu_squared(),
    "signed-softmax": lambda heads, context: normalizers.signed_softmax(),
    "entmax15": lambda heads, context: normalizers.entmax15(),
    "sparsemax": lambda heads, context: normalizers.sparsemax(),
}
_LINEAR = tuple(name for name in get_args(Attention) if name not in _NORMALIZERS)  # linear time, no weights
_LEARNED = ("softmax-sink", "log-n", "sigmoid-bias")  # those whose arrays, one number for each head, are trained


class Parts(NamedTuple):
    """A model taken apart, as `jax.jit` wants it; `nnx.merge` puts it together again.

    Attributes:
        graph: Structure, static.
        params: What is trained.
        rest: Arrays that are not.
    """

    graph: Any
    params: Any
    rest: Any

    def model(self, params: Any) -> TransformerLM:
        """The model with other parameters."""
        return nnx.merge(self.graph, params, self.rest)


def build(config: Any, attention: Attention) -> Parts:
    """A freshly initialized model for `config`, a `language_model.Config`.

    Raises:
        UsageError: Settings that do not go together.
    """
    if config.sinks and config.window is None:
        raise UsageError("--sinks: keys kept beside a window, so give --window too.")
    mask = masks.causal()
    if config.window is not None:
        mask = mask & (masks.window(config.window) | masks.sinks(config.sinks))
    slopes = 2.0 ** (-8 * jnp.arange(1, config.heads + 1) / config.heads)
    try:
        model = TransformerLM(
            256,
            config.width,
            layers=config.layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            activation=squared_relu,
            mixer=attention.replace("-", "_") if attention in _LINEAR else "softmax",
            mask=mask,
            score=scores.alibi(slopes) if config.positions == "alibi" else None,
            rotary_base=10000.0 if config.positions == "rotary" else None,
            normalizer=None if attention in _LINEAR else _NORMALIZERS[attention](config.heads, config.context),
            trainable=("normalizer",) if attention in _LEARNED else (),
            rngs=nnx.Rngs(config.seed),
        )
    except ValueError as error:
        raise UsageError(f"these settings make no model: {error}") from error
    return Parts(*nnx.split(model, nnx.Param, ...))


def squared_relu(x: Array) -> Array:
    """`max(x, 0)^2`, as good as GELU here and cheaper on a CPU (So et al., 2021, Primer, arXiv 2109.08668)."""
    return jnp.square(jax.nn.relu(x))


def nats(logits: Float[Array, "*B T 256"], targets: Int[Array, "*B T"]) -> Float[Array, "*B T"]:
    """`-log p(target)` at every position."""
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def inputs(window: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """What the model reads to predict `window`: `START`, then the window without its last byte."""
    return jnp.pad(window[:, :-1], ((0, 0), (1, 0)), constant_values=START)


class Measured(NamedTuple):
    """Attention on a fixed batch of held-out text, as means over batch and queries; NaN where it has no weights.

    Attributes:
        bits: Bits per byte on the batch.
        entropy: `[L, N]`, in nats, of each row's weights divided by their sum.
        sink: `[L, N]`: weight on the first key, as it is.
        share: `[L, N]`: the same divided by the row's total weight, which is 1 for softmax.
        far_share: `[L, N, W]`: for each window, the share over the queries of its second half alone, for which the
            first key is one of more than T / 2; uniform attention has about 1.4 / T.
        far_weight: `[L, N, W]`: the same, not divided by the row's total weight.
        key_mass: `[L, N, T]`: weight that each key receives, per query that may see it.
    """

    bits: Any
    entropy: Any
    sink: Any
    share: Any
    far_share: Any
    far_weight: Any
    key_mass: Any


def measure(model: TransformerLM, window: Int[Array, "B T"]) -> Measured:
    """Statistics of every layer and head, streamed beside the output by `attnjax.attend`."""
    length = window.shape[-1]
    layers = [block.attention for block in model.blocks]
    if not isinstance(layers[0], SoftmaxAttention):
        bits = nats(model(inputs(window)), window).mean() / jnp.log(2.0)
        unknown = lambda *shape: jnp.full((len(layers), layers[0].heads, *shape), jnp.nan)
        each = unknown(len(window))
        return Measured(bits, unknown(), unknown(), unknown(), each, each, unknown(length))
    first = statistics.mass_on(masks.sinks(1), name="first")
    total = statistics.mass_on(masks.sinks(length), name="total")
    logits, found = model(inputs(window), stats=("entropy", "key_mass", first, total))
    share = found["first"] / jnp.where(found["total"] > 0, found["total"], 1)  # [L, B, T, N]
    readers = (length - jnp.arange(length)).reshape(1, 1, length)
    return Measured(
        bits=nats(logits, window).mean() / jnp.log(2.0),
        entropy=found["entropy"].mean((1, 2)),
        sink=found["first"].mean((1, 2)),
        share=share.mean((1, 2)),
        far_share=share[:, :, length // 2 :].mean(2).swapaxes(1, 2),
        far_weight=found["first"][:, :, length // 2 :].mean(2).swapaxes(1, 2),
        key_mass=found["key_mass"].mean(1).swapaxes(1, 2) / readers,
    )


def uniform_sink(length: int, *, start: int = 0) -> float:
    """Mean weight of the first key over queries `start .. length - 1` when all visible keys weigh the same."""
    return float(np.mean(1 / np.arange(start + 1, length + 1)))


def generate(
    model: TransformerLM, key: Array, prompt: bytes, *, context: int, length: int, temperature: float
) -> bytes:
    """Continue `prompt` by `length` bytes, each drawn from `p^(1 / temperature)` given the last `context - 1` bytes."""
    prompt = prompt[-(context - 1) :]
    held = jnp.zeros(context, jnp.int32).at[1 : len(prompt) + 1].set(jnp.array(list(prompt), jnp.int32))

    def step(carry, key):
        held, count = carry  # held[:count] is START and the text so far
        logits = model(held[None])[0, count - 1]
        drawn = jax.random.categorical(key, logits / temperature)
        full = count == context
        held = jnp.where(full, jnp.concatenate([held[:1], held[2:], held[:1]]), held)
        count = jnp.where(full, count - 1, count)
        return (held.at[count].set(drawn), count + 1), drawn

    drawn = jax.lax.scan(step, (held, jnp.int32(len(prompt) + 1)), jax.random.split(key, length))[1]
    return bytes(np.asarray(drawn).astype(np.uint8))
