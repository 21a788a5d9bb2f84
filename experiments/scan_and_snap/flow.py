"""Scan and Snap without sampling, in float64: the decoder sample by sample, attention by integration."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.dynamics import scan_and_snap as layer
from attnjax.dynamics import scan_and_snap_theory as theory
from attnjax.tasks import TokenClasses, token_classes
from experiments.framework.flows import integrate


class Path(NamedTuple):
    """Attention along the flow in the limit of long contexts.

    Attributes:
        times: `[T]` in samples.
        z: Logits of each class's last token `[T, C, M]`.
        f: Normalized bags `[T, C, M]`.
        velocities: dz/dt `[T, C, M]`.
        b: What each class's attention was driven by so far, the integral of xi_n `[T, C]`.
        distinct: Tokens that one class alone has, and which `[C, M]`.
        common: Tokens that several classes have `[M]`.
    """

    times: np.ndarray
    z: np.ndarray
    f: np.ndarray
    velocities: np.ndarray
    b: np.ndarray
    distinct: np.ndarray
    common: np.ndarray


def attention_path(classes: TokenClasses, times: jax.Array, *, rate_y: float, rate_z: float) -> Path:
    """Follow attention while the decoder follows its closed form.

    Args:
        classes: Distribution of the sequences.
        times: Increasing, from 0 `[T]`.
        rate_y: Learning rate of the decoder.
        rate_z: Learning rate of the attention logits.

    Returns:
        The path.
    """
    m = classes.contextual.shape[1]
    held = classes.contextual > 0
    distinct = held & (held.sum(0, keepdims=True) == 1)
    chosen = jnp.argmax(jnp.where(distinct, classes.contextual, 0), axis=1)  # of each class, its most frequent one
    batch = layer.population(classes)

    def bags(z):
        c = layer.attention(z, batch)
        return c / jnp.linalg.norm(c, axis=1, keepdims=True)

    def velocity(t, at):
        z, _ = at
        moved = theory.attention_flow(t, z, classes, rate_y=rate_y, rate_z=rate_z)
        own = jnp.arange(len(chosen)), chosen
        return moved, moved[classes.last, chosen] / bags(z)[own] ** 2

    start = jnp.zeros((m, m)), jnp.zeros(len(chosen))
    z, b = jax.jit(lambda times: integrate(velocity, start, times))(times)
    velocities = jax.vmap(lambda t, z: theory.attention_flow(t, z, classes, rate_y=rate_y, rate_z=rate_z))(times, z)
    arrays = times, z[:, classes.last], jax.vmap(bags)(z), velocities[:, classes.last], b, distinct
    return Path(*map(np.asarray, arrays), common=np.asarray(held.sum(0) > 1))


class Decoder(NamedTuple):
    """The decoder after each pass over the classes.

    Attributes:
        logits: Of the layer under SGD, one class at a time, for each class its own next token first `[S, C, M]`.
        recursion: h*, the recursion's height `[S]`.
        continuous: h, gradient flow's height `[S]`.
    """

    logits: np.ndarray
    recursion: np.ndarray
    continuous: np.ndarray


def decoder_path(*, classes: int, distinct: int, rate: float, passes: int) -> Decoder:
    """Train the layer's decoder alone where no token is shared, so that the bags are orthogonal.

    Args:
        classes: K.
        distinct: Tokens of each class.
        rate: Learning rate of the decoder.
        passes: How often each class is seen.

    Returns:
        Logits and heights.
    """
    law = token_classes(last=classes, common=0, distinct=distinct)
    law = jax.tree.map(lambda a: jnp.asarray(a, jnp.promote_types(a.dtype, jnp.int32)), law)
    everything, m = layer.population(law), law.contextual.shape[1]
    c = layer.attention(jnp.zeros((m, m)), everything)
    f = c / jnp.linalg.norm(c, axis=1, keepdims=True)

    def one_class(state, n):
        sequence = jax.tree.map(lambda leaf: leaf[n][None], everything)
        return layer.step(state, sequence, rate_y=rate, rate_z=0.0)[0], None

    def one_pass(state, _):
        state, _ = jax.lax.scan(one_class, state, jnp.arange(classes))
        return state, f @ state.params.y

    logits = np.asarray(jax.jit(lambda: jax.lax.scan(one_pass, layer.init(m), length=passes)[1])())
    own_first = np.stack([np.roll(logits[:, n], -int(law.next[n]), axis=-1) for n in range(classes)], axis=1)
    seen = jnp.arange(1.0, passes + 1)
    return Decoder(
        own_first,
        np.asarray(theory.decoder_heights(passes, vocabulary=m, rate=rate)),
        np.asarray(theory.decoder_height(seen, vocabulary=m, rate=rate)),
    )


def scanned_by_integration(
    times: jax.Array, *, vocabulary: int, classes: int, rate_y: float, rate_z: float, common: float
) -> np.ndarray:
    """B(t) of Theorem 4 from its two differential equations, for the decoder and for the common token.

    Args:
        times: Increasing, from 0 `[T]`.
        vocabulary: M.
        classes: K.
        rate_y: Learning rate of the decoder.
        rate_z: Learning rate of the attention logits.
        common: C_0.

    Returns:
        `[T]`.
    """
    m = vocabulary

    def velocity(t, at):
        h, z = at
        slowed = m - 1 + jnp.exp(m * h)
        return rate_y / classes / slowed, -rate_z / common * (m - 1) ** 2 * h / slowed * jnp.exp(4 * z)

    start = jnp.zeros(()), jnp.zeros(())
    return -np.asarray(jax.jit(lambda times: integrate(velocity, start, times))(times)[1])
