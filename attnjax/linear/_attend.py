"""Linear attention in all its forms."""

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from attnjax.linear import _forms, _monoid, _validate
from attnjax.linear._forms import Reads, Tokens
from attnjax.linear._poles import Decay, Keep, Poles

Form = Literal["chunked", "recurrent", "parallel", "scan", "pallas"]
Normalize = Literal["row", "feature"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What is remembered of the tokens so far; a pytree, to be passed back as it came.

    Attributes:
        value: ``[*B, K, P, H, V]``: a matrix for each key/value head and pole (P is 1, or 2 with momentum); normalized
            attention has one more column.
        log_scale: ``[*B, K, H]``: the log of what it is multiplied by, where writes have scales of their own.
    """

    value: jax.Array
    log_scale: jax.Array | None = None


Outputs = Float[Array, "*B T N V"] | tuple[Float[Array, "*B T N V"], State]


class How(NamedTuple):
    """What of a run is known before it: hashable.

    Attributes:
        form, chunk_size, causal: see ``attend``.
        segmented: whether segments are given.
        target: what kernels are compiled for.
    """

    form: Form
    chunk_size: int
    causal: bool
    segmented: bool
    target: Any = None


class Run(NamedTuple):
    """How a mechanism is run; see ``attend``."""

    form: Form = "chunked"
    chunk_size: int = 64
    state: State | None = None
    return_state: bool = False
    segment_ids: Any = None
    lengths: Any = None
    causal: bool = True


def attend(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    *,
    log_decay: Float[Array, "*#B #T #K"] | Float[Array, "*#B #T #K #H"] | None = None,
    log_write: Float[Array, "*#B #T #K"] | Float[Array, "*#B #T #K #H"] | None = None,
    beta: Float[Array, "*#B #T #K"] | None = None,
    normalize: Normalize | None = None,
    eps: float | int = 0.0,
    exclusive: bool = False,
    bonus: Float[Array, "#K #H"] | None = None,
    causal: bool = True,
    form: Form = "chunked",
    chunk_size: int = 64,
    state: State | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "*#B T"] | None = None,
    lengths: Int[Array, "*#B"] | None = None,
) -> Outputs:
    """Attention by a state of fixed size, causal unless asked otherwise.

    Each key/value head holds a matrix ``S`` ``[H, V]`` and at token t

        S_t = exp(a_t) S_{t-1} + exp(s_t) k_t u_t^T,        o_t = S_t^T q_t,

    with ``u_t = v_t``, or, given ``beta``, ``u_t = beta_t (v_t - (exp(a_t) S_{t-1})^T k_t)`` (the delta rule). Features
    are applied to q and k before, by the caller; there is no ``scale``.

    Forms: "recurrent" goes token by token; "chunked" computes chunks of tokens by products of matrices and hands the
    state from chunk to chunk, in O(T (C + H) (H + V)) time; "parallel" is one chunk of all tokens, O(T^2); "scan" is an
    associative scan over the states, O(T H V) memory; "pallas" is "chunked" in a kernel for TPU or Hopper, which holds
    the state on the chip (on TPU chunks of 128 suit it, on GPU 64). All give the same numbers, up to rounding.

    Sources: Katharopoulos et al., 2020, Transformers are RNNs, arXiv 2006.16236; decay by feature and chunks: Yang et
    al., 2023, Gated Linear Attention, arXiv 2312.06635; the delta rule in chunks: Yang et al., 2024, Parallelizing
    Linear Transformers with the Delta Rule, arXiv 2406.06484; gated: arXiv 2412.06464. Deviations: q is not scaled by
    ``1 / sqrt(H)``; the state is ``[H, V]``; sums are at least float32.

    Args:
        q: queries ``[*B, T, N, H]``.
        k: keys ``[*B, T, K, H]``; N is a multiple of K, and N / K query heads read one state.
        v: values ``[*B, T, K, V]``.
        log_decay: ``a <= 0``, for each token and head, or for each of its features; None keeps all. Give the log, and
            in float32: from a decay near one its log has lost most digits.
        log_write: ``s``, any real number or -inf, likewise. Outputs are right however large it is where they are
            normalized.
        beta: ``0 <= beta``; for unit keys at most 2.
        normalize: "row" divides by ``z_t^T q_t``, "feature" divides each feature's row of ``S_t`` by ``z_t`` before it
            is read; ``z`` is the state of values that are one.
        eps: added to the divisor.
        exclusive: read ``S_{t-1}``, before its decay, instead of ``S_t``.
        bonus: ``[K, H]``: exclusive reads see the token's own write times this, ``S_{t-1} + Diag(bonus) exp(s_t) k_t
            v_t^T``.
        causal: False adds what a state that comes from the other end holds before its write at t: every token sees all
            of its segment, at the decays in between.
        form: see above.
        chunk_size: tokens in a chunk; need not divide T. Of "pallas" 16 times a power of two.
        state: what came before; None begins with zeros.
        return_state: also return the state after the last token.
        segment_ids: ``[*B, T]``: where they change, the state begins anew.
        lengths: ``[*B]``: later tokens are not written, and their outputs are zero.

    Returns:
        Outputs ``[*B, T, N, V]`` in q's dtype, and the state if it is asked for.

    Raises:
        ValueError: a shape or size does not fit, a known decay is positive, or the form cannot do what is asked.
        TypeError: a dtype does not fit.
        NotImplementedError: no kernel runs the call here.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from attnjax import linear
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 100, 2, 16))
        >>> first, state = linear.attend(q[:60], k[:60], v[:60], return_state=True)
        >>> rest = linear.attend(q[60:], k[60:], v[60:], state=state, form="recurrent")
        >>> whole = linear.attend(q, k, v)
        >>> bool(jnp.allclose(jnp.concatenate([first, rest]), whole, atol=1e-3))
        True
    """
    _validate.arrays(q, k, v)
    decay = _validate.by_token("log_decay", log_decay, k, features=True)
    _validate.not_positive("log_decay", log_decay)
    write = _validate.by_token("log_write", log_write, k, features=True)
    strength = _validate.by_token("beta", beta, k, features=False)
    _validate.not_negative("beta", beta)
    if bonus is not None and not (exclusive and beta is None):
        raise ValueError("bonus: want exclusive=True and no beta: an inclusive read sees the token's own write already")
    run = Run(form, chunk_size, state, return_state, segment_ids, lengths, causal)
    # Known decays would be added up by the compiler, slowly.
    poles = Keep() if decay is None else Decay(lax.optimization_barrier(decay))
    reads = Reads("before" if exclusive else "after", "decayed")
    return run_all(q, k, v, poles, write, strength, normalize, eps, reads, run, bonus)


def run_all(
    q: Array,
    k: Array,
    v: Array,
    poles: Poles,
    write: Array | None,
    beta: Array | None,
    normalize: Normalize | None,
    eps: float,
    reads: Reads,
    run: Run,
    bonus: Array | None = None,
) -> Any:
    """A mechanism: arrays of all heads to those of one, and back."""
    _validate.choice("form", run.form, Form)
    _validate.chunk_size(run.chunk_size)
    if normalize is not None:
        _validate.choice("normalize", normalize, Normalize)
    if beta is not None and (normalize is not None or write is not None):
        raise ValueError("beta: want neither normalize nor log_write with it: what corrects a state has no weights")
    two_sided = beta is None and run.state is None and not run.return_state
    if not run.causal and not (two_sided and (reads.output == "after" or bonus is not None)):
        raise ValueError(
            "causal=False: a delta rule, exclusive reads and a state to continue from are causal only: a state knows "
            "what came before, not all"
        )
    *batch, length, _, features = q.shape
    heads, width, dtype = k.shape[-2], v.shape[-1] + (normalize is not None), _accumulator(k)
    target = _pallas_target(poles, k, run.chunk_size) if run.form == "pallas" else None
    held = k.dtype if target is not None and k.dtype == jnp.bfloat16 else dtype  # kernels take narrow operands
    shape = (*batch, heads, poles.count, features, width)
    segments = _validate.by_batch("segment_ids", run.segment_ids, (*batch, length), "[*B, T]")
    lengths = _validate.by_batch("lengths", run.lengths, tuple(batch), "[*B]")
    if run.state is not None:
        _validate.state(run.state, shape, write is not None)
    if normalize is not None:
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)

    by_head = lambda x: jnp.moveaxis(x, -2, -3).reshape(-1, x.shape[-3], x.shape[-1]) if x.ndim == k.ndim else (
        jnp.moveaxis(x, -1, -2).reshape(-1, x.shape[-2])
    )  # fmt: skip
    over_heads = lambda x: jnp.repeat(x.reshape(-1, *x.shape[len(batch) :]), heads, axis=0)
    # [*B, T, N, H] to [B K, T, G, H]
    grouped = q.astype(held).reshape(*batch, length, heads, -1, features)
    grouped = jnp.moveaxis(grouped, -3, -4).reshape(-1, length, *grouped.shape[-2:])
    start = jnp.zeros((*batch, length), bool)
    if segments is not None:
        start = start.at[..., 1:].set(segments[..., 1:] != segments[..., :-1])
    live = (
        jnp.ones((*batch, length), bool)
        if lengths is None
        else lax.broadcasted_iota(jnp.int32, (*batch, length), len(batch)) < lengths[..., None]
    )
    first = run.state or State(
        jnp.zeros(shape, dtype), None if write is None else jnp.full((*batch, heads, features), -jnp.inf, dtype)
    )
    tokens = Tokens(
        grouped, by_head(k.astype(held)), by_head(v.astype(held)), jax.tree.map(by_head, poles),
        None if beta is None else by_head(beta), over_heads(start),
    )  # fmt: skip
    head = _Head(
        tokens, over_heads(live), None if write is None else by_head(write), None if bonus is None else jnp.tile(
            jnp.broadcast_to(bonus.astype(dtype), (heads, features)), (math.prod(batch), 1)
        ),
        jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) + 1 :]), first),
    )  # fmt: skip
    how = How(run.form, run.chunk_size, run.causal, segments is not None, target)
    out, last = _all_heads(head, normalize, float(eps), reads, how)
    out = jnp.moveaxis(out.reshape(*batch, heads, *out.shape[1:]), -4, -3)
    out = out.reshape(*q.shape[:-1], -1).astype(q.dtype)
    last = jax.tree.map(lambda x: x.reshape(*batch, heads, *x.shape[1:]), last)
    return (out, last) if run.return_state else out


class _Head(NamedTuple):
    """One key/value head, or all along a first axis."""

    tokens: Tokens
    live: jax.Array
    write: jax.Array | None
    bonus: jax.Array | None
    state: State


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _all_heads(heads: _Head, normalize: Normalize | None, eps: float, reads: Reads, run: How) -> tuple[Array, State]:
    """Compiled as one: called eagerly, every small step would be a program of its own."""
    return jax.vmap(lambda head: _one_head(head, normalize, eps, reads, run))(heads)


def _pallas_target(poles: Poles, k: Array, size: int) -> Any:
    """What kernels are compiled for.

    Raises:
        NotImplementedError: no kernel runs the call, or there is nothing to run it on.
        ValueError: chunks of another length are needed.
    """
    from pallas_kernels import current

    target, why = current(), None
    if target is None:
        why = f"needs a TPU, or an H100 or H200; the default device is {jax.devices()[0].platform!r}"
    elif not isinstance(poles, Keep | Decay):
        why = "has no kernel for states with momentum"
    elif k.dtype == jnp.float64:
        why = "computes in float32; got float64"
    if why is not None:
        raise NotImplementedError(f"form='pallas' {why}; use form='chunked'")
    if size % 16 or size & (size - 1):
        raise ValueError(f"chunk_size: got {size}, want 16 times a power of two for form='pallas'; 128 suits it")
    return target


def _one_head(head: _Head, normalize: Normalize | None, eps: float, reads: Reads, run: How) -> tuple[Array, State]:
    given, live = head.tokens, head.live[:, None]
    tokens = given._replace(
        k=jnp.where(live, given.k, 0), poles=given.poles.frozen(head.live), start=given.start & head.live,
        beta=None if given.beta is None else jnp.where(head.live, given.beta, 0),
    )  # fmt: skip
    write = None if head.write is None else jnp.where(live, head.write.reshape(len(given.k), -1), -jnp.inf)
    sides = [_Side(tokens, write, head.state, normalize, reads, run)]
    flip = lambda x: jnp.flip(x, 0)
    if not run.causal:
        ends = jnp.concatenate([tokens.start[1:], jnp.zeros_like(tokens.start[:1])])
        turned, other = jax.tree.map(flip, (tokens._replace(start=ends), write))
        again = "decayed" if reads.output == "after" else "before"
        sides.append(_Side(turned, other, head.state, normalize, reads._replace(output=again), run))
    orders = [lambda x: x, flip]
    scales = [turn(x.scale) for x, turn in zip(sides, orders, strict=False) if x.scale is not None]
    own = [] if head.bonus is None or write is None else [jnp.broadcast_to(write, tokens.k.shape)]
    common = _common([*scales, *own], normalize) if scales else jnp.zeros((1, 1), tokens.q.dtype)
    factors = [jnp.exp(x - common) for x in scales] or [jnp.ones((1, 1), tokens.q.dtype)] * len(sides)
    alone = None if head.bonus is None else head.bonus[None] * tokens.k * (jnp.exp(own[0] - common) if own else 1)
    if normalize == "feature":
        masses = [f * turn(x.mass) for x, f, turn in zip(sides, factors, orders, strict=False)]
        mass = functools.reduce(jnp.add, masses if alone is None else [*masses, alone])
        factors = [f / _divisor(mass, eps) for f in factors]
        alone = None if alone is None else alone / _divisor(mass, eps)
    found = [x.out(turn(tokens.q * f[:, None])) for x, f, turn in zip(sides, factors, orders, strict=False)]
    parts = [turn(out) for (out, _), turn in zip(found, orders, strict=False)]
    if alone is not None:
        parts.append(jnp.sum(tokens.q * alone[:, None], -1, keepdims=True) * tokens.v[:, None])
    out = functools.reduce(jnp.add, parts)
    if normalize == "row":
        out = out[..., :-1] / _divisor(out[..., -1:], eps)
    out = out[..., :-1] if normalize == "feature" else out
    nothing = reads.output == "before" and head.bonus is None and run.causal
    seen = head.live & ~tokens.start if nothing else head.live
    return jnp.where(seen[:, None, None], out, 0), found[0][1]


def _common(scales: list[Array], normalize: Normalize | None) -> Array:
    """The log of a factor that goes out in the division, of a row or of each of its features: none overflows."""
    if normalize is None:
        return jnp.zeros((1, 1), scales[0].dtype)
    greatest = jnp.max(jnp.stack(scales), 0)
    if normalize == "row":
        greatest = jnp.max(greatest, -1, keepdims=True)
    return lax.stop_gradient(_monoid.finite(greatest))


class _Side:
    """The states that come from one end.

    Attributes:
        scale: the log scales that they are at where they are read, ``[T, H]``, or None.
        mass: their masses there, ``[T, H]``, if features are divided by them.
    """

    def __init__(
        self, tokens: Tokens, write: Array | None, state: State, normalize: Normalize | None, reads: Reads, run: How
    ):
        self.reads, self.run, self.state, self.states = reads, run, state, None
        self.scales: Array | None = None
        self.mass: Array | None = None
        scan = run.form == "scan" and isinstance(tokens.poles, (Keep, Decay)) and tokens.beta is None
        if scan:
            states, self.scales = _prefixes(tokens, write, state)
            self.states, self.final = self._read(states, tokens), states[-1:]
            self.mass = self.states[..., -1]
        else:
            if write is not None:
                tokens, self.scales = _relative(tokens, write, state.log_scale)
            if normalize == "feature":
                self.mass = self._read(_masses(tokens, state.value[0, :, -1]), tokens)
        self.tokens = tokens
        before = reads.output == "before" or (scan and reads.output == "decayed")
        self.scale = None if self.scales is None else self.scales[:-1] if before else self.scales[1:]

    def _read(self, x: Array, tokens: Tokens) -> Array:
        """Of what is before the first and after every token, what is read at each; by features, and perhaps values."""
        if self.reads.output == "after":
            return x[1:]
        wide = lambda y: y.reshape(*y.shape, *(1,) * (x.ndim - y.ndim))
        seen = jnp.where(wide(tokens.start), 0, x[:-1])
        return seen if self.reads.output == "before" else seen * wide(jnp.exp(_log_decay(tokens)))

    def out(self, q: Array) -> tuple[Array, State]:
        """Outputs of queries ``[T, G, H]``, and the state after the last token."""
        if self.states is not None:
            value, out = self.final, jnp.einsum("tgh,thv->tgv", q, self.states)
        else:
            tokens, run = self.tokens._replace(q=q), self.run
            if run.form == "pallas":
                from attnjax.linear import _pallas

                out, value = _pallas.chunked(
                    tokens, self.state.value, self.reads, run.chunk_size, run.segmented, run.target
                )
            else:
                out, value = _forms.run(run.form, tokens, self.state.value, self.reads, run.chunk_size)
        return out, State(value, None if self.scales is None else self.scales[-1])


def _divisor(x: Array, eps: float) -> Array:
    return jnp.where(x + eps == 0, 1, x + eps)


def _log_decay(tokens: Tokens) -> Array:
    if isinstance(tokens.poles, Keep):
        return jnp.zeros_like(tokens.k[:, :1])
    assert isinstance(tokens.poles, Decay)
    return tokens.poles.log.reshape(len(tokens.k), -1)


def _prefixes(tokens: Tokens, write: Array | None, state: State) -> tuple[Array, Array | None]:
    """States before the first and after every token, ``[T + 1, H, V]``, and their log scales ``[T + 1, H]``."""
    scaled = write is not None
    write = jnp.broadcast_to(jnp.zeros((1, 1), tokens.k.dtype) if write is None else write, tokens.k.shape)
    decay = jnp.broadcast_to(_log_decay(tokens), tokens.k.shape)
    elements = jax.vmap(_monoid.lift)(decay, write, tokens.k, tokens.v, tokens.start)
    before = jnp.zeros_like(decay[0]) if state.log_scale is None else state.log_scale
    before = _monoid.Element(jnp.zeros_like(decay[0]), before, state.value[0], jnp.zeros((), bool))
    found = _monoid.prefixes(elements, before)
    states = jnp.concatenate([before.value[None], found.value])
    scales = jnp.concatenate([before.scale[None], found.scale])
    return (states, scales) if scaled else (states * jnp.exp(scales)[..., None], None)


def _relative(tokens: Tokens, write: Array, before: Array | None) -> tuple[Tokens, Array]:
    """Tokens that write at log scale 0 into a state kept at the greatest log scale so far, and those scales
    ``[T + 1, H]``: writes with scales of their own become decays."""
    assert before is not None
    decay = jnp.broadcast_to(_log_decay(tokens), tokens.k.shape)
    write = jnp.broadcast_to(write, tokens.k.shape)

    def later(first, then):
        (a, m, s), (b, n, t) = first, then
        return a + b, jnp.maximum(jnp.where(t[:, None], -jnp.inf, m + b), n), s | t

    summed, greatest, begun = lax.associative_scan(later, lax.stop_gradient((decay, write, tokens.start)))
    greatest = jnp.maximum(greatest, jnp.where(begun[:, None], -jnp.inf, lax.stop_gradient(before)[None] + summed))
    scales = jnp.concatenate([lax.stop_gradient(before)[None], greatest])
    nothing = tokens.start[:, None] | jnp.isneginf(scales[:-1])
    moved = jnp.where(nothing, 0, decay + _monoid.finite(scales[:-1]) - _monoid.finite(greatest))
    moved = moved - lax.stop_gradient(jnp.maximum(moved, 0))  # rounding
    weight = jnp.where(jnp.isneginf(greatest), 0, jnp.exp(write - _monoid.finite(greatest)))
    return tokens._replace(k=tokens.k * weight, poles=Decay(moved)), scales


def _masses(tokens: Tokens, before: Array) -> Array:
    """States of values that are one, before the first and after every token, ``[T + 1, H]``."""
    kept = jnp.where(tokens.start[:, None], 0, jnp.exp(jnp.broadcast_to(_log_decay(tokens), tokens.k.shape)))

    def later(first, then):
        (a, x), (b, y) = first, then
        return a * b, b * x + y

    products, sums = lax.associative_scan(later, (kept, tokens.k))
    return jnp.concatenate([before[None], sums + products * before[None]])


def scaled(q: Array) -> Array:
    """``q / sqrt(H)``."""
    return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


def _accumulator(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
