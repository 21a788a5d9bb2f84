"""Sequence models as linear dynamical systems that change with time: attention, state spaces, gated recurrences."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from attnjax.linear._state_spaces import by_channel


class System(NamedTuple):
    """``h_i = L_i h_{i-1} + B_i u_i``, ``y_i = <C_i, h_i> + D_i u_i``, with L diagonal, from h = 0.

    Each of K channels has H states and an input ``u`` of width V; the V parts of an input evolve alike.

    Attributes:
        transition: ``L``, any numbers, ``[*B, T, K, H]``.
        write: ``B``, ``[*B, T, K, H]``.
        read: ``C``, ``[*B, T, K, H]``.
        skip: ``D``, ``[*B, T, K]``, or None.
    """

    transition: Float[Array, "*B T K H"]
    write: Float[Array, "*B T K H"]
    read: Float[Array, "*B T K H"]
    skip: Float[Array, "*B T K"] | None = None


def simulate(system: System, u: Float[Array, "*B T K V"]) -> Float[Array, "*B T K V"]:
    """Outputs of a system, by a prefix scan over its states: O(T K H V) time and memory.

    Source: Sieber et al., 2024, Understanding the differences in Foundation Models, arXiv 2405.15731.

    Args:
        system: what acts.
        u: inputs ``[*B, T, K, V]``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> half = jnp.full((3, 1, 1), 0.5)
    >>> print(linear.simulate(linear.System(half, half, 2 * half), jnp.ones((3, 1, 1)))[:, 0, 0])
    [0.5   0.75  0.875]
    """

    def later(first, then):
        (a, x), (b, y) = first, then
        return a * b, b * x + y

    moves, writes = system.transition[..., None], system.write[..., None] * u[..., None, :]
    _, states = lax.associative_scan(later, (jnp.broadcast_to(moves, writes.shape), writes), axis=u.ndim - 3)
    out = jnp.einsum("...h,...hv->...v", system.read, states)
    return out if system.skip is None else out + system.skip[..., None] * u


def mixing_matrix(system: System) -> Float[Array, "*B K T T"]:
    """The lower triangle with which a system multiplies its inputs,

        M_ij = <C_i, L_i ... L_{j+1} B_j>    for j < i,    M_ii = <C_i, B_i> + D_i,

    by products, not quotients, of transitions, so that they may be zero: O(K H T^2) memory.

    Source: Sieber et al., 2024, Understanding the differences in Foundation Models, arXiv 2405.15731.

    Args:
        system: what acts.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> half = jnp.full((3, 1, 1), 0.5)
    >>> print(linear.mixing_matrix(linear.System(half, half, 2 * half))[0])
    [[0.5   0.    0.   ]
     [0.25  0.5   0.   ]
     [0.125 0.25  0.5  ]]
    """
    transition, write, read = (jnp.moveaxis(x, -3, -1) for x in system[:3])  # [*B, K, H, T]
    length = transition.shape[-1]
    after = jnp.tri(length, k=-1, dtype=bool)  # [i, j]: i after j
    factors = jnp.where(_like(after, transition), transition[..., :, None], 1)
    kept = jnp.where(_like(jnp.tri(length, dtype=bool), transition), jnp.cumprod(factors, -2), 0)
    found = jnp.einsum("...hi,...hij,...hj->...ij", read, kept, write)
    if system.skip is None:
        return found
    direct = jnp.moveaxis(system.skip, -2, -1)[..., None]
    return found + direct * _like(jnp.eye(length, dtype=found.dtype), direct[..., 0])


def _like(matrix: Array, x: Array) -> Array:
    """``[T, T]`` with axes in front of it, for ``x`` with one axis T."""
    return matrix.reshape(*(1,) * (x.ndim - 1), *matrix.shape)


def attention_system(q: Float[Array, "*B T K H"], k: Float[Array, "*B T K H"]) -> System:
    """Linear attention without a divisor: ``L = 1``, ``B = k_i``, ``C = q_i``.

    Source: Sieber et al., 2024, Understanding the differences in Foundation Models, arXiv 2405.15731. With features of
    all orders of exp it would be softmax attention: then the state is infinite.

    Args:
        q: features of queries ``[*B, T, K, H]``.
        k: features of keys ``[*B, T, K, H]``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> one = jnp.ones((3, 1, 1))
    >>> print(linear.simulate(linear.attention_system(one, one), one)[:, 0, 0])
    [1. 2. 3.]
    """
    return System(jnp.ones_like(k), k, q)


def normalized_attention_system(
    q: Float[Array, "*B T K H"], k: Float[Array, "*B T K H"], divisor: Float[Array, "*B T K"]
) -> System:
    """Linear attention divided by numbers of its tokens, ``y_i = sum_{j <= i} <q_i, k_j> u_j / eta_i``:
    ``L = eta_{i-1} / eta_i``, ``B = k_i / eta_i``, ``C = q_i``.

    Source: Sieber et al., 2024, Understanding the differences in Foundation Models, arXiv 2405.15731, where eta is
    exp, softplus or sigmoid of a linear function of the token. ``attend`` divided by eta is the same.

    Args:
        q: features of queries ``[*B, T, K, H]``.
        k: features of keys ``[*B, T, K, H]``.
        divisor: ``eta > 0``, ``[*B, T, K]``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> one = jnp.ones((3, 1, 1))
    >>> mean = linear.normalized_attention_system(one, one, jnp.array([[1.0], [2.0], [3.0]]))
    >>> print(linear.simulate(mean, one)[:, 0, 0])
    [1. 1. 1.]
    """
    before = jnp.concatenate([divisor[..., :1, :], divisor[..., :-1, :]], -2)
    return System(jnp.broadcast_to((before / divisor)[..., None], k.shape), k / divisor[..., None], q)


def selective_system(
    c: Float[Array, "*B T N"],
    b: Float[Array, "*B T N"],
    step: Float[Array, "*B T D"],
    rate: Float[Array, "D N"],
    skip: Float[Array, " D"] | None = None,
) -> System:
    """A selective state space (S6), whose channels are those of its input: ``L = exp(d_i A)``, ``B = d_i b_i``,
    ``C = c_i``.

    It is normalized linear attention where ``exp(d_i A) = eta_{i-1} / eta_i`` and ``d_i b_i = k_i / eta_i``: a step
    sets decay and write together, a divisor too, but not by the same law.

    Source: Gu and Dao, 2023, Mamba, arXiv 2312.00752; as a system: Sieber et al., 2024, arXiv 2405.15731.

    Args:
        c: readers ``[*B, T, N]``.
        b: writers ``[*B, T, N]``.
        step: ``d > 0``, ``[*B, T, D]``.
        rate: ``A < 0``, ``[D, N]``.
        skip: ``[D]``, or None.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> one = jnp.ones((3, 1))
    >>> print(linear.selective_system(one, one, one, jnp.log(jnp.full((1, 1), 0.5))).transition[:, 0, 0])
    [0.5 0.5 0.5]
    """
    read, write, decay = by_channel(c, b, step, rate)
    return System(jnp.exp(decay), write, read, None if skip is None else jnp.broadcast_to(skip, step.shape))


def gated_system(forget: Float[Array, "*B T K"], write: Float[Array, "*B T K"], read: Float[Array, "*B T K"]) -> System:
    """A gated recurrence with a state for each channel, and gates that do not see it (qLSTM): ``L = f_i``, ``B = i_i``,
    ``C = o_i``.

    Source: Sieber et al., 2024, Understanding the differences in Foundation Models, arXiv 2405.15731. With
    ``f = sigmoid(-z)`` and ``i = softplus(z)`` it is S6 of one state with ``A = -1``.

    Args:
        forget: ``[*B, T, K]``, 0 to 1.
        write: likewise.
        read: likewise.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> half = jnp.full((3, 1), 0.5)
    >>> print(linear.simulate(linear.gated_system(half, half, 2 * half), jnp.ones((3, 1, 1)))[:, 0, 0])
    [0.5   0.75  0.875]
    """
    return System(forget[..., None], write[..., None], read[..., None])


def rg_lru_system(log_decay: Float[Array, "*B T K"], gate: Float[Array, "*B T K"]) -> System:
    """The real-gated linear recurrent unit: ``L = exp(a_i)``, ``B = sqrt(1 - L^2) i_i``, ``C = 1``: white inputs leave
    a state of as much variance.

    Source: De et al., 2024, Griffin, arXiv 2402.19427, where ``a = -8 softplus(.) r_i``; as a system: Sieber et al.,
    2024, arXiv 2405.15731.

    Args:
        log_decay: ``a < 0``, ``[*B, T, K]``.
        gate: ``i``, ``[*B, T, K]``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> print(linear.rg_lru_system(jnp.log(jnp.full((1, 1), 0.6)), jnp.ones((1, 1))).write[0, 0].round(3))
    [0.8]
    """
    # 1 - L^2 has no digits left where L is near one.
    write = jnp.sqrt(-jnp.expm1(2 * log_decay)) * gate
    return System(jnp.exp(log_decay)[..., None], write[..., None], jnp.ones_like(write)[..., None])
