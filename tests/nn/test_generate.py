"""Decoding from states: caches of softmax layers, hybrids, sampling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from attnjax import masks, normalizers, scores
from attnjax.nn import Attention, LinearAttention, TransformerLM, generate

TOKENS = jax.random.randint(jax.random.key(0), (2, 9), 0, 11)
PROMPT = 4
WINDOW = masks.causal() & (masks.window(3) | masks.sinks(1))


def model(**options):
    options = {"layers": 1, "heads": 2, "mask": masks.causal(), "rngs": nnx.Rngs(0), **options}
    return TransformerLM(11, 8, **options)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(kv_heads=1, mask=WINDOW, rotary_base=None, score=scores.alibi(jnp.array([0.5, 0.25]))),
        dict(mask=masks.dilated(2, 3), normalizer=normalizers.softmax(sink=jnp.zeros(2)), rotary_base=None),
        dict(score=scores.relative_bias(jnp.linspace(0, 1, 7)), normalizer=normalizers.sigmoid(-2.0)),
    ],
    ids=["causal", "window", "dilated", "bias"],
)
def test_a_cache_gives_what_all_keys_give(options):
    """A prompt, then one token at a time, against all tokens at once."""
    with jax.enable_x64(True):
        options = {"mask": masks.causal(), "param_dtype": jnp.float64, "rngs": nnx.Rngs(0), **options}
        layer = Attention(8, 2, **options)
        check(layer, layer.empty((2,), 11), jax.random.normal(jax.random.key(0), (2, 9, 8), jnp.float64), atol=1e-10)


def test_a_hybrid_gives_the_logits_of_every_prefix():
    module = model(layers=3, mixer=("base_conv", "retention", "softmax"), linear={"kernel_size": 2})
    check(module, module.empty((2,), 11), TOKENS, atol=1e-5)


def check(module, empty, x, atol):
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def both(x):
        step = lambda state, token: module(token[:, None], state=state, return_state=True)[::-1]
        first, state = module(x[:, :PROMPT], state=empty, return_state=True)
        _, rest = jax.lax.scan(step, state, jnp.moveaxis(x[:, PROMPT:], 1, 0))
        return jnp.concatenate([first, jnp.moveaxis(rest[:, :, 0], 0, 1)], 1), module(x)

    stepwise, whole = map(np.asarray, both(x))
    assert stepwise.dtype == (np.float64 if atol < 1e-6 else np.float32)
    np.testing.assert_allclose(stepwise, whole, atol=atol)


def test_generation_is_drawing_from_the_whole_prefix():
    module, key = model(layers=2, mixer=("aaren", "softmax")), jax.random.key(5)
    drawn = generate(module, TOKENS[:, :PROMPT], 4, key=key, temperature=0.7)
    greedy = generate(module, TOKENS[:, :PROMPT], 4, temperature=0)
    assert drawn.shape == greedy.shape == (2, 4)
    whole = jax.jit(module)
    logits = lambda added: whole(jnp.concatenate([TOKENS[:, :PROMPT], added], 1))[:, PROMPT - 1 : -1]
    np.testing.assert_array_equal(jnp.argmax(logits(greedy), -1), greedy)
    keys = jax.random.split(key, 4)
    each = [jax.random.categorical(k, x / 0.7) for k, x in zip(keys, logits(drawn).swapaxes(0, 1), strict=True)]
    np.testing.assert_array_equal(np.stack(each, 1), drawn)


def test_packed_texts_do_not_see_each_other():
    module = model(layers=2, mixer=("softmax", "linear_attention"))
    ids = jnp.array([[0] * 3 + [1] * 6])
    both = jax.jit(lambda tokens: (module(tokens, segment_ids=ids, positions=None)[:, 3:], module(tokens[:, 3:])))
    np.testing.assert_allclose(*both(TOKENS[:1]), atol=1e-5)


def test_hybrids_repeat_their_layers():
    own = functools.partial(LinearAttention, mechanism="taylor", key_dim=2, kernel_size=None)
    module = model(layers=5, mixer=("softmax", "delta_rule", own), linear={"key_dim": 3})
    kinds = [type(block.attention).__name__ for block in module.blocks]
    assert kinds == ["Attention", "LinearAttention", "LinearAttention", "Attention", "LinearAttention"]
    assert [module.blocks[i].attention.widths for i in (1, 2)] == [(3, 3, 4), (2, 2, 4)]
    assert module.blocks[4].attention.widths == (3, 3, 4)
    _, found = jax.eval_shape(lambda tokens: module(tokens, stats=("entropy",)), TOKENS)
    assert found["entropy"].shape == (2, 2, 9, 2)  # of the layers that have it


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="mixer: got 'hyena', wanted one of softmax, base_conv, .*titans"):
        model(mixer="hyena")
    with pytest.raises(ValueError, match="mixer: got none"):
        model(mixer=())
    with pytest.raises(ValueError, match="of a model without softmax attention"):
        model(mixer="retention")(TOKENS, stats=("entropy",))
    module, prompt = model(), TOKENS[:, :PROMPT]
    with pytest.raises(ValueError, match="key: got None"):
        generate(module, prompt, 4)
    with pytest.raises(ValueError, match="temperature: got -1"):
        generate(module, prompt, 4, temperature=-1)
    with pytest.raises(ValueError, match="got 4 and 0 tokens"):
        generate(module, prompt, 0, temperature=0)
    with pytest.raises(NotImplementedError, match="mask: got .* of shape .*, with an axis of queries"):
        generate(model(mask=masks.from_array(jnp.tri(PROMPT, dtype=bool))), prompt, 4, temperature=0)
    with pytest.raises(ValueError, match="return_state: got no state to add to"):
        module(prompt, return_state=True)
    with pytest.raises(ValueError, match="got 4 tokens for a cache that holds 0 of 3"):
        module(prompt, state=module.empty((2,), 3), return_state=True)
    with pytest.raises(NotImplementedError, match="a state holds one segment"):
        module(prompt, state=module.empty((2,), 9), segment_ids=jnp.zeros((2, PROMPT), int))
