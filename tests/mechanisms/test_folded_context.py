"""Segments beside a memory of those before: what they see, and that this is what is written."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks, mechanisms
from tests.mechanisms.helpers import assert_near, draw, influence, once, traced, trained
from tests.references import mechanisms as reference

pytestmark = pytest.mark.usefixtures("x64")
D = 6


@functools.cache
def numbers():
    """Projections and tokens, float64."""
    rng = np.random.default_rng(0)
    shapes = (D, 2, 3), (D, 2, 3), (D, 2, 3), (2, 3, D)
    return mechanisms.FoldedContext(*(rng.standard_normal(s) * 0.5 for s in shapes)), rng.standard_normal((2, 20, D))


def run(x, **knobs):
    return once(lambda x, p: mechanisms.folded_context(x, p, **knobs))(x, traced(numbers()[0]))


def attention(x, mask):
    """The layer without segments."""
    p = numbers()[0]
    q, k, v = (jnp.einsum("btd,dnh->btnh", x, w) for w in p[:3])
    return x + jnp.einsum("btnv,nvd->btd", attend(q, k, v, mask=mask), p.out)


@pytest.mark.parametrize(("remember", "memory", "pool"), [("outputs", 5, 1), ("outputs", 3, 2), ("inputs", 5, 2)])
def test_it_is_what_is_written(remember, memory, pool):
    p, x = numbers()
    want = [reference.folded_context(row, p, 6, memory, pool, remember) for row in x]
    assert_near(run(x, segment=6, memory=memory, pool=pool, remember=remember), np.stack(want))


def test_no_memory_is_attention_in_blocks_and_all_inputs_are_causal_attention():
    x = jnp.asarray(numbers()[1])
    blocks, causal = once(
        lambda x: [attention(x, mask) for mask in (masks.causal() & masks.block_local(6), masks.causal())]
    )(x)
    for remember in ("outputs", "inputs"):
        assert_near(run(x, segment=6, memory=0, remember=remember), blocks)
    assert_near(run(x, segment=6, memory=20, remember="inputs"), causal)


def test_what_a_token_depends_on():
    """Of outputs, one state that is kept reaches all before it; of inputs, as many tokens as are kept."""
    p, x = traced(numbers())
    t, s = np.arange(20)[:, None], np.arange(20)[None, :]
    of = lambda memory, remember: lambda x: mechanisms.folded_context(x, p, segment=4, memory=memory, remember=remember)
    np.testing.assert_array_equal(influence(of(1, "outputs"), x[0]) > 0, s <= t)
    np.testing.assert_array_equal(influence(of(3, "inputs"), x[0]) > 0, (s <= t) & (s >= t // 4 * 4 - 3))


def test_twelve_tokens_at_a_time_carry_over_a_hundred_and_fifty():
    """What the first token does to the last: something by outputs, exactly nothing by inputs; memory of 2 states."""
    x, p = jnp.asarray(draw(150, D)), traced(numbers()[0])

    def last(first, remember):
        return mechanisms.folded_context(x.at[0].set(first), p, segment=12, memory=2, remember=remember)[-1]

    of = once(lambda first: {name: jax.jacfwd(last)(first, name) for name in ("outputs", "inputs")})
    moved = {name: float(jnp.max(jnp.abs(matrix))) for name, matrix in of(x[0]).items()}
    print(moved)
    assert moved["outputs"] > 1e-12
    assert moved["inputs"] == 0


@pytest.mark.slow
def test_a_sign_many_segments_back_is_learned_through_outputs_alone():
    """The first of 60 tokens says which of two, asked at the last, in segments of 12 and a memory of 4."""

    def sequences(key, count):
        noise, sign = jax.random.split(key)
        signs = jax.random.rademacher(sign, (count,), jnp.float32)
        x = jax.random.normal(noise, (count, 60, 8), jnp.float32).at[..., 0].set(0.0)
        return x.at[:, 0, 0].set(4 * signs), signs

    def margins(parameters, key, count, remember):
        (body, readout), (x, signs) = parameters, sequences(key, count)
        return signs * (mechanisms.folded_context(x, body, segment=12, memory=4, remember=remember)[:, -1] @ readout)

    start = mechanisms.FoldedContext.init(jax.random.key(0), 8, 2, 8), jnp.ones(8) / 8
    accuracy = {}
    for remember in ("outputs", "inputs"):
        of = functools.partial(margins, remember=remember)
        found = trained(lambda p, key, of=of: jnp.mean(jnp.logaddexp(0, -of(p, key, 128))), start, 200)
        accuracy[remember] = float(jnp.mean(of(found, jax.random.key(2), 2048) > 0))
    print(accuracy)
    assert accuracy["outputs"] > 0.9
    assert accuracy["inputs"] < 0.55


def test_a_memory_is_where_segments_go_on():
    x = jnp.asarray(numbers()[1])

    def parts(x, p):
        of = functools.partial(mechanisms.folded_context, parameters=p, segment=5, memory=3)
        out, state = of(x[:, :10], return_state=True)
        return of(x), jnp.concatenate([out, of(x[:, 10:17], state=state)], 1), state.filled

    whole, found, filled = once(parts)(x, traced(numbers()[0]))
    assert int(filled) == 3
    assert_near(found, whole[:, :17])


def test_messages(without_run_time_types):
    p, x = numbers()
    of = functools.partial(mechanisms.folded_context, jnp.asarray(x), traced(p))
    with pytest.raises(ValueError, match=r"folded_context\(segment=0, memory=1, pool=1\).*at least 1 token"):
        of(segment=0, memory=1)
    with pytest.raises(ValueError, match=r"pool=4\).*a pool that divides segment"):
        of(segment=6, memory=1, pool=4)
    with pytest.raises(ValueError, match="remember: got 'all', want one of"):
        of(segment=6, memory=1, remember="all")
    with pytest.raises(ValueError, match="T=20, want a multiple of segment=6"):
        of(segment=6, memory=1, return_state=True)
    with pytest.raises(ValueError, match=r"state: got states of shape \(2, 3, 6\).*= \[2, 2, 6\]"):
        of(segment=5, memory=2, state=mechanisms.Memory(jnp.zeros((2, 3, 6)), jnp.int32(0)))
    with pytest.raises(ValueError, match="parameters: got D=6 channels, want x's, D=5"):
        mechanisms.folded_context(jnp.asarray(x[..., :5]), p, segment=5, memory=2)
