"""Gated attention with a moving average, and with convolutions, against what is written on paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, linear, mechanisms, normalizers, scores
from attnjax.linear import _forms
from tests.mechanisms.helpers import assert_near, draw, influence, once, traced, trained
from tests.references import convolutions
from tests.references import mechanisms as reference

pytestmark = pytest.mark.usefixtures("x64")
LENGTH, D, H, V = 13, 4, 3, 5
SEGMENTS = np.array([0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 1, 1, 1])


def as_float64(tree):
    """Of order one, where what is drawn to begin with is small."""
    leaves, form = jax.tree.flatten(tree)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(form, [rng.standard_normal(leaf.shape) for leaf in leaves])


@functools.cache
def mega_parameters():
    return as_float64(mechanisms.Mega.init(jax.random.key(0), D, H, V, averages=2))


# --- the Laplace function


def test_laplace_touches_the_squared_relu_and_is_bounded():
    """At sqrt(1/2) both are 1/2, with slope sqrt(2)."""
    of = lambda normalizer: (
        lambda x: attend(
            x.reshape(1, 1, 1), jnp.ones((1, 1, 1)), jnp.ones((1, 1, 1)), scale=1.0, normalizer=normalizer
        ).squeeze()
    )
    at = jnp.sqrt(jnp.asarray(0.5))
    for normalizer in (normalizers.laplace(), normalizers.relu_squared(over_keys=False)):
        value, slope = jax.value_and_grad(of(normalizer))(at)
        assert_near(value, 0.5)
        assert_near(slope, np.sqrt(2))
    assert_near(of(normalizers.laplace())(jnp.asarray(20.0)), 1)


# --- Mega


@pytest.mark.parametrize("divided", [True, False])
def test_mega_is_what_is_written(divided):
    """In chunks that do not divide the length, packed, with a bias by distance."""
    p, x, table = mega_parameters(), draw(2, LENGTH, D, seed=1), draw(1, 9)
    segments = np.stack([SEGMENTS, np.zeros_like(SEGMENTS)])
    alpha, delta = reference.sigmoid(p.weight), reference.sigmoid(p.damping)
    average, _ = convolutions.moving_average(x, alpha, delta, p.expand, p.read, segments)
    mixed = reference.silu(average + p.skip * x)
    bias = [table[0, 4 - distance] for distance in range(5)]
    want = [
        reference.gated_attention(
            x[b], mixed[b], p.gates, lambda q, k, b=b: reference.chunk_weights(q, k, 5, segments[b], divided, bias)
        )
        for b in range(2)
    ]
    normalizer = normalizers.softmax() if divided else normalizers.laplace()
    got = once(
        lambda x, p, table, ids: mechanisms.mega(
            x, p, chunk_size=5, score=scores.relative_bias(table), normalizer=normalizer, form="recurrent",
            segment_ids=ids,
        )
    )(x, p, table, segments)  # fmt: skip
    assert_near(got, np.stack(want))


def test_one_chunk_of_everything_is_no_chunk():
    x, p = jnp.asarray(draw(LENGTH, D)), traced(mega_parameters())
    of = lambda x, p: [mechanisms.mega(x, p, chunk_size=size) for size in (None, LENGTH, 100, 5)]
    whole, one, wide, chunks = once(of)(x, p)
    assert_near(one, whole)
    assert_near(wide, whole)
    assert float(jnp.max(jnp.abs(chunks - whole))) > 1e-3


def test_the_moving_average_carries_what_chunks_cut_off():
    """Chunks alone see nothing of those before; the average brings it, and nothing from later."""
    x, p = jnp.asarray(draw(LENGTH, D)), traced(mega_parameters())
    same = np.arange(LENGTH)[:, None] // 5 == np.arange(LENGTH)[None, :] // 5
    causal = np.tril(np.ones((LENGTH, LENGTH), bool))
    alone = p._replace(read=jnp.zeros_like(p.read))
    cut, carried = (
        influence(lambda x, q=q: mechanisms.mega(x, q, chunk_size=5, form="recurrent"), x) for q in (alone, p)
    )
    np.testing.assert_array_equal(cut > 0, causal & same)
    np.testing.assert_array_equal(carried > 0, causal)


@pytest.mark.slow
def test_a_sign_chunks_back_is_learned_through_the_average_alone():
    """The first of 16 tokens says which of two, asked at the last, in chunks of 4: by chance without the average."""

    def sequences(key, count):
        noise, sign = jax.random.split(key)
        signs = jax.random.rademacher(sign, (count,), jnp.float32)
        return jax.random.normal(noise, (count, 16, 4), jnp.float32).at[:, 0, 0].set(3 * signs), signs

    def margins(parameters, x, signs, average):
        body, readout = parameters
        body = body if average else body._replace(read=jnp.zeros_like(body.read))
        return signs * (mechanisms.mega(x, body, chunk_size=4, implementation="dense")[:, -1] @ readout)

    body = mechanisms.Mega.init(jax.random.key(0), 4, 4, 8, averages=4)
    body = body._replace(damping=body.damping - jnp.expand_dims(jnp.arange(4.0) * 2, 0))  # some of them slow
    accuracy = {}
    for average in (True, False):
        of = lambda p, key, count, average=average: margins(p, *sequences(key, count), average)
        found = trained(lambda p, key, of=of: jnp.mean(jnp.logaddexp(0, -of(p, key, 256))), (body, jnp.ones(4)), 100)
        accuracy[average] = float(jnp.mean(of(found, jax.random.key(2), 2048) > 0))
    print(accuracy)
    assert accuracy[True] > 0.85
    assert accuracy[False] < 0.55


# --- CHELA


def test_two_kernels_are_one():
    x, short, long = (jnp.asarray(draw(*s)) for s in ((2, LENGTH, D), (3, D), (LENGTH, D)))
    both = linear.short_convolution(x, short) + linear.long_convolution(x, long)
    assert_near(linear.long_convolution(x, mechanisms.short_long_kernel(short, long)), both)


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
def test_chela_is_what_is_written(form):
    p = as_float64(mechanisms.Chela.init(jax.random.key(0), D, H, V, length=20))
    x = draw(1, LENGTH, D)
    kernel = (p.long + np.pad(p.short, ((0, 16), (0, 0))))[:LENGTH]
    mixed = reference.silu(convolutions.convolve(x, kernel, SEGMENTS[None]))[0]
    seen = np.tril(SEGMENTS[:, None] == SEGMENTS[None, :])
    elu = lambda y: np.where(y > 0, y + 1, np.exp(np.minimum(y, 0)))

    def weights(q, k):
        products = elu(q) @ elu(k).T * seen
        return products / products.sum(-1, keepdims=True)

    want = reference.gated_attention(x[0], mixed, p.gates, weights)
    sizes = (1, 4, 64) if form == "chunked" else (64,)
    run = functools.partial(mechanisms.chela, form=form, segment_ids=SEGMENTS)
    for got in once(lambda x, p: [run(x, p, chunk_size=size) for size in sizes])(x[0], traced(p)):
        assert_near(got, want)


def test_work_in_chunks_is_linear_in_the_length(monkeypatch):
    """Floating-point operations, counted: twice as many for twice the tokens, where all pairs take four times."""
    monkeypatch.setattr(_forms, "RUN", 2048)  # of a loop only one turn is counted

    def operations(length, form):
        x = jax.ShapeDtypeStruct((length, 1, 16), jnp.float32)
        attention = lambda q, k, v: linear.linear_attention(q, k, v, form=form, chunk_size=32)
        return jax.jit(attention).lower(x, x, x).cost_analysis()["flops"]

    chunked = [operations(length, "chunked") for length in (512, 1024, 2048)]
    pairs = [operations(length, "parallel") for length in (512, 1024, 2048)]
    print(chunked, pairs)
    assert chunked[1] / chunked[0] == pytest.approx(2, abs=0.05)
    assert chunked[2] / chunked[1] == pytest.approx(2, abs=0.05)
    assert pairs[2] / pairs[1] == pytest.approx(4, abs=0.2)


# --- both


@pytest.mark.parametrize("name", ["mega", pytest.param("chela", marks=pytest.mark.slow)])
def test_vmap_and_derivatives_of_derivatives(name):
    """The derivative of a gradient along a direction beside a difference of gradients, both of them at once."""
    p = mega_parameters()
    p = p if name == "mega" else mechanisms.Chela(draw(3, D), draw(LENGTH, D), p.gates)
    knobs = {"chunk_size": 5} | ({} if name == "mega" else {"segment_ids": SEGMENTS})

    @once
    def check(p, x, along):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(getattr(mechanisms, name)(x, p, **knobs))))
        above, below = jax.vmap(lambda step: gradient(x + step * along))(jnp.array([1e-5, -1e-5]))
        return jax.jvp(gradient, (x,), (along,))[1], (above - below) / 2e-5

    assert_near(*check(traced(p), draw(LENGTH, D), draw(LENGTH, D, seed=1)), bound=1e-7)


def test_where_the_gate_is_shut_the_residual_is_left():
    x, p = jnp.asarray(draw(LENGTH, D)), traced(mega_parameters())
    gates = p.gates._replace(update_bias=jnp.full(D, -1e9))
    of = lambda **knobs: mechanisms.gated_attention(x, x, gates, lambda q, k, v: v, **knobs)
    assert_near(of(), x)
    assert_near(of(residual=3 * x), 3 * x)


def test_messages(without_run_time_types):
    x, p = jnp.ones((LENGTH, D)), traced(mega_parameters())
    with pytest.raises(ValueError, match="chunk_size: got 0, want at least 1, or None"):
        mechanisms.mega(x, p, chunk_size=0)
    with pytest.raises(ValueError, match="form='fourier'.*no segments"):
        mechanisms.mega(x, p, segment_ids=jnp.asarray(SEGMENTS))
    with pytest.raises(ValueError, match="parameters of D=4 channels"):
        mechanisms.gated_attention(x[:, :3], x[:, :3], p.gates, attend)
    with pytest.raises(ValueError, match=r"short \(5, 4\) and long \(3, 4\).*S <= L"):
        mechanisms.short_long_kernel(jnp.ones((5, 4)), jnp.ones((3, 4)))
    chela = mechanisms.Chela.init(jax.random.key(0), D, H, V, length=20)
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        mechanisms.chela(x.astype(jnp.float32), chela, chunk_size=0)
    with pytest.raises(ValueError, match=r"segment_ids: got shape \(12,\)"):
        mechanisms.chela(x.astype(jnp.float32), chela, segment_ids=jnp.zeros(12, int))
