"""Causal convolutions over tokens, each channel by itself: kernels of a few taps, as long as the sequence, or made anew
for every token."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Key

from attnjax import _compat
from attnjax.linear import _validate

Convolved = Float[Array, "*B T D"] | tuple[Float[Array, "*B T D"], Float[Array, "*B L-1 D"]]


def short_convolution(
    x: Float[Array, "*B T D"],
    kernel: Float[Array, "L D"],
    *,
    state: Float[Array, "*B L-1 D"] | None = None,
    return_state: bool = False,
    segment_ids: Int[Array | np.ndarray, "*#B T"] | None = None,
) -> Convolved:
    """Depthwise causal convolution, ``y_td = sum_{j < L} kernel_jd x_{t-j,d}``, tap by tap in O(T L D) time.

    Tokens before the first are zeros, or the state's.

    Args:
        x: inputs ``[*B, T, D]``.
        kernel: ``[L, D]``; row j weighs the token j steps back (torch's ``Conv1d`` has them in reverse).
        state: the L - 1 inputs before the first token, ``[*B, L - 1, D]``, the latest last; of its segment.
        return_state: also return those before the next token, with zeros in place of another segment's.
        segment_ids: ``[*B, T]``: where they change, the tokens before are no longer seen.

    Returns:
        ``[*B, T, D]`` in x's dtype, and the state if it is asked for.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype does not fit.

    Source: the definition; short ones before linear attention: Fu et al., 2022, Hungry Hungry Hippos, arXiv 2212.14052.

    Example:
        >>> import jax.numpy as jnp
        >>> from attnjax import linear
        >>> x = jnp.array([[1.0], [2.0], [3.0]])
        >>> print(linear.short_convolution(x, jnp.array([[1.0], [10.0]]))[:, 0])
        [ 1. 12. 23.]
    """
    _channels(kernel, x)
    out, last = _by_taps(x, jnp.expand_dims(kernel, tuple(range(1, x.ndim))), state, segment_ids)
    return (out, last) if return_state else out


def long_convolution(
    x: Float[Array, "*B T D"],
    kernel: Float[Array, "L D"],
    *,
    segment_ids: Int[Array | np.ndarray, "*#B T"] | None = None,
    max_segments: int | None = None,
) -> Float[Array, "*B T D"]:
    """Depthwise causal convolution, ``y_td = sum_{j < L} kernel_jd x_{t-j,d}``, by FFT in O(T log T D) time.

    Rounding is relative to the greatest output of a sequence, and reaches every token, also from later ones; where that
    matters use ``short_convolution``, which is also the way to decode.

    A product of spectra cannot leave out pairs of tokens: segments are convolved one after another, each as long as all
    of T, so packed sequences cost an FFT for each.

    Args:
        x: inputs ``[*B, T, D]``.
        kernel: ``[L, D]``, L at most T; row j weighs the token j steps back.
        segment_ids: ``[*B, T]``: where they change, the tokens before are no longer seen.
        max_segments: how often to convolve; by default as often as the ids need it, which must then be known (inside
            ``jit``: NumPy's). Outputs in later segments are NaN.

    Returns:
        ``[*B, T, D]`` in x's dtype.

    Raises:
        ValueError: a shape does not fit, or the ids are traced and their number is not given.
        TypeError: a dtype does not fit.

    Source: Romero et al., 2021, CKConv, arXiv 2102.02611, whose kernels are as long as the sequence.

    Example:
        >>> import jax.numpy as jnp
        >>> from attnjax import linear
        >>> print(linear.long_convolution(jnp.ones((3, 1)), jnp.ones((3, 1)))[:, 0].round(4))
        [1. 2. 3.]
    """
    _floating(x)
    _channels(kernel, x)
    if kernel.shape[0] > x.shape[-2]:
        raise ValueError(
            f"kernel: got {kernel.shape[0]} taps for T={x.shape[-2]} tokens, want at most as many: cut it, "
            f"kernel[:{x.shape[-2]}]"
        )
    starts = _starts(x, segment_ids)
    if starts is None:
        return _by_fourier(x, kernel)
    count = _count(segment_ids) if max_segments is None else max_segments
    if count < 1:
        raise ValueError(f"max_segments: got {count}, want at least 1")
    run = jnp.cumsum(starts, -1)[..., None]

    @jax.checkpoint
    def step(out, at):
        own = run == at
        return jnp.where(own, _by_fourier(jnp.where(own, x, 0), kernel), out), None

    out = jnp.full_like(x, jnp.nan)
    return lax.scan(step, out, jnp.arange(count, dtype=run.dtype))[0]


def light_conv(x: Float[Array, "*B T D"], logits: Float[Array, "L N"], **run: Any) -> Convolved:
    """Lightweight convolution: kernels are softmaxes over their taps, shared by the D / N channels of a head,

        y_td = sum_{j < L} softmax_j(logits_jn) x_{t-j,d},    n = d // (D / N).

    The first L - 1 tokens see fewer than L, and so their weights sum to less than one.

    Source: Wu et al., 2019, Pay Less Attention with Lightweight and Dynamic Convolutions, arXiv 1901.10430. The gated
    projection before and the one after are the layer's.

    Args:
        x: inputs ``[*B, T, D]``.
        logits: ``[L, N]``; D is a multiple of N.
        run: state, return_state, segment_ids: as for ``short_convolution``.

    Returns:
        As ``short_convolution``.

    Raises:
        ValueError: a shape does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from attnjax import linear
        >>> print(linear.light_conv(jnp.array([[2.0], [4.0], [6.0]]), jnp.zeros((2, 1)))[:, 0])
        [1. 3. 5.]
    """
    _divides(logits, x)
    return short_convolution(x, jnp.repeat(jax.nn.softmax(logits, 0), x.shape[-1] // logits.shape[-1], -1), **run)


def dynamic_conv(
    x: Float[Array, "*B T D"],
    logits: Float[Array, "*B T L N"],
    *,
    state: Float[Array, "*B L-1 D"] | None = None,
    return_state: bool = False,
    segment_ids: Int[Array | np.ndarray, "*#B T"] | None = None,
) -> Convolved:
    """Dynamic convolution: ``light_conv`` with a kernel of its own for each token,

        y_td = sum_{j < L} softmax_j(logits_tjn) x_{t-j,d},    n = d // (D / N).

    Logits are made of one token (the authors' are linear in ``x_t``): no query is compared with a key.

    Source: Wu et al., 2019, Pay Less Attention with Lightweight and Dynamic Convolutions, arXiv 1901.10430.

    Args:
        x: inputs ``[*B, T, D]``.
        logits: ``[*B, T, L, N]``; D is a multiple of N.
        state, return_state, segment_ids: as for ``short_convolution``.

    Returns:
        As ``short_convolution``.

    Raises:
        ValueError: a shape does not fit.
        TypeError: a dtype does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from attnjax import linear
        >>> previous = jnp.tile(jnp.array([[-100.0], [0.0]]), (3, 1, 1))
        >>> print(linear.dynamic_conv(jnp.array([[2.0], [4.0], [6.0]]), previous)[:, 0])
        [0. 2. 4.]
    """
    if logits.shape[:-2] != x.shape[:-1]:
        raise ValueError(f"logits: got shape {logits.shape}, want [*B, T, L, N], here {[*x.shape[:-1], 'L', 'N']}")
    _divides(logits, x)
    out, last = _by_taps(x, jnp.moveaxis(jax.nn.softmax(logits, -2), -2, 0), state, segment_ids)
    return (out, last) if return_state else out


def base_conv(
    x: Float[Array, "*B T D"],
    weight: Float[Array, "D D"],
    bias: Float[Array, " D"],
    kernel: Float[Array, "L D"],
    kernel_bias: Float[Array, " D"],
    *,
    fourier: bool = False,
    residual: bool = False,
    **run: Any,
) -> Convolved:
    """Gated convolution, ``y_t = (W^T x_t + b_1) (sum_j kernel_j x_{t-j} + b_2)``, elementwise.

    Source: Arora et al., 2023, Zoology, arXiv 2312.04927. Deviation: the paper's form; the authors' code adds x to it
    (``residual``), and x to its long convolution (``kernel.at[0].add(1)``), which has no bias.

    Args:
        x: inputs ``[*B, T, D]``.
        weight: ``W [D, D]``.
        bias: ``b_1``.
        kernel: ``[L, D]``; see ``implicit_kernel`` for long ones.
        kernel_bias: ``b_2``.
        fourier: convolve by ``long_convolution``.
        residual: add x.
        run: further arguments of ``short_convolution`` or ``long_convolution``.

    Returns:
        As the convolution.

    Raises:
        ValueError: a shape does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> from attnjax import linear
        >>> zero = jnp.zeros(1)
        >>> print(linear.base_conv(jnp.arange(3.0)[:, None], jnp.ones((1, 1)), zero, jnp.ones((2, 1)), zero)[:, 0])
        [0. 1. 6.]
    """
    gate = jnp.einsum("...d,de->...e", x, weight) + _wide(bias, x)
    found = (long_convolution if fourier else short_convolution)(x, kernel, **run)
    mixed, *state = found if isinstance(found, tuple) else (found,)
    out = gate * (mixed + _wide(kernel_bias, x)) + (x if residual else 0)
    return (out, state[0]) if state else out


class ImplicitKernel(NamedTuple):
    """Parameters of ``implicit_kernel``: two layers, F features of a position to M hidden units to D channels.

    Attributes:
        first: ``[F, M]``, F odd and at least 3.
        first_bias: ``[M]``.
        last: ``[M, D]``.
        last_bias: ``[D]``.
    """

    first: Float[Array, "F M"]
    first_bias: Float[Array, " M"]
    last: Float[Array, "M D"]
    last_bias: Float[Array, " D"]

    @classmethod
    def init(cls, key: Key[Array, ""], channels: int, features: int = 3, hidden: int = 16) -> "ImplicitKernel":
        """Uniform in ``+-1 / sqrt(inputs)``, weights and biases."""
        keys = jax.random.split(key, 4)
        draw = lambda i, *shape, inputs: jax.random.uniform(keys[i], shape, minval=-1, maxval=1) * inputs**-0.5
        return cls(
            draw(0, features, hidden, inputs=features), draw(1, hidden, inputs=features),
            draw(2, hidden, channels, inputs=hidden), draw(3, channels, inputs=hidden),
        )  # fmt: skip


def implicit_kernel(length: int, parameters: ImplicitKernel) -> Float[Array, "L D"]:
    """A kernel as long as one likes of parameters that do not grow with it: a small network of the tap's position,

        kernel_j = W_2^T relu(W_1^T z_j + b_1) + b_2,    z_j = [j / (L - 1), cos(2 pi f j / L), -sin(2 pi f j / L)]

    with (F - 1) / 2 frequencies f from 1e-4 to (F - 1) / 2 - 1; with F = 3 there is one, and all but ``j / (L - 1)`` is
    nearly constant.

    Source: Arora et al., 2023, Zoology, arXiv 2312.04927, and the authors' code.

    Args:
        length: L; a shorter sequence takes the first rows of it.
        parameters: see ``ImplicitKernel``.

    Returns:
        ``[L, D]``, for ``long_convolution``.

    Raises:
        ValueError: the length is not positive, or the number of features is even or less than 3.

    Example:
        >>> import jax
        >>> from attnjax import linear
        >>> linear.implicit_kernel(64, linear.ImplicitKernel.init(jax.random.key(0), 8)).shape
        (64, 8)
    """
    features = parameters.first.shape[0]
    if length < 1 or features < 3 or features % 2 == 0:
        raise ValueError(
            f"implicit_kernel(length={length}): got first of {features} features, want a positive length and an odd "
            f"number of features, at least 3: the position and pairs of cosine and sine"
        )
    dtype, bands = parameters.first.dtype, (features - 1) // 2
    at = jnp.arange(length, dtype=dtype)
    angle = 2 * jnp.pi / length * jnp.outer(at, jnp.linspace(1e-4, bands - 1, bands, dtype=dtype))
    z = jnp.concatenate([at[:, None] / max(length - 1, 1), jnp.cos(angle), -jnp.sin(angle)], -1)
    hidden = jax.nn.relu(z @ parameters.first + _wide(parameters.first_bias, z))
    return hidden @ parameters.last + _wide(parameters.last_bias, z)


def _by_taps(x: Array, weights: Array, state: Array | None, segment_ids: Any) -> tuple[Array, Array]:
    """Convolution with weights ``[L, *#B, #T, N]``, each for D / N channels; and what the next tokens will see."""
    _floating(x)
    *batch, tokens, width = x.shape
    taps, dtype = weights.shape[0], jnp.promote_types(x.dtype, jnp.float32)
    if taps < 1:
        raise ValueError("kernel: got no taps, want at least 1")
    wanted = (*batch, taps - 1, width)
    if state is not None and state.shape != wanted:
        raise ValueError(f"state: got shape {state.shape}, want the L - 1 tokens before, [*B, L-1, D] = {list(wanted)}")
    before = jnp.zeros(wanted, dtype) if state is None else state.astype(dtype)
    every = jnp.concatenate([before, x.astype(dtype)], -2)
    seen = _seen(x, taps, segment_ids)

    @jax.checkpoint  # a tap is found again sooner than it is kept
    def step(out, tap):
        j, weight = tap
        back = lax.dynamic_slice_in_dim(every, taps - 1 - j, tokens, axis=-2)
        back = back if seen is None else jnp.where((seen >= j)[..., None], back, 0)
        return out + jnp.repeat(weight.astype(dtype), width // weight.shape[-1], -1) * back, None

    # Kernels of up to 8 taps are no loop.
    out, _ = lax.scan(step, jnp.zeros(x.shape, dtype), (jnp.arange(taps), weights), unroll=8)
    last = lax.slice_in_dim(every, tokens, None, axis=-2)
    if seen is not None:
        steps = jnp.expand_dims(jnp.arange(taps - 2, -1, -1), tuple(range(len(batch))))
        last = jnp.where((seen[..., -1:] >= steps)[..., None], last, 0)
    return out.astype(x.dtype), last.astype(x.dtype)


def _seen(x: Array, taps: int, segment_ids: Any) -> Array | None:
    """How many tokens before it each token may see: the first segment's see the state."""
    starts = _starts(x, segment_ids)
    if starts is None:
        return None
    at = lax.broadcasted_iota(jnp.int32, starts.shape, starts.ndim - 1)
    return at - lax.cummax(jnp.where(starts, at, 1 - taps), starts.ndim - 1)


def _by_fourier(x: Array, kernel: Array) -> Array:
    """Convolution by the product of spectra, of twice the length or more: a shorter one would be circular."""
    tokens, dtype = x.shape[-2], jnp.promote_types(x.dtype, jnp.float32)
    size = 1 << (2 * tokens - 1).bit_length()
    spectrum = lambda y: jnp.fft.rfft(y.astype(dtype), size, axis=-2)
    product = spectrum(x) * _wide(spectrum(kernel), x)
    return lax.slice_in_dim(jnp.fft.irfft(product, size, axis=-2), 0, tokens, axis=-2).astype(x.dtype)


def _starts(x: Array, segment_ids: Any) -> Array | None:
    """Whether a token starts a segment, after another."""
    ids = _validate.by_batch("segment_ids", segment_ids, x.shape[:-1], "[*B, T]")
    return None if ids is None else jnp.zeros(ids.shape, bool).at[..., 1:].set(ids[..., 1:] != ids[..., :-1])


def _count(segment_ids: Any) -> int:
    if _compat.is_traced(segment_ids):
        raise ValueError("segment_ids: their values are not known here (they are traced), want max_segments with them")
    ids = np.asarray(segment_ids)
    return 1 + int(np.max(np.sum(ids[..., 1:] != ids[..., :-1], -1)))


def _floating(x: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x: got {x.dtype}, want a floating-point array")


def _channels(kernel: Array, x: Array) -> None:
    if kernel.ndim != 2 or kernel.shape[1] != x.shape[-1]:
        raise ValueError(f"kernel: got shape {kernel.shape}, want [L, D], a row for each tap, D={x.shape[-1]}")


def _divides(logits: Array, x: Array) -> None:
    heads, channels = logits.shape[-1], x.shape[-1]
    if heads == 0 or channels % heads:
        raise ValueError(f"logits: got N={heads} heads for D={channels} channels, want a divisor of {channels}")


def _wide(x: Array, like: Array) -> Array:
    """With as many axes as another."""
    return jnp.expand_dims(x, tuple(range(like.ndim - x.ndim)))
