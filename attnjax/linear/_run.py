"""Running a mechanism: arrays of all heads to those of one, its form, and back."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from attnjax import _explicit
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


@runtime_checkable
class Over(Protocol):
    """Runs heads whose tokens are split over devices; hashable. See ``attnjax.parallel.state_passing``."""

    def __call__(self, run: "Runs", head: "Head", batch: int) -> "tuple[Array, State]":
        """Outputs and last state of heads whose arrays begin with ``batch`` axes and then one of heads."""
        ...


class Run(NamedTuple):
    """How a mechanism is run; see ``attend``."""

    form: Form = "chunked"
    chunk_size: int = 64
    state: State | None = None
    return_state: bool = False
    segment_ids: Any = None
    lengths: Any = None
    causal: bool = True
    over: "Over | None" = None


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
    arrays = {"q": q, "k": k, "v": v}
    row = _explicit.rows(arrays, "over=attnjax.parallel.state_passing(...)")
    call = functools.partial(_run_all, normalize, eps, reads, run)
    if row is not None:
        heads = PartitionSpec(*row[:-2], row[-1])
        call = _explicit.automatic(call, arrays, (row, heads) if run.return_state else row)
    return call(q, k, v, poles, write, beta, bonus, run.state, run.segment_ids, run.lengths)


def _run_all(
    normalize: Normalize | None,
    eps: float,
    reads: Reads,
    run: Run,
    q: Array,
    k: Array,
    v: Array,
    poles: Poles,
    write: Array | None,
    beta: Array | None,
    bonus: Array | None,
    state: State | None,
    segment_ids: Any,
    lengths: Any,
) -> Any:
    *batch, length, _, features = q.shape
    heads, width, dtype = k.shape[-2], v.shape[-1] + (normalize is not None), _accumulator(k)
    target = _pallas_target(poles, k, run.chunk_size) if run.form == "pallas" else None
    held = k.dtype if target is not None and k.dtype == jnp.bfloat16 else dtype  # kernels take narrow operands
    shape = (*batch, heads, poles.count, features, width)
    segments = _validate.by_batch("segment_ids", segment_ids, (*batch, length), "[*B, T]")
    lengths = _validate.by_batch("lengths", lengths, tuple(batch), "[*B]")
    if state is not None:
        _validate.state(state, shape, write is not None)
    if normalize is not None:
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)

    # Heads come before tokens: [*B, T, K, ...] to [*B, K, T, ...].
    by_head = lambda x: jnp.moveaxis(x, -2, -3) if x.ndim == k.ndim else jnp.moveaxis(x, -1, -2)
    over_heads = lambda x: jnp.broadcast_to(x[..., None, :], (*batch, heads, length))
    grouped = jnp.moveaxis(q.astype(held).reshape(*batch, length, heads, -1, features), -3, -4)
    start = jnp.zeros((*batch, length), bool)
    if segments is not None:
        start = start.at[..., 1:].set(segments[..., 1:] != segments[..., :-1])
    live = (
        jnp.ones((*batch, length), bool)
        if lengths is None
        else lax.broadcasted_iota(jnp.int32, (*batch, length), len(batch)) < lengths[..., None]
    )
    first = state or State(
        jnp.zeros(shape, dtype), None if write is None else jnp.full((*batch, heads, features), -jnp.inf, dtype)
    )
    tokens = Tokens(
        grouped, by_head(k.astype(held)), by_head(v.astype(held)), jax.tree.map(by_head, poles),
        None if beta is None else by_head(beta), over_heads(start),
    )  # fmt: skip
    head = Head(
        tokens, over_heads(live), None if write is None else by_head(write),
        None if bonus is None else jnp.broadcast_to(bonus.astype(dtype), (*batch, heads, features)), first,
    )  # fmt: skip
    how = How(run.form, run.chunk_size, run.causal, segments is not None, target)
    runs = Runs(normalize, float(eps), reads, how)
    out, last = runs(head, len(batch)) if run.over is None else run.over(runs, head, len(batch))
    out = jnp.moveaxis(out, -4, -3).reshape(*q.shape[:-1], -1).astype(q.dtype)
    return (out, last) if run.return_state else out


class Head(NamedTuple):
    """One key/value head, or all along the first axes."""

    tokens: Tokens
    live: jax.Array
    write: jax.Array | None
    bonus: jax.Array | None
    state: State


class Runs(NamedTuple):
    """What is done with every head: hashable."""

    normalize: Normalize | None
    eps: float
    reads: Reads
    how: How

    def __call__(self, heads: Head, batch: int) -> tuple[Array, State]:
        """Outputs ``[*B, K, T, G, V]`` and last state of heads whose arrays begin with ``[*B, K]``."""
        return _all_heads(heads, self, batch)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _all_heads(heads: Head, runs: Runs, batch: int) -> tuple[Array, State]:
    """Compiled as one: called eagerly, every small step would be a program of its own."""
    every: Callable = lambda head: _one_head(head, *runs)
    for _ in range(batch + 1):  # not one flat axis: jit may split some
        every = jax.vmap(every)
    return every(heads)


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


def _one_head(head: Head, normalize: Normalize | None, eps: float, reads: Reads, run: How) -> tuple[Array, State]:
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


def _accumulator(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)
