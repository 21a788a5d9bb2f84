"""Linear attention in all its forms."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from attnjax.linear import _validate
from attnjax.linear._forms import Reads
from attnjax.linear._poles import Decay, Keep
from attnjax.linear._run import Form, Normalize, Outputs, Over, Run, State, run_all


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
    over: Over | None = None,
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
        over: ``attnjax.parallel.state_passing(layout)`` for a sequence that is split over devices.

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
    run = Run(form, chunk_size, state, return_state, segment_ids, lengths, causal, over)
    # Known decays would be added up by the compiler, slowly.
    poles = Keep() if decay is None else Decay(lax.optimization_barrier(decay))
    reads = Reads("before" if exclusive else "after", "decayed")
    return run_all(q, k, v, poles, write, strength, normalize, eps, reads, run, bonus)


def scaled(q: Array) -> Array:
    """``q / sqrt(H)``."""
    return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
