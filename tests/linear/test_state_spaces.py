"""State spaces, the attention hidden in them, and all of them as linear dynamical systems."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import linear
from tests.references import linear_features as reference

pytestmark = pytest.mark.usefixtures("x64")

QUICK = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICK)
LENGTH, CHANNELS, STATES = 18, 3, 4


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_near(got, want, bound=1e-10):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * max(1.0, float(np.max(np.abs(want)))))


def selective(seed=0):
    """c, b, x, step, rate, skip of two sequences."""
    c, b = draw(2, 2, LENGTH, STATES, seed=seed)
    x, step = draw(2, 2, LENGTH, CHANNELS, seed=seed + 1)
    rate, skip = -np.exp(draw(CHANNELS, STATES, seed=seed + 2)), draw(CHANNELS, seed=seed + 3)
    return c, b, x, np.log1p(np.exp(step)), rate, skip


# --- S6


def test_a_selective_state_space_is_its_recurrence():
    """By channel and state, in every form, in segments, and going on from a state."""
    c, b, x, step, rate, skip = selective()
    arrays = [jnp.asarray(y) for y in (c, b, x, step, rate, skip)]
    want = np.stack([reference.selective_state_space(*(y[i] for y in (c, b, x, step)), rate, skip) for i in range(2)])
    for form in ("scan", "recurrent", "chunked"):
        run = functools.partial(linear.selective_state_space, form=form, chunk_size=5)
        assert_near(jit(run)(*arrays), want)
    run = functools.partial(linear.selective_state_space, return_state=True)
    first, state = jit(run)(*(y[:, :7] for y in arrays[:4]), *arrays[4:])
    rest, _ = jit(lambda state, *y: run(*y, state=state))(state, *(y[:, 7:] for y in arrays[:4]), *arrays[4:])
    assert_near(jnp.concatenate([first, rest], 1), want)
    segments = jnp.repeat(jnp.array([0, 1]), jnp.array([7, 11]))[None]
    apart = jit(lambda segments, *y: linear.selective_state_space(*y, segment_ids=segments))(segments, *arrays)
    second = reference.selective_state_space(*(y[1, 7:] for y in (c, b, x, step)), rate, skip)
    assert_near(apart[1], np.concatenate([want[1, :7], second]))


def test_one_decay_for_all_is_the_state_space_of_mamba_2():
    """Steps and rates that do not depend on the channel, and one rate for all states."""
    c, b, x, step, _, _ = (jnp.asarray(y) for y in selective())
    alike, rate = jnp.broadcast_to(step[..., :1], step.shape), jnp.full((CHANNELS, STATES), -0.7)
    got = jit(linear.selective_state_space)(c, b, x, alike, rate)
    want = jit(linear.state_space)(c[:, :, None], b[:, :, None], x[:, :, None], step[..., :1], jnp.array([-0.7]))
    assert_near(got, want[:, :, 0])


# --- hidden attention


def test_hidden_attention_is_what_multiplies_the_inputs():
    """And is no distribution: rows of either sign, up to several ones."""
    c, b, x, step, rate, skip = (jnp.asarray(y) for y in selective())
    hidden = jit(linear.hidden_attention)(c, b, step, rate)
    assert hidden.shape == (2, CHANNELS, LENGTH, LENGTH)
    out = jnp.einsum("bdij,bjd->bid", hidden, x) + skip[None, None] * x
    assert_near(out, jit(linear.selective_state_space)(c, b, x, step, rate, skip))
    sums = hidden.sum(-1)
    print("sums of rows", float(sums.min()), float(sums.max()))
    assert float(sums.min()) < -1
    assert float(sums.max()) > 1


def test_hidden_attention_of_two_scans_is_their_sum():
    c, b, x, step, rate, _ = (jnp.asarray(y) for y in selective())
    other = [jnp.asarray(y) for y in selective(seed=9)]
    turn = lambda y: jnp.flip(y, 1)
    back = [turn(other[0]), turn(other[1]), turn(x), turn(other[3]), other[4]]
    scan = jit(linear.selective_state_space)
    want = scan(c, b, x, step, rate) + turn(scan(*back))
    hidden = jit(linear.hidden_attention)
    both = hidden(c, b, step, rate) + jnp.flip(hidden(*back[:2], *back[3:]), (-2, -1))
    assert_near(jnp.einsum("bdij,bjd->bid", both, x), want)


def test_rollout_is_a_product_of_shares():
    layers = [np.tril(draw(2, CHANNELS, 6, 6, seed=seed)) for seed in range(3)]
    arrays = [jnp.asarray(x) for x in layers]
    changes = {"keep": lambda x: x, "abs": np.abs, "clip": lambda x: np.maximum(x, 0)}
    for sign, change in changes.items():
        want = np.broadcast_to(np.eye(6), (2, 6, 6))
        for layer in layers:
            mean = change(layer).mean(1) + 2 * np.eye(6)
            want = mean / mean.sum(-1, keepdims=True) @ want
        got = jit(functools.partial(linear.hidden_rollout, sign=sign, residual=2))(arrays)
        assert_near(got, want)
        assert_near(got.sum(-1), np.ones((2, 6)))
        assert (sign == "keep") == bool((got < -1e-12).any())


# --- dynamical systems


def systems():
    """Every adapter, with the mechanism it is said to be, of the same input ``u``."""
    q, k = np.abs(draw(2, 2, LENGTH, CHANNELS, STATES))
    logits = draw(2, LENGTH, CHANNELS, seed=5)
    c, b, _, step, rate, skip = selective()
    arrays = [jnp.asarray(x) for x in (q, k, logits, c, b, step, rate, skip)]
    q, k, logits, c, b, step, rate, skip = arrays
    divisors = {"exp": jnp.exp, "softplus": jax.nn.softplus, "sigmoid": jax.nn.sigmoid}
    found = {"linear attention": (linear.attention_system(q, k), lambda u: linear.attend(q, k, u))}
    for name, of in divisors.items():
        found[f"divided by {name}"] = (
            linear.normalized_attention_system(q, k, of(logits)),
            lambda u, of=of: linear.attend(q, k, u) / of(logits)[..., None],
        )
    found["S6"] = (
        linear.selective_system(c, b, step, rate, skip),
        lambda u: jnp.moveaxis(
            jax.vmap(lambda x: linear.selective_state_space(c, b, x, step, rate, skip), -1)(u), 0, -1
        ),
    )
    forget, write, read = jax.nn.sigmoid(logits), jax.nn.sigmoid(q[..., 0]), jax.nn.sigmoid(k[..., 0])
    gated = lambda u: linear.attend(
        read[..., None], write[..., None], u, log_decay=jnp.log(forget), form="recurrent"
    )  # fmt: skip
    found["qLSTM"] = (linear.gated_system(forget, write, read), gated)
    decay = -8 * jax.nn.softplus(logits) * write
    unit = lambda u: linear.attend(
        jnp.ones_like(decay)[..., None], (jnp.sqrt(1 - jnp.exp(decay) ** 2) * read)[..., None], u, log_decay=decay
    )  # fmt: skip
    found["RG-LRU"] = (linear.rg_lru_system(decay, read), unit)
    return found


@pytest.mark.parametrize("name", ["linear attention", *(f"divided by {x}" for x in ("exp", "softplus", "sigmoid")),
                                  "S6", "qLSTM", "RG-LRU"])  # fmt: skip
def test_every_mechanism_is_a_system(name):
    """Its scan, its explicit matrix, its recurrence in NumPy and the mechanism itself are the same."""
    system, mechanism = systems()[name]
    u = draw(2, LENGTH, CHANNELS, 2, seed=7)

    @jit
    def everything(u):
        return linear.simulate(system, u), linear.mixing_matrix(system), mechanism(u)

    scanned, matrix, direct = everything(jnp.asarray(u))
    assert_near(scanned, direct)
    assert_near(jnp.einsum("bkij,bjkv->bikv", matrix, u), direct)
    assert not np.any(np.triu(matrix, 1))
    skip = 0 if system.skip is None else np.asarray(system.skip)[..., None] * u
    want = np.stack(
        [
            [reference.system(*(np.asarray(x)[b, :, d] for x in system[:3]), u[b, :, d]) for d in range(CHANNELS)]
            for b in range(2)
        ]
    )
    assert_near(scanned, np.moveaxis(want, 1, 2) + skip)


def test_transitions_may_be_zero_or_grow():
    """Products, not quotients: zero forgets everything; above one grows."""
    transition = jnp.asarray([[2.0], [0.0], [3.0], [0.5]])[:, None]
    one = jnp.ones((4, 1, 1))
    matrix = linear.mixing_matrix(linear.System(transition, one, one))[0]
    want = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 3, 1, 0], [0, 1.5, 0.5, 1]]
    assert_near(matrix, np.array(want, float))
    assert_near(linear.simulate(linear.System(transition, one, one), one)[:, 0, 0], np.sum(want, 1))


def test_where_attention_and_a_state_space_are_the_same_system():
    """S6 with a step and normalized attention with a divisor agree if exp(step A) is the ratio of divisors and step b
    is k over the divisor: for divisors that solve that, and for no others."""
    rate, b, c = -0.3, draw(LENGTH, STATES), draw(LENGTH, STATES, seed=1)
    divisor = np.empty(LENGTH)
    divisor[-1] = 8.0
    for i in reversed(range(1, LENGTH)):
        divisor[i - 1] = divisor[i] * np.exp(rate / divisor[i])  # step = 1 / divisor
    step = jnp.asarray(1 / divisor)[:, None]
    attention = linear.normalized_attention_system(*(jnp.asarray(x)[:, None] for x in (c, b, divisor)))
    space = linear.selective_system(jnp.asarray(c), jnp.asarray(b), step, jnp.full((1, STATES), rate))
    assert_near(attention.transition[1:], space.transition[1:])
    assert_near(linear.mixing_matrix(attention), linear.mixing_matrix(space))
    other = linear.normalized_attention_system(*(jnp.asarray(x)[:, None] for x in (c, b, divisor[::-1].copy())))
    assert float(jnp.abs(linear.mixing_matrix(other) - linear.mixing_matrix(space)).max()) > 0.1


def test_a_gated_recurrence_with_a_reversed_gate_is_a_state_space():
    """softplus for the step and A = -1: what is kept is sigmoid(-z)."""
    z = jnp.asarray(draw(LENGTH, CHANNELS))
    one = jnp.ones((LENGTH, 1))
    space = linear.selective_system(one, one, jax.nn.softplus(z), -jnp.ones((CHANNELS, 1)))
    gated = linear.gated_system(jax.nn.sigmoid(-z), jax.nn.softplus(z), jnp.ones_like(z))
    for got, want in zip(space[:3], gated[:3], strict=True):
        assert_near(got, want)


def test_the_write_of_a_unit_that_keeps_almost_all():
    """sqrt(1 - L^2) at L = 1 - 1e-7 and in float32: right to 1e-6, where the formula as written is 9% off."""
    with jax.enable_x64(False):
        log_decay = jnp.full((1, 1), -1e-7, jnp.float32)
        got = float(linear.rg_lru_system(log_decay, jnp.ones((1, 1))).write[0, 0, 0])
        naive = float(jnp.sqrt(1 - jnp.exp(log_decay) ** 2)[0, 0])
    want = np.sqrt(-np.expm1(-2e-7))
    print(got, naive, want)
    assert got == pytest.approx(want, rel=1e-6)
    assert naive != pytest.approx(want, rel=0.05)


def test_messages(without_run_time_types):
    with jax.enable_x64(False):
        x = jnp.ones((10, 4))
        with pytest.raises(ValueError, match=r"rate: got shape \(4,\), want \[D, H\], here \[4, 4\]"):
            linear.selective_state_space(x, x, x, x, -jnp.ones(4))
        with pytest.raises(ValueError, match="rate: got 1.0, want at most 0"):
            linear.hidden_attention(x, x, x, jnp.ones((4, 4)))
        with pytest.raises(ValueError, match="sign: got 'drop', want one of"):
            linear.hidden_rollout([jnp.ones((1, 2, 2))], sign="drop")
        with pytest.raises(ValueError, match="layers: got none"):
            linear.hidden_rollout([])
