"""The layer around linear-time mechanisms, and convolutions: what is said of each by its name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import linear
from attnjax.nn import MECHANISMS, BaseConv, LightConv, LinearAttention
from attnjax.positions import rotary

BATCH, BEFORE, LENGTH, WIDTH, PROMPT = 2, 3, 9, 8, 5
NAMES = [*MECHANISMS, "base_conv", "light_conv", "dynamic_conv"]
QUICKLY = {"xla_backend_optimization_level": 0}
RELATIVES = {
    "taylor", "log_normal", "lightning", "latte", "wkv", "kimi_delta_rule", "moneta", "yaad", "memora", "elastic_net",
    "neural_memory", "flow_attention", "fastmax", "light_net", "aaren", "light_conv", "injective_attention", "enhanced_linear_attention", "selective_state_space", "moving_average", "delta_rule",
}  # fmt: skip
each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in RELATIVES else []) for name in NAMES]
)


def layer(name, **options):
    options = {"rngs": nnx.Rngs(1), **options}
    if name == "base_conv":
        return BaseConv(WIDTH, kernel_size=3, **options)
    if name.endswith("_conv"):
        return LightConv(WIDTH, 2, kernel_size=3, dynamic=name == "dynamic_conv", **options)
    return LinearAttention(WIDTH, 2, name, key_dim=4, value_dim=3, layer=1, layers=3, chunk_size=4, **options)


@functools.cache
def found(name):
    """Tokens of one segment after another's, and the same tokens alone: a prompt, then one by one."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        graph, params = nnx.split(layer(name, param_dtype=jnp.float64))
        x = jax.random.normal(jax.random.key(0), (BATCH, BEFORE + LENGTH, WIDTH), jnp.float64)
        segments = jnp.broadcast_to(jnp.arange(BEFORE + LENGTH) >= BEFORE, x.shape[:2]).astype(int)

        def run(params, x):
            module, own = nnx.merge(graph, params), x[:, BEFORE:]

            def step(state, token):
                y, state = module(token[:, None], state=state, return_state=True, form="recurrent")
                return state, y[:, 0]

            first, state = module(own[:, :PROMPT], return_state=True)
            last, rest = jax.lax.scan(step, state, jnp.moveaxis(own[:, PROMPT:], 1, 0))
            packed, end = module(x, segment_ids=segments, return_state=True)
            stepwise = jnp.concatenate([first, jnp.moveaxis(rest, 0, 1)], 1)
            memory = lambda state: [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]  # not how many were seen
            return (stepwise, memory(last)), (packed[:, BEFORE:], memory(end))

        return jax.tree.map(np.asarray, jax.jit(run, compiler_options=QUICKLY)(params, x))


def close(a, b, atol=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-10), a, b)


@each
def test_token_by_token_is_the_whole_and_segments_are_alone(name):
    """Outputs and states, those of the convolution included."""
    (stepwise, state), (packed, end) = found(name)
    assert stepwise.dtype == np.float64
    assert stepwise.std() > 0.01
    close(stepwise, packed)
    if name != "retention":  # what it holds is rotated by positions, of which only differences are read
        close(state, end)


def test_a_long_kernel_by_fourier_is_the_one_that_decodes():
    x = jax.random.normal(jax.random.key(0), (BATCH, LENGTH, WIDTH))
    module = BaseConv(WIDTH, kernel_size=LENGTH + 1, implicit=True, residual=True, rngs=nnx.Rngs(0))

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def both(x):
        first, state = module(x[:, :PROMPT], return_state=True)
        return jnp.concatenate([first, module(x[:, PROMPT:], state=state)], 1), module(x)

    close(*map(np.asarray, both(x)), atol=1e-5)


def test_is_projections_around_the_mechanism():
    """Without convolution and gate, retention written out."""
    module = LinearAttention(WIDTH, 2, "retention", kernel_size=None, gate=False, rngs=nnx.Rngs(0))

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def both(x):
        q, k, v = jnp.moveaxis((x @ module.project.kernel[...]).reshape(BATCH, LENGTH, 3, 2, 4), 2, 0)
        q, k = (rotary(a, jnp.arange(LENGTH)) for a in (q, k))
        o = jnp.asarray(linear.retention(q, k, v))
        o = o / jnp.sqrt(jnp.mean(o**2, -1, keepdims=True) + 1e-6)
        return module(x), o.reshape(BATCH, LENGTH, -1) @ module.out.kernel[...]

    close(*map(np.asarray, both(jax.random.normal(jax.random.key(0), (BATCH, LENGTH, WIDTH)))), atol=1e-5)


def test_gates_are_float32_where_the_rest_is_not():
    options: dict = dict(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    module = LinearAttention(WIDTH, 2, "gated_delta_rule", **options)
    x = jax.ShapeDtypeStruct((1, 4, WIDTH), jnp.bfloat16)
    y, *state = jax.eval_shape(lambda x: jax.tree.leaves(module(x, return_state=True)), x)
    assert y.dtype == jnp.bfloat16
    assert [leaf.dtype.name for leaf in state] == ["float32", "bfloat16", "int32"]  # memory, taps, tokens seen
    assert jax.eval_shape(module.mechanism.steps, x).dtype == jnp.float32


def test_every_parameter_has_a_gradient():
    graph, params, rest = nnx.split(layer("gated_delta_rule"), nnx.Param, ...)
    x = jax.random.normal(jax.random.key(0), (1, 4, WIDTH))
    loss = lambda params: (nnx.merge(graph, params, rest)(x) ** 2).sum()
    gradient = jax.jit(jax.grad(loss), compiler_options=QUICKLY)(params)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mechanism": "delta"}, "mechanism: got 'delta', wanted one of linear_attention, .*delta_rule"),
        ({"kernel_size": 0}, "kernel_size: got 0, wanted a positive number"),
        ({"heads": 3}, "heads: got 3, wanted a divisor of model_dim = 8, or give key_dim, value_dim"),
    ],
)
def test_mistakes_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        LinearAttention(**{"model_dim": 8, "heads": 2, "rngs": nnx.Rngs(0), **options})
    with pytest.raises(ValueError, match="heads: got 3, wanted a divisor of model_dim = 8"):
        LightConv(8, 3, rngs=nnx.Rngs(0))
