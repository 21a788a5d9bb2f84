"""Convolutions against the banded matrices that they are, and against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, linear, masks, tasks
from tests.references import convolutions as reference

pytestmark = pytest.mark.usefixtures("x64")
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Programs that run once are not worth optimizing."""
SEGMENTS = np.array([[0, 0, 0, 3, 3, 3, 3, 1, 1, 1, 0, 0], [5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 6]])


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_near(got, want, bound=1e-12):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * max(1.0, float(np.max(np.abs(want)))))


def test_a_convolution_is_a_banded_matrix():
    x, kernel = draw(12, 3), draw(4, 3, seed=1)
    want = np.stack([reference.banded(kernel[:, d], 12) @ x[:, d] for d in range(3)], -1)
    assert_near(linear.short_convolution(jnp.asarray(x), jnp.asarray(kernel)), want)
    assert_near(linear.long_convolution(jnp.asarray(x), jnp.asarray(kernel)), want)


@pytest.mark.parametrize("taps", [1, 12])
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one sequence", "packed"])
def test_long_is_short_and_both_begin_anew_at_segments(taps, segments):
    x, kernel = draw(2, 12, 3), draw(taps, 3, seed=1)
    want = reference.convolve(x, kernel, segments)
    of = lambda *arrays: [f(*arrays, segment_ids=segments) for f in (linear.short_convolution, linear.long_convolution)]
    for got in once(of)(x, kernel):
        assert_near(got, want)


def test_gradients_of_long_and_short_are_the_same():
    x, kernel, weights = draw(12, 3), draw(5, 3, seed=1), draw(12, 3, seed=2)
    of = lambda function: jax.grad(lambda *arrays: (function(*arrays, segment_ids=SEGMENTS[0]) * weights).sum(), (0, 1))
    long, short = once(lambda *arrays: [of(f)(*arrays) for f in (linear.long_convolution, linear.short_convolution)])(
        x, kernel
    )
    jax.tree.map(assert_near, long, short)


def test_traced_segments_take_as_many_convolutions_as_one_says():
    """Where there are more of them, outputs are no numbers, instead of wrong ones."""
    x, kernel = jnp.asarray(draw(2, 12, 3)), jnp.asarray(draw(12, 3, seed=1))
    of = lambda ids, count: linear.long_convolution(x, kernel, segment_ids=ids, max_segments=count)
    of = jax.jit(of, static_argnums=1)
    ids = jnp.asarray(SEGMENTS)
    want = linear.short_convolution(x, kernel, segment_ids=ids)
    assert_near(of(ids, 6), want)
    few = of(ids, 3)
    assert_near(few[0, :10], want[0, :10])
    assert_near(few[1], want[1])
    assert np.isnan(few[0, 10:]).all()


@pytest.mark.parametrize("cuts", [(5, 10), (1, 2, 3, 4)])
def test_a_state_is_where_tokens_go_on(cuts):
    """Decoding, whole, and with segments: the first continues that of the state, others see nothing of it."""
    ids = np.pad(SEGMENTS, ((0, 0), (0, 2)), mode="edge")
    starts = ids[:, 1:] != ids[:, :-1]
    spans = list(zip((0, *cuts), (*cuts, 14), strict=True))

    def check(function, own, x, segments):
        parts, state = [], None
        for start, stop in spans:
            if start > 0 and segments is not None:  # a segment that starts at the cut is the caller's to know
                state = jnp.where(starts[:, start - 1, None, None], 0, state)
            given = None if segments is None else segments[:, start:stop]
            knobs = {"state": state, "return_state": True, "segment_ids": given}
            out, state = function(x[:, start:stop], own(slice(start, stop)), **knobs)
            parts.append(out)
        return (jnp.concatenate(parts, 1), state), function(x, own(slice(14)), return_state=True, segment_ids=segments)

    @once
    def of(x, kernel, logits):
        light = lambda segments: check(linear.short_convolution, lambda part: kernel, x, segments)
        dynamic = lambda segments: check(linear.dynamic_conv, lambda part: logits[:, part], x, segments)
        return [f(segments) for f in (light, dynamic) for segments in (None, ids)]

    for in_parts, whole in of(draw(2, 14, 3), draw(4, 3, seed=1), draw(2, 14, 4, 3, seed=2)):
        jax.tree.map(assert_near, in_parts, whole)


def test_kernels_for_each_token():
    x, logits = draw(2, 12, 6), draw(2, 12, 3, 2, seed=1)
    weights = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    want = reference.convolve(x, np.repeat(weights, 3, -1), SEGMENTS)  # channels 0, 1, 2 of head 0
    assert_near(once(functools.partial(linear.dynamic_conv, segment_ids=SEGMENTS))(x, logits), want)
    same = np.broadcast_to(logits[:1, :1], logits.shape)
    of = lambda x, own: (linear.dynamic_conv(x, own), linear.light_conv(x, own[0, 0]))
    assert_near(*once(of)(x, same))


def test_kernels_without_content_are_fixed_positions():
    """Uniform logits are the mean over a window; saturated ones the previous token, exactly."""
    x, saturated = draw(12, 4), np.array([[0.0, 0.0], [1e4, 1e4], [0.0, 0.0]])
    uniform, previous = once(lambda x, *each: [linear.light_conv(x, logits) for logits in each])(
        x, 0 * saturated, saturated
    )
    assert_near(uniform[2:], np.array([x[t - 2 : t + 1].mean(0) for t in range(2, 12)]))
    np.testing.assert_array_equal(previous, np.concatenate([np.zeros((1, 4)), x[:-1]]))


def test_the_first_tokens_see_less_than_a_whole_kernel():
    sums = linear.light_conv(jnp.ones((5, 1)), jnp.log(jnp.array([[0.51], [0.37], [0.12]])))[:, 0]
    assert_near(sums, np.array([0.51, 0.88, 1, 1, 1]))


@pytest.mark.parametrize("fourier", [False, True])
def test_base_conv_is_a_gate_times_a_convolution(fourier):
    x, weight, kernel = draw(2, 12, 3), draw(3, 3, seed=1), draw(5, 3, seed=2)
    bias, kernel_bias = draw(2, 3, seed=3)
    want = (x @ weight + bias) * (reference.convolve(x, kernel, SEGMENTS) + kernel_bias)
    run = functools.partial(linear.base_conv, fourier=fourier, segment_ids=SEGMENTS)
    of = once(lambda *arrays: (run(*arrays), run(*arrays, residual=True)))
    got, with_residual = of(x, weight, bias, kernel, kernel_bias)
    assert_near(got, want)
    assert_near(with_residual, want + x)


def test_base_conv_goes_on_from_a_state():

    @once
    def of(x, weight, bias, kernel):
        whole = linear.base_conv(x, weight, bias, kernel, bias)
        out, state = linear.base_conv(x[:, :7], weight, bias, kernel, bias, return_state=True)
        return whole, jnp.concatenate([out, linear.base_conv(x[:, 7:], weight, bias, kernel, bias, state=state)], 1)

    assert_near(*of(draw(2, 12, 3), draw(3, 3), draw(3), draw(5, 3)))


def test_an_implicit_kernel_is_a_network_of_positions():
    """With one frequency of 1e-4 the cosine and the sine hardly move; a kernel's parameters do not grow with it."""
    p = [draw(5, 16), draw(16), draw(16, 3), draw(3)]
    j = np.arange(10)[:, None]
    angle = 2 * np.pi * j / 10 * np.array([1e-4, 1.0])
    z = np.concatenate([j / 9, np.cos(angle), -np.sin(angle)], -1)
    want = np.maximum(z @ p[0] + p[1], 0) @ p[2] + p[3]
    assert_near(once(lambda *p: linear.implicit_kernel(10, linear.ImplicitKernel(*p)))(*p), want)


def test_recall_takes_a_comparison_of_keys():
    """Recall of 8 pairs. The previous token by a convolution, then attention by it, is right always; a kernel over all
    tokens sees every value, and not which is asked for: right by chance, one in 8."""
    task = tasks.multi_query_recall(
        jax.random.key(0), batch=64, length=64, pairs=8, vocabulary=128, random_fillers=False
    )
    asked = np.asarray(task.targets) >= 0

    @once
    def accuracies(tokens):
        book = jax.random.normal(jax.random.key(1), (128, 64))
        book /= jnp.linalg.norm(book, axis=-1, keepdims=True)
        x = book[tokens]
        previous = linear.light_conv(x, jnp.array([[0.0], [1e4]]))
        heads = lambda y: y[:, :, None]
        matched = attend(heads(x), heads(previous), heads(x), mask=masks.causal(), scale=40.0)[:, :, 0]
        mean = linear.light_conv(x, jnp.zeros((64, 1)))
        read = lambda y: 64 + jnp.argmax(y @ book[64:].T, -1)  # values are the second half of the tokens
        return [jnp.mean(read(y) == task.targets, where=asked) for y in (matched, mean)]

    by_attention, by_mean = map(float, accuracies(task.tokens))
    print(by_attention, by_mean)
    assert by_attention == 1
    assert by_mean < 0.25


def test_float32_by_fourier_and_16_bits():
    """Rounding is relative to the greatest output; short inputs are summed in float32."""
    x, kernel = draw(4096, 2).astype(np.float32), draw(4096, 2, seed=1).astype(np.float32)
    got = once(linear.long_convolution)(x, kernel)
    want = once(linear.long_convolution)(x.astype(np.float64), kernel.astype(np.float64))
    error = float(jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want)))
    print(error)
    assert error < 2e-6
    short = jnp.asarray(x[:64], jnp.bfloat16)
    for function in (linear.short_convolution, linear.long_convolution):
        of = lambda x, kernel, function=function: (function(x, kernel), function(x.astype(jnp.float32), kernel))
        out, rounded = once(of)(short, kernel[:4])
        assert out.dtype == jnp.bfloat16
        rounded = rounded.astype(jnp.bfloat16)
        np.testing.assert_array_equal(out.astype(jnp.float32), rounded.astype(jnp.float32))


def test_messages(without_run_time_types):
    x, kernel = jnp.ones((2, 10, 4)), jnp.ones((3, 4))
    with pytest.raises(ValueError, match=r"kernel: got shape \(3, 5\), want \[L, D\].*D=4"):
        linear.short_convolution(x, jnp.ones((3, 5)))
    with pytest.raises(ValueError, match="kernel: got no taps, want at least 1"):
        linear.short_convolution(x, kernel[:0])
    with pytest.raises(ValueError, match=r"kernel: got 11 taps for T=10 tokens.*kernel\[:10\]"):
        linear.long_convolution(x, jnp.ones((11, 4)))
    with pytest.raises(ValueError, match=r"state: got shape \(2, 3, 4\).*\[2, 2, 4\]"):
        linear.short_convolution(x, kernel, state=jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"segment_ids: got shape \(2, 9\).*\[2, 10\]"):
        linear.short_convolution(x, kernel, segment_ids=jnp.zeros((2, 9), int))
    with pytest.raises(ValueError, match="segment_ids: .*traced.*max_segments"):
        jax.jit(lambda ids: linear.long_convolution(x, kernel, segment_ids=ids))(jnp.zeros((2, 10), int))
    with pytest.raises(ValueError, match="max_segments: got 0, want at least 1"):
        linear.long_convolution(x, kernel, segment_ids=jnp.zeros((2, 10), int), max_segments=0)
    with pytest.raises(ValueError, match="N=3 heads for D=4 channels"):
        linear.light_conv(x, jnp.ones((3, 3)))
    with pytest.raises(ValueError, match=r"logits: got shape \(2, 9, 3, 2\)"):
        linear.dynamic_conv(x, jnp.ones((2, 9, 3, 2)))
    with pytest.raises(TypeError, match="x: got int.*floating-point"):
        linear.short_convolution(jnp.ones((2, 10, 4), int), kernel)
    with pytest.raises(ValueError, match="4 features.*odd"):
        linear.implicit_kernel(10, linear.ImplicitKernel(jnp.ones((4, 2)), *(jnp.ones(1),) * 3))
