"""What is special to each linear-time mechanism in a layer: what is projected, which gates it has, what it calls."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax import linear

from ._gates import LowRank, Steps, step_bias, wide


class Size(NamedTuple):
    """Of a layer, and where it stands.

    Attributes:
        model_dim: D.
        heads: N, of queries, keys and values alike.
        key_dim: H.
        value_dim: V.
        layer: from 0.
        layers: how many the model has.
        param_dtype: of the parameters.
    """

    model_dim: int
    heads: int
    key_dim: int
    value_dim: int
    layer: int
    layers: int
    param_dtype: Any


class Mechanism(nnx.Module):
    """A description: how the layer prepares queries, keys and values, and what is made of them.

    Each has a method ``(x, *what it projects, **run)`` that returns outputs ``[*B, T, N, V]``, and the state if ``run``
    asks for it.

    Attributes:
        projects: what is projected from the input, and how wide a head of it is.
        activated: what goes through ``silu``.
        standard: whether heads of queries and keys are brought to mean 0 and variance 1.
        unit: whether they are brought to length 1.
        rotary: whether they are rotated by their positions.
    """

    projects = (("query", "key_dim"), ("key", "key_dim"), ("value", "value_dim"))
    activated: tuple[str, ...] = ()
    standard = False
    unit = False
    rotary = False

    def __init__(self, size: Size, rngs: nnx.Rngs):
        pass


def options_of(size: Size, rngs: nnx.Rngs) -> dict[str, Any]:
    return dict(param_dtype=jnp.promote_types(size.param_dtype, jnp.float32), rngs=rngs)


class LinearAttention(Mechanism):
    """elu + 1 of both sides, divided by the sum of weights (Katharopoulos et al., 2020, arXiv 2006.16236)."""

    def __call__(self, x, query, key, value, **run):
        return linear.linear_attention(query, key, value, **run)


class Taylor(Mechanism):
    """1 + s + s^2 / 2 of the score, as in Based (Arora et al., 2024, arXiv 2402.18668); theirs has ``key_dim=16``."""

    def __call__(self, x, query, key, value, **run):
        return linear.fastmax(query, key, value, **run)


class Fastmax(Mechanism):
    """The same with queries and keys standardized (Gerami et al., 2024, arXiv 2402.07901)."""

    standard = True

    def __call__(self, x, query, key, value, **run):
        return linear.fastmax(query, key, value, **run)


class LogNormal(Mechanism):
    """Exponential features at the scales of softmax (Nahshan et al., 2023, arXiv 2311.13541).

    Deviation: each query and key has standard deviation one; theirs is that of a whole sequence, future included.
    """

    standard = True

    def __call__(self, x, query, key, value, **run):
        one = jnp.ones((), query.dtype)
        alpha, beta = linear.log_normal_scales(one, one)
        return linear.log_normal(query, key, value, alpha, beta, **run)


class FlowAttention(Mechanism):
    """Keys compete and queries are allotted (Wu et al., 2022, Flowformer, arXiv 2202.06258)."""

    def __call__(self, x, query, key, value, **run):
        return linear.flow_attention(query, key, value, **run)


class InjectiveAttention(Mechanism):
    """Scores less their mean (Han et al., 2024, arXiv 2412.06590), here over the tokens so far."""

    def __call__(self, x, query, key, value, **run):
        return linear.injective_attention(query, key, value, causal=True, **run)


class EnhancedLinearAttention(Mechanism):
    """relu of both sides and a learned temperature (Zheng, 2025, L2ViT, arXiv 2501.16182)."""

    def __init__(self, size, rngs):
        self.temperature = nnx.Param(jnp.full(size.heads, size.key_dim**-0.5, size.param_dtype))

    def __call__(self, x, query, key, value, **run):
        return linear.enhanced_linear_attention(query, key, value, self.temperature[...], causal=True, **run)


def _in_dtype(decay: Any, like: Any) -> Any:
    return decay.astype(jnp.promote_types(like.dtype, jnp.float32))


class Retention(Mechanism):
    """A fixed decay for each head, queries and keys rotated (Sun et al., 2023, arXiv 2307.08621)."""

    rotary = True

    def __call__(self, x, query, key, value, **run):
        return linear.retention(query, key, value, _in_dtype(linear.retention_decay(key.shape[-2]), key), **run)


class Lightning(Mechanism):
    """A fixed decay for each head and layer (Qin et al., 2024, arXiv 2405.17381)."""

    activated = ("query", "key", "value")

    def __init__(self, size, rngs):
        self.place = size.heads, size.layer, max(size.layers, 2)

    def __call__(self, x, query, key, value, **run):
        return linear.retention(query, key, value, _in_dtype(linear.lightning_decay(*self.place), key), **run)


class GatedLinearAttention(Mechanism):
    """A decay for each feature, ``log_sigmoid(x W_1 W_2 + b) / 16`` (Yang et al., 2023, arXiv 2312.06635)."""

    def __init__(self, size, rngs):
        options = options_of(size, rngs)
        self.decay = LowRank(size.model_dim, size.heads, size.key_dim, rank=16, use_bias=True, **options)

    def __call__(self, x, query, key, value, **run):
        return linear.gated_linear_attention(query, key, value, jax.nn.log_sigmoid(self.decay(x)) / 16, **run)


class LightNet(Mechanism):
    """A softmax over the keys so far for each feature (Qin et al., 2024, arXiv 2405.21022)."""

    activated = ("query",)

    def __call__(self, x, query, key, value, **run):
        return linear.light_net(query, key, value, **run)


class Latte(Mechanism):
    """``key_dim`` latents for each head (Dolga et al., 2024, arXiv 2402.17512)."""

    def __call__(self, x, query, key, value, **run):
        return linear.latte(query, key, value, **run)


class Aaren(Mechanism):
    """Softmax attention of one learned query for each head (Feng et al., 2024, arXiv 2405.13956)."""

    projects = (("key", "key_dim"), ("value", "value_dim"))

    def __init__(self, size, rngs):
        start = jax.random.normal(rngs.params(), (size.heads, size.key_dim), size.param_dtype)
        self.query = nnx.Param(start)

    def __call__(self, x, key, value, **run):
        return linear.aaren(self.query[...].astype(key.dtype), key, value, **run)


class MovingAverage(Mechanism):
    """``key_dim`` damped averages of each channel (Ma et al., 2022, Mega, arXiv 2209.10655); no query, no key."""

    projects = (("value", "value_dim"),)

    def __init__(self, size, rngs):
        shape, dtype = (size.heads * size.value_dim, size.key_dim), options_of(size, rngs)["param_dtype"]
        draw = lambda scale: scale * jax.random.normal(rngs.params(), shape, dtype)
        signs = jnp.where(jnp.arange(size.key_dim) % 2, -1.0, 1.0).astype(dtype)[None]
        self.weight, self.damping = nnx.Param(draw(0.2)), nnx.Param(draw(0.2))
        self.expand, self.read = nnx.Param(signs + draw(0.02)), nnx.Param(draw(1.0))

    def __call__(self, x, value, **run):
        sides = jax.nn.sigmoid(self.weight[...]), jax.nn.sigmoid(self.damping[...])
        flat = value.reshape(*value.shape[:-2], -1)
        found = linear.moving_average(flat, *sides, self.expand[...], self.read[...], **run)
        return (found[0].reshape(value.shape), found[1]) if isinstance(found, tuple) else found.reshape(value.shape)


def _spread(size: Size, first: float, last: float, features: int) -> nnx.Param:
    """Numbers from ``first`` to ``last`` over the features of every head."""
    one = jnp.linspace(first, last, features, dtype=jnp.promote_types(size.param_dtype, jnp.float32))
    return nnx.Param(jnp.tile(one, (size.heads, 1)))


class Wkv(Mechanism):
    """RWKV-4: a weighted mean for each channel, with a learned decay and own weight (Peng et al., 2023, arXiv
    2305.13048). Deviation: decays start at rates exp(-5) to exp(0), evenly in the exponent."""

    projects = (("key", "value_dim"), ("value", "value_dim"))

    def __init__(self, size, rngs):
        self.rate = _spread(size, -5.0, 0.0, size.value_dim)
        self.own = _spread(size, 0.0, 0.0, size.value_dim)

    def __call__(self, x, key, value, **run):
        flat = lambda a: a.reshape(*a.shape[: value.ndim - 2], -1)
        rate, own = jnp.exp(wide(self.rate[...])).reshape(-1), wide(self.own[...]).reshape(-1)
        found = linear.wkv(flat(key), flat(value), rate, own, **run)
        return (found[0].reshape(value.shape), found[1]) if isinstance(found, tuple) else found.reshape(value.shape)


class Rwkv6(Mechanism):
    """RWKV-6: a decay for each feature, ``exp(-exp(tanh(x W_1) W_2 + b))``, read before it and its own write with a
    learned weight (Peng et al., 2024, Eagle and Finch, arXiv 2404.05892). Deviation: b starts evenly between -6 and
    -1, the own write's weight at one, as if it were read as others are."""

    def __init__(self, size, rngs):
        options = options_of(size, rngs)
        self.decay = LowRank(size.model_dim, size.heads, size.key_dim, rank=32, use_bias=False, **options)
        self.rate = _spread(size, -6.0, -1.0, size.key_dim)
        self.bonus = nnx.Param(jnp.ones((size.heads, size.key_dim), options["param_dtype"]))

    def __call__(self, x, query, key, value, **run):
        found = self.decay(x, jnp.tanh)
        logs = found + self.rate[...].reshape((1,) * (found.ndim - 2) + found.shape[-2:])
        knobs = {"log_decay": -jnp.exp(logs), "exclusive": True, "bonus": self.bonus[...]}
        return linear.attend(query, key, value, **knobs, **run)


class StateSpace(Mechanism):
    """Mamba-2: a step for each head, from which its decay follows, and a skip (Dao and Gu, 2024, arXiv 2405.21060).

    Deviation: every head has readers and writers of its own; outputs are normalized before they are gated.
    """

    activated = ("query", "key", "value")

    def __init__(self, size, rngs):
        options = options_of(size, rngs)
        self.steps = Steps(size.model_dim, size.heads, **options)
        self.log_rate = nnx.Param(jnp.log(jnp.arange(1, size.heads + 1, dtype=options["param_dtype"])))
        self.skip = nnx.Param(jnp.ones(size.heads, options["param_dtype"]))

    def __call__(self, x, query, key, value, **run):
        rate = -jnp.exp(self.log_rate[...])
        return linear.state_space(query, key, value, self.steps(x), rate, self.skip[...], **run)


class SelectiveStateSpace(Mechanism):
    """Mamba: readers and writers of ``key_dim`` numbers, and a step for each channel, all read off the convolved input
    (Gu and Dao, 2023, arXiv 2312.00752)."""

    projects = (("value", "value_dim"),)
    activated = ("value",)

    def __init__(self, size, rngs):
        options, channels = options_of(size, rngs), size.heads * size.value_dim
        self.reader = nnx.Linear(channels, size.key_dim, use_bias=False, **options)
        self.writer = nnx.Linear(channels, size.key_dim, use_bias=False, **options)
        self.steps = LowRank(channels, 1, channels, rank=-(-size.model_dim // 16), use_bias=False, **options)
        self.bias = step_bias((channels,), **options)
        rates = jnp.log(jnp.arange(1, size.key_dim + 1, dtype=options["param_dtype"]))
        self.log_rate = nnx.Param(jnp.tile(rates, (channels, 1)))
        self.skip = nnx.Param(jnp.ones(channels, options["param_dtype"]))

    def __call__(self, x, value, **run):
        u = wide(value.reshape(*value.shape[:-2], -1))
        step = jax.nn.softplus(self.steps(u)[..., 0, :] + self.bias[...].reshape((1,) * (u.ndim - 1) + (-1,)))
        rate, skip = -jnp.exp(self.log_rate[...]), self.skip[...]
        found = linear.selective_state_space(self.reader(u), self.writer(u), u, step, rate, skip, **run)
        out, *state = found if isinstance(found, tuple) else (found,)
        out = out.reshape(value.shape).astype(value.dtype)
        return (out, state[0]) if state else out
