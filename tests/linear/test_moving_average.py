"""Moving averages of several decays: every form against the recurrence in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import linear
from tests.references import convolutions as reference

pytestmark = pytest.mark.usefixtures("x64")
QUICK = {"xla_backend_optimization_level": 0}
FORMS = ["fourier", "scan", "recurrent"]
SEGMENTS = np.sort(np.random.default_rng(1).integers(0, 4, (2, 23)), -1)


def draw(length=23, channels=3, averages=4, seed=0):
    """x, and the four parameters."""
    rng = np.random.default_rng(seed)
    alpha, delta = rng.uniform(0.01, 1, (2, channels, averages))
    alpha[0, 0] = delta[0, 0] = 1  # nothing is kept
    delta[1, 1] = 0  # everything is
    return [rng.standard_normal((2, length, channels)), alpha, delta, *rng.standard_normal((2, channels, averages))]


def assert_near(got, want, bound=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * max(1.0, float(np.max(np.abs(want)))))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_recurrence(form):
    """From a state, to a state; and with segments where there can be any."""
    arrays = draw()
    state = np.random.default_rng(5).standard_normal((2, 3, 4))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def of(arrays, state, ids):
        run = functools.partial(linear.moving_average, form=form, chunk_size=7, return_state=True)
        return run(*arrays, state=state), None if form == "fourier" else run(*arrays, segment_ids=ids)

    plain, packed = of([jnp.asarray(a) for a in arrays], jnp.asarray(state), jnp.asarray(SEGMENTS))
    jax.tree.map(assert_near, plain, reference.moving_average(*arrays, state=state))
    if packed is not None:
        jax.tree.map(assert_near, packed, reference.moving_average(*arrays, segment_ids=SEGMENTS))


def test_a_state_is_where_tokens_go_on_in_any_form():
    """A prompt by FFT, then token by token."""

    @functools.partial(jax.jit, compiler_options=QUICK)
    def of(x, *parameters):
        out, state = linear.moving_average(x[:, :20], *parameters, return_state=True)
        parts = [out]
        for t in range(20, 23):
            knobs = {"form": "recurrent", "state": state, "return_state": True}
            out, state = linear.moving_average(x[:, t : t + 1], *parameters, **knobs)
            parts.append(out)
        return (jnp.concatenate(parts, 1), state), linear.moving_average(x, *parameters, return_state=True)

    jax.tree.map(assert_near, *of(*draw()))


def test_gradients_by_fourier_are_those_of_the_recurrence():
    """By everything, the state too; where nothing is kept they are finite."""
    arrays = [jnp.asarray(a) for a in draw()]
    state, weights = jnp.ones((2, 3, 4)), jnp.asarray(draw(seed=3)[0])

    def of(form):
        def loss(arrays, state):
            out, last = linear.moving_average(*arrays, form=form, chunk_size=7, state=state, return_state=True)
            return (out * weights).sum() + (last**2).sum()

        return jax.jit(jax.grad(loss, (0, 1)), compiler_options=QUICK)(arrays, state)

    want = of("recurrent")
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(want))
    jax.tree.map(functools.partial(assert_near, bound=1e-10), of("fourier"), want)


def test_the_kernel_is_the_response_to_one_token():
    x, *parameters = draw()
    impulse = np.zeros_like(x)
    impulse[:, 0] = 1
    kernel = jax.jit(linear.moving_average_kernel, static_argnums=0, compiler_options=QUICK)(23, *parameters)
    assert_near(kernel, reference.moving_average(impulse, *parameters)[0][0])


def test_without_damping_it_is_a_plain_average():
    """``delta = 1``: weights ``alpha (1 - alpha)^j``, which add up to one."""
    one, alpha = jnp.ones((1, 1)), jnp.full((1, 1), 0.2)
    kernel = linear.moving_average_kernel(200, alpha, one, one, one)[:, 0]
    np.testing.assert_allclose(kernel, 0.2 * 0.8 ** np.arange(200), rtol=1e-10)
    assert float(kernel.sum()) == pytest.approx(1)


def test_float32_over_long_sequences():
    """Against float64, decays of 1 - 1e-4 and less."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4096, 2)).astype(np.float32)
    alpha = np.array([[1e-4, 0.5], [1e-2, 1e-3]], np.float32)
    one = np.ones((2, 2), np.float32)
    want = linear.moving_average(*(jnp.asarray(a, np.float64) for a in (x, alpha, one, one, one)))
    for form in ("fourier", "recurrent"):
        of = jax.jit(functools.partial(linear.moving_average, form=form), compiler_options=QUICK)
        got = of(*(jnp.asarray(a) for a in (x, alpha, one, one, one)))
        error = float(jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want)))
        print(form, error)
        assert error < 1e-4


def test_messages(without_run_time_types):
    x, half = jnp.ones((2, 10, 3)), jnp.full((3, 4), 0.5)
    of = linear.moving_average
    with pytest.raises(ValueError, match=r"weight: got shape \(4, 3\), want \[D, H\], D=3"):
        of(x, *(half.T,) * 4)
    with pytest.raises(ValueError, match=r"read: got shape \(3, 2\), want weight's"):
        of(x, half, half, half, half[:, :2])
    with pytest.raises(ValueError, match="damping: got 1.5, want numbers from 0 to 1"):
        of(x, half, 3 * half, half, half)
    with pytest.raises(ValueError, match="form='fourier'.*no segments, want one of.*'chunked'"):
        of(x, *(half,) * 4, segment_ids=jnp.zeros((2, 10), int))
    with pytest.raises(ValueError, match="form: got 'fft', want one of"):
        of(x, *(half,) * 4, form="fft")
    with pytest.raises(ValueError, match=r"state: got shape \(2, 3\), want \[\*B, D, H\] = \[2, 3, 4\]"):
        of(x, *(half,) * 4, state=jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        of(x, *(half,) * 4, form="chunked", chunk_size=0)
