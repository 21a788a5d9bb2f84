"""Linear attention over a sequence that is split over devices: each device's tokens are one map of the state.

What a stretch of tokens does to a state is an affine map of it. Each device finds that of its own tokens, beginning
with no state; a scan over devices composes them, in as many exchanges of states as the logarithm of their number; then
each device runs its tokens from the state that reaches it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from attnjax.linear import _monoid
from attnjax.linear._poles import Decay, Keep
from attnjax.linear._run import Head, Runs, State
from attnjax.parallel._layout import Layout


class _Matrix(NamedTuple):
    """``S -> move S + value``, of states with poles and features in one axis; where a correction mixes them.

    Attributes:
        move: ``[..., P H, P H]``.
        value: ``[..., P H, V]``.
    """

    move: jax.Array
    value: jax.Array


def _diagonal(head: Head) -> bool:
    """Whether features of the state keep apart."""
    return head.tokens.beta is None and isinstance(head.tokens.poles, Keep | Decay)


def _stretch(runs: Runs, head: Head, batch: int) -> Any:
    """What the tokens do to a state; ``head.state`` is not looked at."""
    tokens, state = head.tokens, head.state
    lead = state.value.shape[: batch + 1]
    poles, features, width = state.value.shape[-3:]
    if _diagonal(head):
        nothing = State(jnp.zeros_like(state.value), None if state.log_scale is None else state.log_scale - jnp.inf)
        _, last = runs(head._replace(state=nothing), batch)
        decay = jnp.zeros((*lead, features), state.value.dtype)
        if isinstance(tokens.poles, Decay):
            log = tokens.poles.log
            log = log if log.ndim == head.live.ndim + 1 else log[..., None]
            decay += jnp.where(head.live[..., None], log, 0).sum(-2)
        scale = jnp.zeros_like(decay) if last.log_scale is None else last.log_scale
        return _monoid.Element(decay, scale, last.value[..., 0, :, :], (tokens.start & head.live).any(-1))
    # Values of zero, from a state of unit vectors, show where each entry goes.
    size = poles * features
    unit = jnp.broadcast_to(jnp.eye(size).reshape(poles, features, size), (*lead, poles, features, size))
    value = jnp.concatenate([jnp.zeros_like(state.value), unit.astype(state.value.dtype)], -1)
    wide = jnp.concatenate([tokens.v, jnp.zeros((*tokens.v.shape[:-1], size), tokens.v.dtype)], -1)
    _, last = runs(head._replace(tokens=tokens._replace(v=wide), state=State(value)), batch)
    found = last.value.reshape(*lead, size, width + size)
    return _Matrix(found[..., width:], found[..., :width])


def _combine(first: Any, then: Any) -> Any:
    """One stretch after another."""
    if isinstance(first, _Matrix):
        return _Matrix(then.move @ first.move, then.move @ first.value + then.value)
    return _monoid.combine(first, then)


def _after(state: State, stretch: Any) -> State:
    """The state after a stretch."""
    value = state.value
    if isinstance(stretch, _Matrix):
        flat = value.reshape(*stretch.value.shape)
        return State((stretch.move @ flat + stretch.value).reshape(value.shape))
    # A log scale is a choice of representation: a constant to derivatives.
    scale = jnp.zeros_like(stretch.decay) if state.log_scale is None else lax.stop_gradient(state.log_scale)
    start = jnp.zeros_like(stretch.start)
    found = _monoid.combine(_monoid.Element(jnp.zeros_like(scale), scale, value[..., 0, :, :], start), stretch)
    if state.log_scale is None:
        return State((found.value * jnp.exp(found.scale)[..., None])[..., None, :, :])
    return State(found.value[..., None, :, :], found.scale)


@dataclasses.dataclass(frozen=True)
class StatePassing:
    """Runs heads whose tokens are split over devices; made by ``state_passing``."""

    layout: Layout

    def __call__(self, runs: Runs, head: Head, batch: int) -> tuple[jax.Array, State]:
        if not runs.how.causal:
            raise NotImplementedError("over=state_passing(...): causal=False is not supported, states go one way; use "
                                      "causal=True, or give all tokens to every device")  # fmt: skip
        names = ["batch" if n == 0 else None for n in range(batch)] + ["heads"]
        tokens, (*batch_sizes, heads, length) = "sequence", head.live.shape
        sizes = {"batch": batch_sizes[0] if batch else 0, "heads": heads, "sequence": length}
        for name, size in sizes.items():
            if size % self.layout.size(name):
                raise ValueError(
                    f"{name}: got {size}, want a multiple of the {self.layout.size(name)} devices that the layout "
                    f"splits it over, {self.layout.axes(name)}"
                )
        spread = lambda *more: lambda x: self.layout.spec(*names, *more, *[None] * (x.ndim - batch - 1 - len(more)))
        leaves, tree = jax.tree.flatten(head)
        count = len(jax.tree.leaves(head[:3]))  # tokens, live, write: the rest has no axis of tokens
        by_token, whole = spread(tokens), spread()
        in_specs = tuple((by_token if n < count else whole)(x) for n, x in enumerate(leaves))
        (axis,) = self.layout.axes(tokens) or (None,)

        def local(*leaves):
            out, last = self._local(runs, jax.tree.unflatten(tree, leaves), batch, axis)
            return out, jax.tree.leaves(last)

        out_specs = (by_token(head.tokens.q), [whole(x) for x in jax.tree.leaves(head.state)])
        out, last = jax.shard_map(
            local, mesh=self.layout.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )(*leaves)  # fmt: skip
        return out, State(*last)

    def _local(self, runs: Runs, head: Head, batch: int, axis: str | None) -> tuple[jax.Array, State]:
        if axis is None:
            return runs(head, batch)
        devices, me = self.layout.mesh.shape[axis], lax.axis_index(axis)
        total = _stretch(runs, head, batch)
        hop = lambda x, by: jax.tree.map(lambda y: lax.ppermute(y, axis, [(i, i + by) for i in range(devices - by)]), x)
        choose = lambda condition, x, y: jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)
        by = 1
        while by < devices:  # after it, of all devices up to this one
            total = choose(me >= by, _combine(hop(total, by), total), total)
            by *= 2
        before = choose(me > 0, _after(head.state, hop(total, 1)), head.state)
        out, last = runs(head._replace(state=before), batch)
        final = jax.tree.map(lambda x: lax.psum(jnp.where(me == devices - 1, x, 0), axis), last)
        return out, final


def state_passing(layout: Layout) -> StatePassing:
    """For ``linear.attend`` and every mechanism made of it: tokens are split over devices, which pass states on.

    ``linear.retention(q, k, v, decay, over=state_passing(layout))`` gives what it gives without ``over``. Two runs of a
    device's own tokens, and about log2(n) exchanges of a state for each head, whatever the length. Tokens lie as they
    are read (``contiguous``), and their number is a multiple of the devices'.

    Args:
        layout: the mesh axes that ``"batch"`` (the first axis), ``"sequence"`` (one axis) and ``"heads"`` are split
            over.

    Returns:
        What the argument ``over`` takes, hashable.

    Raises:
        ValueError: the layout splits the sequence over several mesh axes.

    Source: Sun et al., 2025, LASP-2, arXiv 2502.07563, gathers the states; the scan over devices is that of the
    chunks' own algebra.

    >>> import jax
    >>> from attnjax import linear, parallel
    >>> mesh = jax.make_mesh((1,), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> over = parallel.state_passing(parallel.layout(mesh, {"sequence": "context"}))
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 16, 2, 4))
    >>> linear.attend(q, k, v, over=over).shape
    (16, 2, 4)
    """
    if len(layout.axes("sequence")) > 1:
        raise ValueError(f"layout: got {layout.axes('sequence')} for 'sequence', want one mesh axis")
    return StatePassing(layout)
