"""Closed forms of Scan and Snap: how the decoder learns, how attention follows it, and when attention freezes.

Time counts samples: gradient flow with learning rates eta_Y of the decoder and eta_Z of the attention logits, one
sequence at a time, so that each of the K classes is seen t / K times by time t. Gradient descent on the mean over
classes covers K of it per step.

The decoder comes first. Where the bags f_1..f_K of the classes are orthonormal, its logits for class n are
w_n = (M - 1) h zeta_n with zeta_n = M / (M - 1) (e_n - 1 / M) and one number h, which grows linearly, then with the
logarithm of time. Attention is driven by what the decoder knows and has not yet said, which peaks in between:
afterwards it "snaps" to a fixed combination of tokens.

Source: Tian, Wang, Chen, Du, 2023, "Scan and Snap", NeurIPS 2023, arXiv 2305.16380.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.dynamics.scan_and_snap import attention, population
from attnjax.tasks import TokenClasses

_NEWTON = (
    100  # steps; a dozen do at double precision unless exp(x) starts far too high, from where each takes one off x
)


def decoder_height(
    seen: Float[Array, "..."], *, vocabulary: int, rate: float | Float[Array, ""]
) -> Float[Array, "..."]:
    """h after a class was seen for that long, under gradient flow: the root of an increasing function.

        dh/ds = eta_Y / (M - 1 + exp(M h)),  h(0) = 0   =>   exp(M h) + (M - 1) M h = M eta_Y s + 1

    Args:
        seen: s, samples of the class, not negative.
        vocabulary: M, at least 2.
        rate: eta_Y.

    Returns:
        h(s).

    Example:
        >>> h = decoder_height(jnp.array([0.0, 10.0, 80.0]), vocabulary=50, rate=0.5)
        >>> print(h.round(4))
        [0.     0.0801 0.148 ]

    Source: Tian, Wang, Chen, Du, 2023, Lemma 6 [continuous time], arXiv 2305.16380; the integrated form is an own
    derivation.
    """
    slope = vocabulary - 1.0
    right = vocabulary * rate * jnp.asarray(seen, jnp.result_type(float)) + 1

    def newton(_, x):
        return x - (jnp.exp(x) + slope * x - right) / (jnp.exp(x) + slope)

    # Both exp(x) and slope * x lie below the right side, so this starts at or above the root of a convex function.
    return jax.lax.fori_loop(0, _NEWTON, newton, jnp.minimum((right - 1) / slope, jnp.log(right))) / vocabulary


def decoder_heights(steps: int, *, vocabulary: int, rate: float) -> Float[Array, " steps"]:
    """h after each of the first samples of a class, under SGD.

        h(s) = h(s - 1) + eta_Y / (M - 1 + exp(M h(s - 1))),   h(0) = 0

    Args:
        steps: Number of samples.
        vocabulary: M.
        rate: eta_Y.

    Returns:
        h(1), ..., h(steps). It is above `decoder_height` by at most 2 eta_Y / M.

    Example:
        >>> print(decoder_heights(80, vocabulary=50, rate=0.5)[jnp.array([9, 79])].round(4))
        [0.0819 0.1486]

    Source: Tian, Wang, Chen, Du, 2023, Lemma 5, arXiv 2305.16380.
    """

    def step(h, _):
        h = h + rate / (vocabulary - 1 + jnp.exp(vocabulary * h))
        return h, h

    return jax.lax.scan(step, jnp.zeros(()), length=steps)[1]


def decoder_logits(height: Float[Array, "..."], vocabulary: int) -> Float[Array, "... M"]:
    """The decoder's logits for a class whose next token is token 0, w = (M - 1) h zeta.

        w_0 = (M - 1) h,   w_l = -h for the others

    Args:
        height: h.
        vocabulary: M.

    Returns:
        w.

    Example:
        >>> print(decoder_logits(jnp.array(0.5), 3))
        [ 1.  -0.5 -0.5]

    Source: Tian, Wang, Chen, Du, 2023, Lemma 5, arXiv 2305.16380.
    """
    height = jnp.asarray(height)[..., None]
    return jnp.concatenate([(vocabulary - 1) * height, jnp.repeat(-height, vocabulary - 1, axis=-1)], axis=-1)


def drive(time: Float[Array, "..."], *, vocabulary: int, classes: int, rate: float) -> Float[Array, "..."]:
    """gamma, the force on the attention logits: what the decoder knows times what it has not yet said.

        gamma(t) = (M - 1)^2 h(t / K) / (M - 1 + exp(M h(t / K)))

    Args:
        time: t, in samples.
        vocabulary: M.
        classes: K.
        rate: eta_Y.

    Returns:
        gamma(t): proportional to t at first, and to log(t) / t beyond `snapping_time`.

    Example:
        >>> gamma = drive(jnp.array([1.0, 50.0, 5000.0]), vocabulary=1000, classes=10, rate=1.0)
        >>> bool(gamma[1] > gamma[0]) and bool(gamma[1] > gamma[2])
        True

    Source: Tian, Wang, Chen, Du, 2023, Lemma 9, arXiv 2305.16380.
    """
    h = decoder_height(jnp.asarray(time) / classes, vocabulary=vocabulary, rate=rate)
    return (vocabulary - 1) ** 2 * h / (vocabulary - 1 + jnp.exp(vocabulary * h))


def snapping_time(*, vocabulary: int, classes: int, rate: float) -> float:
    """When attention turns from growing with log t to growing with log log t, to leading order.

        t_0' = K ln(M) / eta_Y

    Args:
        vocabulary: M.
        classes: K.
        rate: eta_Y.

    Returns:
        t_0', in samples. The force on attention peaks a little earlier, at 0.8 of it for M = 1000.

    Example:
        >>> print(round(snapping_time(vocabulary=1000, classes=10, rate=0.5), 2))
        138.16

    Source: Tian, Wang, Chen, Du, 2023, Theorem 4, arXiv 2305.16380.
    """
    return classes * math.log(vocabulary) / rate


def scanned(
    time: Float[Array, "..."],
    *,
    vocabulary: int,
    classes: int,
    rate_y: float,
    rate_z: float,
    common: float,
) -> Float[Array, "..."]:
    """B, how far attention has moved: a single common token's logit is -B, a dominant distinct one's is of order B.

        dz/dt = -(eta_Z / C_0) gamma(t) exp(4 z),  z(0) = 0
        B(t) = -z(t) = ln(1 + 2 (M - 1)^2 K eta_Z h(t / K)^2 / (C_0 eta_Y)) / 4

    Args:
        time: t, in samples.
        vocabulary: M.
        classes: K.
        rate_y: eta_Y.
        rate_z: eta_Z.
        common: C_0 = rho_0^4 / K, with rho_0 from the probability of the common token at the start.

    Returns:
        B(t). It grows with log t until `snapping_time`, then with log log t.

    Example:
        >>> knobs = dict(vocabulary=1000, classes=10, rate_z=0.5, common=0.1)
        >>> print([round(float(scanned(jnp.array(700.0), rate_y=rate, **knobs)), 3) for rate in (0.5, 1.0, 2.0, 5.0)])
        [2.481, 2.349, 2.21, 2.02]

    Source: Tian, Wang, Chen, Du, 2023, Theorem 4, arXiv 2305.16380, which has the two branches t < t_0' and t > t_0' to
    leading order; the closed form, which covers both, is an own derivation.
    """
    h = decoder_height(jnp.asarray(time) / classes, vocabulary=vocabulary, rate=rate_y)
    return 0.25 * jnp.log1p(2 * (vocabulary - 1) ** 2 * classes * rate_z * h**2 / (common * rate_y))


def attention_flow(
    time: Float[Array, ""],
    z: Float[Array, "M M"],
    classes: TokenClasses,
    *,
    rate_y: float | Float[Array, ""],
    rate_z: float | Float[Array, ""],
) -> Float[Array, "M M"]:
    """Velocity of the attention logits, per sample, while the decoder follows `decoder_height`.

        dz[m, l]/dt = (eta_Z / K) sum over the classes n with last token m of
                      f_nl [(I - f_n f_n^T) F beta_n]_l,   beta_n = (F^T F)^{-1} [w_k . (e_n - alpha_n)]_k

    The decoder is Y = F (F^T F)^{-1} W: it reads w_n off f_n whatever attention makes of the bags F = [f_1 .. f_K]. For
    a token of class n alone this is dz_l/dt = xi_n f_nl^2 with one xi_n for all of them.

    Args:
        time: t, in samples.
        z: Attention logits.
        classes: Distribution of the sequences.
        rate_y: eta_Y.
        rate_z: eta_Z.

    Returns:
        dz/dt; zero where there is nothing to attend.

    Example:
        >>> from attnjax.tasks import token_classes
        >>> classes = token_classes()
        >>> velocity = attention_flow(jnp.array(1.0), jnp.zeros((34, 34)), classes, rate_y=1.0, rate_z=1.0)
        >>> bool((velocity[30, 10:20] > 0).all()) and bool((velocity[30, :10] < 0).all())
        True

    Source: Tian, Wang, Chen, Du, 2023, Lemma 3 and Theorem 2, arXiv 2305.16380; the inverse Gram matrix, for bags that
    share tokens, is an own derivation.
    """
    k, vocabulary = classes.contextual.shape
    c = attention(z, population(classes))
    f = c / jnp.linalg.norm(c, axis=-1, keepdims=True)
    h = decoder_height(time / k, vocabulary=vocabulary, rate=rate_y)
    own = jax.nn.one_hot(classes.next, vocabulary, dtype=f.dtype)
    w = h * (vocabulary * own - 1)
    missing = own - jax.nn.softmax(w)
    beta = jnp.linalg.solve(f @ f.T, w @ missing.T)  # a column for each class
    told = beta.T @ f
    across = told - f * jnp.sum(f * told, axis=-1, keepdims=True)
    return jnp.zeros_like(z).at[classes.last].add(f * across) * rate_z / k
