"""How a state evolves between writes: by decay (one pole), or by decay and momentum (two).

All of one head. A state holds one matrix ``[H, V]`` for each pole, of which the first is read. Inside a stretch of C
tokens everything linear follows from what a write, or the state before the stretch, adds to each later read: the
responses. The chunked and the parallel form are nothing else.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from attnjax.attention._component import array, component

Read = Literal["after", "decayed", "before"]
"""When the state is read at a token: after its write; after its decay, before its write; before either."""


class Carry(NamedTuple):
    """What a stretch leaves of the state before it, and of its own writes.

    Attributes:
        state: ``[P, P, H]`` or ``[P, P, 1]``: from pole to pole, less the identity.
        write: ``[C, P, H]``, or 1 along axes that do not matter: of a write in each pole at the end.
    """

    state: jax.Array
    write: jax.Array


class Poles:
    """Per-token arrays with a leading axis T; methods take stretches of them.

    Attributes:
        count: P.
    """

    count: int

    def transition(self, state: jax.Array) -> jax.Array:
        """The state ``[P, H, V]`` after one token's decay (arrays without their axis T)."""
        raise NotImplementedError

    def weights(self, x: jax.Array, y: jax.Array, read: Read, same: jax.Array) -> jax.Array:
        """``W[i, j] = <x_i, what a write along y_j leaves at read i>``, ``[G, C, C]``; zero unless ``same[i, j]``."""
        raise NotImplementedError

    def reads(self, read: Read) -> jax.Array:
        """What each read sees of each pole before the stretch, ``[C, P, H]``, or 1 along axes that do not matter."""
        raise NotImplementedError

    def carry(self) -> Carry:
        """What the stretch leaves behind."""
        raise NotImplementedError

    def frozen(self, live: jax.Array) -> "Poles":
        """These poles where tokens are alive ``[T]``; elsewhere the state stays as it is."""
        raise NotImplementedError


@jax.custom_jvp
def _expm1(x: jax.Array) -> jax.Array:
    """``exp(x) - 1`` with ``exp(x)`` as its derivative; jax adds the 1 again, and loses small ones."""
    return jnp.expm1(x)


@_expm1.defjvp
def _(primals, tangents):
    (x,), (along,) = primals, tangents
    return _expm1(x), jnp.exp(x) * along


def lower(read: Read, length: int) -> jax.Array:
    """Which writes a read sees, ``[C, C]``."""
    return jnp.tril(jnp.ones((length, length), bool), 0 if read == "after" else -1)


@component
class Keep(Poles):
    """``S_t = S_{t-1} + k_t u_t^T``."""

    count = 1

    def transition(self, state):
        return state

    def weights(self, x, y, read, same):
        return jnp.where((same & lower(read, len(y)))[None], x @ y.T, 0)

    def reads(self, read):
        return jnp.ones((1, 1, 1), jnp.float32)

    def carry(self):
        return Carry(jnp.zeros((1, 1, 1), jnp.float32), jnp.ones((1, 1, 1), jnp.float32))

    def frozen(self, live):
        return self


@component
class Decay(Poles):
    """``S_t = exp(a_t) S_{t-1} + k_t u_t^T``.

    Attributes:
        log: ``a_t <= 0``: one for a token ``[T]``, or one for each of its features ``[T, H]``.
    """

    log: Any = array()

    count = 1

    def transition(self, state):
        # expm1: exp(a) near one is rounded by as much as the state loses in a step, always to the same side.
        return state + _expm1(self.log).reshape(1, -1, 1) * state

    @property
    def _sums(self) -> jax.Array:
        """Sums of log decays, ``[C, H]`` or ``[C, 1]``; over a stretch, since over all tokens they lose digits."""
        return jnp.cumsum(self.log.reshape(self.log.shape[0], -1), axis=0)

    def _at(self, read: Read) -> jax.Array:
        sums = self._sums
        return jnp.concatenate([jnp.zeros_like(sums[:1]), sums[:-1]]) if read == "before" else sums

    def weights(self, x, y, read, same):
        rows, cols = self._at(read), self._sums
        seen = same & lower(read, len(cols))
        if self.log.ndim == 1:
            # Pairs without a decay in between are left out: in their gradient two large numbers would cancel. What is
            # hidden is so before the exponential: after it, gradients would be infinity times zero.
            next_to = jnp.eye(len(cols), k=-1 if read == "before" else 0, dtype=bool)
            decayed = jnp.exp(jnp.where(seen & ~next_to, rows - cols.T, -jnp.inf))
            return (x @ y.T) * jnp.where(seen & next_to, 1, decayed)[None]
        return jnp.where(seen[None], _bisected(x, y, rows, cols, read == "after"), 0)

    def reads(self, read):
        return jnp.exp(self._at(read))[:, None, :]

    def carry(self):
        sums = self._sums
        write = jnp.concatenate([jnp.exp(sums[-1:] - sums[:-1]), jnp.ones_like(sums[:1])])
        return Carry(_expm1(sums[-1])[None, None], write[:, None])

    def frozen(self, live):
        return Decay(jnp.where(live.reshape(live.shape + (1,) * (self.log.ndim - 1)), self.log, 0))


def _bisected(x: jax.Array, y: jax.Array, rows: jax.Array, cols: jax.Array, diagonal: bool) -> jax.Array:
    """``W[i, j] = sum_h x_ih y_jh exp(rows_ih - cols_jh)`` for j < i, and for j = i, without the factor, if asked.

    Of two halves of a stretch the later one meets the earlier one in a product of matrices: with the decay up to the
    cut taken from each side all factors are at most one, and nothing overflows or underflows that the result does not.
    What is left are the two halves themselves.
    """
    length, size = len(cols), 1
    padded = 1 << (length - 1).bit_length()
    widen = lambda z, mode: jnp.pad(z, [(0, 0)] * (z.ndim - 2) + [(0, padded - length), (0, 0)], mode=mode)
    x, y, rows, cols = widen(x, "constant"), widen(y, "constant"), widen(rows, "edge"), widen(cols, "edge")
    found = jnp.sum(x * y[None], -1) if diagonal else jnp.zeros_like(x[..., 0])
    found = found[..., None, None]  # [G, blocks, size, size]
    halves = lambda z: z.reshape(*z.shape[:-2], -1, 2, size, z.shape[-1])
    while size < padded:
        late, early = halves(x)[:, :, 1], halves(y)[:, 0]
        after, before = halves(rows)[:, 1], halves(cols)[:, 0]
        cut = before[:, -1:]
        across = jnp.einsum("gbih,bjh->gbij", late * jnp.exp(after - cut)[None], early * jnp.exp(cut - before))
        top = jnp.concatenate([found[:, 0::2], jnp.zeros_like(across)], -1)
        found = jnp.concatenate([top, jnp.concatenate([across, found[:, 1::2]], -1)], -2)
        size *= 2
    return found[:, 0, :length, :length]


@component
class Momentum(Poles):
    """``Z_t = eta_t Z_{t-1} + k_t u_t^T``, ``S_t = (1 - alpha_t) S_{t-1} + Z_t``; the poles are S and Z.

    Attributes:
        forget: ``alpha``, ``[T]``; 1 is allowed.
        momentum: ``eta``, ``[T]``; 0 is allowed.
        live: 0 where the state stays as it is, ``[T]``.
    """

    forget: Any = array()
    momentum: Any = array()
    live: Any = array()

    count = 2

    def transition(self, state):
        speed = self.momentum * state[1]
        return jnp.stack([state[0] - self.forget * state[0] + self.live * speed, speed])

    @property
    def _products(self) -> tuple[jax.Array, jax.Array]:
        """``[C + 1, C + 1]``: products of what is kept of S, and of Z, from after token j to after token i; 0 is the
        start. They are multiplied up, since a factor may be zero."""
        return _products(1 - self.forget), _products(self.momentum)

    def _responses(self) -> tuple[jax.Array, jax.Array]:
        """Of S to the speed added at each token (0 is the speed at the start), ``[C + 1, C + 1]``; of S to itself."""
        kept, speed = self._products
        live = jnp.concatenate([jnp.zeros_like(self.live[:1]), self.live])
        return (kept * live[None]) @ speed, kept[:, 0]

    def weights(self, x, y, read, same):
        response = _shifted(self._responses()[0], read)[:, 1:]
        return (x @ y.T) * jnp.where(same & lower(read, len(response)), response, 0)[None]

    def reads(self, read):
        if read == "decayed":
            raise NotImplementedError("a state with momentum is read before or after its update")
        response, kept = self._responses()
        return jnp.stack([_shifted(kept, read), _shifted(response[:, 0], read)], 1)[..., None]

    def carry(self):
        response, kept = self._responses()
        _, speed = self._products
        state = jnp.array([[kept[-1] - 1, response[-1, 0]], [jnp.zeros_like(kept[-1]), speed[-1, 0] - 1]])
        return Carry(state[..., None], jnp.stack([response[-1, 1:], speed[-1, 1:]], 1)[..., None])

    def frozen(self, live):
        return Momentum(
            jnp.where(live, self.forget, 0), jnp.where(live, self.momentum, 1), jnp.where(live, self.live, 0)
        )


def _shifted(x: jax.Array, read: Read) -> jax.Array:
    """Of rows 0 (the start) to C those that reads are at."""
    return x[:-1] if read == "before" else x[1:]


def _products(factors: jax.Array) -> jax.Array:
    """``P[i, j] = prod_{j < n <= i} factors_n`` for i >= j, else 0, ``[C + 1, C + 1]``."""
    length = len(factors) + 1
    place = jnp.arange(length)
    factors = jnp.concatenate([jnp.ones_like(factors[:1]), factors])
    later = place[:, None] > place[None, :]
    products = jnp.cumprod(jnp.where(later, factors[:, None], 1), axis=0)
    return jnp.where(place[:, None] >= place[None, :], products, 0)
