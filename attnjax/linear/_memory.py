"""Memories that are trained while they are read: gradient descent on a pytree of parameters, token by token."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key, PyTree

from attnjax.linear import _learner, _validate
from attnjax.linear._learner import Apply, Rule, Tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemoryState:
    """What a trained memory is after some tokens; a pytree, to be passed back as it came.

    Attributes:
        memory: its parameters, leaves ``[*B, K, ...]``; where they are the image of a map, what the map is taken of.
        momentum: of each parameter, or None where there is none.
    """

    memory: Any
    momentum: Any = None


Outputs = Float[Array, "*B T N V"] | tuple[Float[Array, "*B T N V"], MemoryState]
Loss = Callable[[Array, Array], Array]


def half_squared(read: Float[Array, " V"], value: Float[Array, " V"]) -> Float[Array, ""]:
    """``|read - value|^2 / 2``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> float(linear.half_squared(jnp.ones(4), jnp.zeros(4)))
    2.0
    """
    return jnp.sum((read - value) ** 2) / 2


def linear_memory(params: Float[Array, "H V"], x: Float[Array, " H"]) -> Float[Array, " V"]:
    """``M^T x``: a memory that is one matrix.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> linear.linear_memory(2 * jnp.eye(3), jnp.ones(3)).tolist()
    [2.0, 2.0, 2.0]
    """
    return x @ params


def mlp_memory(params: PyTree[Float[Array, "_ _"]], x: Float[Array, " H"]) -> Float[Array, " V"]:
    """``M_L^T gelu(... gelu(M_1^T x))``: a memory that is a perceptron without biases.

    Args:
        params: its matrices in order, ``[H, E]``, ..., ``[E, V]``.
        x: a key or a query.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> linear.mlp_memory((jnp.eye(3), jnp.eye(3)), jnp.zeros(3)).tolist()
    [0.0, 0.0, 0.0]
    """
    first, *rest = jax.tree.leaves(params)
    x = x @ first
    for matrix in rest:
        x = jax.nn.gelu(x, approximate=False) @ matrix
    return x


def residual_memory(params: PyTree[Float[Array, "_ _"]], x: Float[Array, " H"]) -> Float[Array, " H"]:
    """``x + norm(mlp_memory(params, x))``: what is stored are departures from the key, of a fixed size.

    Source: the memory of Miras, Behrouz et al., 2025, arXiv 2504.13173. Deviation: the norm, over features, has no
    scale or shift to learn.

    Args:
        params: as for ``mlp_memory``, with as many values as features.
        x: a key or a query.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> linear.residual_memory((jnp.eye(3), jnp.eye(3)), jnp.ones(3)).tolist()
    [1.0, 1.0, 1.0]
    """
    return x + jax.nn.standardize(mlp_memory(params, x), epsilon=1e-5)


def mlp_memory_init(
    key: Key[Array, ""], *, heads: int, features: int, hidden: int, width: int
) -> tuple[Float[Array, "K H E"], Float[Array, "K E V"]]:
    """Random matrices of a perceptron with one hidden layer for each head, of variance one over the number of inputs.

    Args:
        key: random key.
        heads: K, key/value heads.
        features: H of the keys.
        hidden: E, units of the hidden layer.
        width: V of the values.

    >>> import jax
    >>> from attnjax import linear
    >>> params = linear.mlp_memory_init(jax.random.key(0), heads=2, features=4, hidden=16, width=3)
    >>> [matrix.shape for matrix in params]
    [(2, 4, 16), (2, 16, 3)]
    """
    first, second = jax.random.split(key)
    return (
        jax.random.normal(first, (heads, features, hidden)) * features**-0.5,
        jax.random.normal(second, (heads, hidden, width)) * hidden**-0.5,
    )


def neural_memory(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    rate: Float[Array, "*#B #T #K"],
    momentum: Float[Array, "*#B #T #K"] | None = None,
    forget: Float[Array, "*#B #T #K"] | None = None,
    *,
    params: PyTree[Float[Array, "K ..."]],
    apply: Apply = mlp_memory,
    loss: Loss = half_squared,
    chunk_size: int = 1,
    state: MemoryState | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "*#B T"] | None = None,
    lengths: Int[Array, "*#B"] | None = None,
) -> Outputs:
    """Any memory trained while it reads, by gradient descent with momentum and weight decay:

        Z_t = eta_t Z_{t-1} - theta_t grad l_t(M),    M_t = (1 - alpha_t) M_{t-1} + Z_t,    o_t = apply(M_t, q_t),

    with ``l_t(M) = loss(apply(M, k_t), v_t)``, by default half the squared error. With ``chunk_size=1`` the gradient is
    taken at ``M_{t-1}``. With larger chunks it is taken at the memory before the chunk: all gradients of a chunk at
    once, and the two recurrences by prefix scans, **another function for each chunk size**. With a linear memory and
    ``chunk_size=1`` it is ``titans``, which is exact in chunks of any size; with the loss ``-<read, value>`` and no
    momentum it is ``attend`` of values ``theta v`` and decays ``1 - alpha``.

    Source: Behrouz et al., 2025, Titans: Learning to Memorize at Test Time, arXiv 2501.00663. Deviation: half of their
    loss; numbers for each token also in chunks, and a last chunk that is not full is stored.

    Args:
        q: queries ``[*B, T, N, H]``; not scaled.
        k: keys ``[*B, T, K, H]``; N is a multiple of K, and N / K query heads read one memory.
        v: values ``[*B, T, K, V]``.
        rate: ``theta >= 0``.
        momentum: ``0 <= eta < 1``, or None.
        forget: ``0 <= alpha <= 1``, or None.
        params: the memory at the start of every segment: a pytree of leaves ``[K, ...]``, one memory for each
            key/value head, the same for the whole batch.
        apply: ``(one head's params, [H]) -> [V]``. Give the same function at every call: each is compiled anew.
        loss: ``(read [V], value [V]) -> number``; the same function at every call, likewise.
        chunk_size: tokens in a chunk; need not divide T.
        state: what came before; None begins with ``params``.
        return_state: also return the state after the last token.
        segment_ids: ``[*B, T]``: where they change, the memory begins anew; gradients of a segment that begins inside
            a chunk are those at ``params``.
        lengths: ``[*B]``: later tokens are not stored, and their outputs are zero.

    Returns:
        Outputs ``[*B, T, N, V]`` in q's dtype, and the state if it is asked for: O(C P + T V) numbers beside them, for
        P parameters, and O((T / C) P) in a backward pass.

    Raises:
        ValueError: a shape or size does not fit, or a known number is negative.
        TypeError: a dtype does not fit.

    >>> import jax, jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jax.random.normal(jax.random.key(0), (32, 2, 4))
    >>> params = linear.mlp_memory_init(jax.random.key(1), heads=2, features=4, hidden=16, width=4)
    >>> out, state = linear.neural_memory(x, x, x, jnp.full((32, 2), 0.1), params=params, return_state=True)
    >>> out.shape, [matrix.shape for matrix in state.memory]
    ((32, 2, 4), [(2, 4, 16), (2, 16, 4)])
    """
    rule = Rule(apply, _Gradient(loss), _learner.identity)
    run = Run(chunk_size, state, return_state, segment_ids, lengths)
    return learn(q, k, v, rate, momentum, forget, params, rule, run)


@dataclasses.dataclass(frozen=True)
class _Gradient:
    """Of a loss, with respect to what is read."""

    loss: Loss

    def __call__(self, read: Array, value: Array, threshold: Any) -> Array:
        return jax.grad(self.loss)(read, value)


@dataclasses.dataclass(frozen=True)
class Run:
    """How a memory is run; see ``neural_memory``."""

    chunk_size: int = 1
    state: MemoryState | None = None
    return_state: bool = False
    segment_ids: Any = None
    lengths: Any = None


def learn(
    q: Array,
    k: Array,
    v: Array,
    rate: Array,
    momentum: Array | None,
    forget: Array | None,
    params: Any,
    rule: Rule,
    run: Run,
    threshold: Array | None = None,
    shrink: Array | None = None,
) -> Any:
    """A rule: arrays of all heads to those of one, and back.

    Args:
        q: ``[*B, T, N, H]``, and so on: see ``neural_memory``.
        k: likewise.
        v: likewise.
        rate: likewise.
        momentum: likewise.
        forget: likewise.
        params: likewise.
        rule: what is learned, and how.
        run: likewise.
        threshold: what ``rule.pull`` is given beside the error.
        shrink: how far every parameter is moved towards zero after its step, or None.
    """
    _validate.arrays(q, k, v)
    _validate.chunk_size(run.chunk_size)
    numbers = {
        "rate": rate, "momentum": momentum, "forget": forget, "threshold": threshold, "shrink": shrink
    }  # fmt: skip
    for name, x in numbers.items():
        _validate.not_negative(name, x)
    theta, eta, alpha, delta, gamma = (_validate.by_token(n, x, k, features=False) for n, x in numbers.items())
    assert theta is not None
    *batch, length, heads, features = k.shape
    segments = _validate.by_batch("segment_ids", run.segment_ids, (*batch, length), "[*B, T]")
    lengths = _validate.by_batch("lengths", run.lengths, tuple(batch), "[*B]")
    dtype = jnp.promote_types(k.dtype, jnp.float32)
    params = _initial(params, heads, dtype)
    initial = jax.tree.map(lambda x: jnp.broadcast_to(x, (*batch, *x.shape)), params)
    first = MemoryState(initial, None if eta is None else jax.tree.map(jnp.zeros_like, initial))
    first = first if run.state is None else _continued(run.state, first)

    by_head = lambda x: jnp.moveaxis(x, -2, -3).reshape(-1, length, x.shape[-1])
    number = lambda x: jnp.moveaxis(x.astype(dtype), -1, -2).reshape(-1, length)
    maybe = lambda x: None if x is None else number(x)
    over_heads = lambda x: jnp.repeat(x.reshape(-1, length), heads, axis=0)
    grouped = jnp.moveaxis(q.astype(dtype).reshape(*batch, length, heads, -1, features), -3, -4)
    places = lax.broadcasted_iota(jnp.int32, (*batch, length), len(batch))
    live = places >= 0 if lengths is None else places < lengths[..., None]
    start = None
    if segments is not None:
        start = jnp.zeros((*batch, length), bool).at[..., 1:].set(segments[..., 1:] != segments[..., :-1]) & live
    tokens = Tokens(
        grouped.reshape(-1, length, *grouped.shape[-2:]), by_head(k.astype(dtype)), by_head(v.astype(dtype)),
        number(theta), maybe(eta), maybe(alpha), maybe(delta), maybe(gamma),
        None if start is None else over_heads(start), over_heads(live),
    )  # fmt: skip
    flat = lambda tree: jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(batch) + 1 :]), tree)
    state = flat(first.memory), flat(first.momentum)
    out, last = _learner.all_heads(tokens, flat(initial), state, rule, run.chunk_size)
    out = jnp.moveaxis(out.reshape(*batch, heads, *out.shape[1:]), -4, -3)
    out = out.reshape(*q.shape[:-1], -1).astype(q.dtype)
    last = jax.tree.map(lambda x: x.reshape(*batch, heads, *x.shape[1:]), last)
    return (out, MemoryState(*last)) if run.return_state else out


def _initial(params: Any, heads: int, dtype: Any) -> Any:
    """Parameters of every head's memory, in the type of sums."""
    leaves = jax.tree.leaves(params)
    shapes = [jnp.shape(x) for x in leaves]
    if not leaves or any(shape[:1] != (heads,) for shape in shapes):
        raise ValueError(
            f"params: got leaves of shape {shapes}, want [K, ...] with K={heads}: one memory for each head"
        )
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def _continued(state: Any, like: MemoryState) -> MemoryState:
    """The state that was given, in the type of sums."""
    if not isinstance(state, MemoryState):
        raise ValueError(f"state: got {type(state).__name__}, want the MemoryState that the same call returned")
    got, want = ([jnp.shape(x) for x in jax.tree.leaves(x)] for x in (state, like))
    if got != want or jax.tree.structure(state) != jax.tree.structure(like):
        raise ValueError(
            f"state: got leaves of shape {got}, want {want}: those of params, [*B, K, ...], and again if there is "
            f"momentum"
        )
    return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), state, like)
