"""Mechanisms that correct the state towards what is written."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from attnjax.linear import _validate
from attnjax.linear._attend import attend, scaled
from attnjax.linear._forms import Reads
from attnjax.linear._poles import Momentum
from attnjax.linear._run import Outputs, Run, run_all


def delta_rule(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    beta: Float[Array, "*#B #T #K"],
    log_decay: Float[Array, "*#B #T #K"] | Float[Array, "*#B #T #K #H"] | None = None,
    **run: Any,
) -> Outputs:
    """The delta rule,

        S_t = (I - beta_t k_t k_t^T) exp(a_t) S_{t-1} + beta_t k_t v_t^T,    o_t = S_t^T q_t / sqrt(H).

    With unit keys and ``beta = 1`` the last write is read exactly. A decay by feature comes before the correction.

    Source: Yang et al., 2024, arXiv 2406.06484; with a decay of each token (Gated DeltaNet), arXiv 2412.06464.

    Args:
        q: queries ``[*B, T, N, H]``.
        k: keys ``[*B, T, K, H]``; give unit vectors: the rule contracts while ``beta |k|^2 < 2``.
        v: values ``[*B, T, K, V]``.
        beta: the strength of the correction.
        log_decay: ``a <= 0``, or None.
        run: form, chunk_size, state, return_state, segment_ids, lengths: as for ``attend``.

    Returns:
        As ``attend``.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4)) / 2
    >>> bool(jnp.allclose(linear.delta_rule(x, x, x, jnp.ones((8, 2))), x / 2))
    True
    """
    return attend(scaled(q), k, v, log_decay=log_decay, beta=beta, **run)


def titans(
    q: Float[Array, "*B T N H"],
    k: Float[Array, "*B T K H"],
    v: Float[Array, "*B T K V"],
    rate: Float[Array, "*#B #T #K"],
    momentum: Float[Array, "*#B #T #K"] | None = None,
    forget: Float[Array, "*#B #T #K"] | None = None,
    **run: Any,
) -> Outputs:
    """A linear memory trained while it reads, by gradient descent with momentum and weight decay:

        Z_t = eta_t Z_{t-1} - theta_t grad l_t(M_{t-1}),    M_t = (1 - alpha_t) M_{t-1} + Z_t,    o_t = M_t^T q_t,

    with ``l_t(M) = |M^T k_t - v_t|^2 / 2``. Exact in every form, chunks included: the published chunks take gradients
    at the state before the chunk, which is another function for each chunk size.

    Source: Behrouz et al., 2025, Titans: Learning to Memorize at Test Time, arXiv 2501.00663. Deviation:
    half of their loss, so that without momentum and weight decay it is the delta rule with ``beta = theta``; memories
    that are networks are not of this form.

    Args:
        q: queries ``[*B, T, N, H]``; not scaled.
        k: keys ``[*B, T, K, H]``; it converges while ``theta |k|^2 < 2 (1 + eta)``.
        v: values ``[*B, T, K, V]``.
        rate: ``theta >= 0``.
        momentum: ``0 <= eta < 1``, or None.
        forget: ``0 <= alpha <= 1``, or None.
        run: form, chunk_size, state, return_state, segment_ids, lengths: as for ``attend``.

    Returns:
        As ``attend``; the state holds M and Z.

    >>> import jax.numpy as jnp
    >>> from attnjax import linear
    >>> x = jnp.ones((8, 2, 4)) / 2
    >>> linear.titans(x, x, x, jnp.ones((8, 2)), momentum=jnp.full((8, 2), 0.5)).shape
    (8, 2, 4)
    """
    _validate.arrays(q, k, v)
    numbers = {"rate": rate, "momentum": momentum, "forget": forget}
    for name, x in numbers.items():
        _validate.not_negative(name, x)
    zeros = jnp.zeros((1,) * (k.ndim - 1), jnp.float32)
    theta, eta, alpha = (
        _validate.by_token(n, zeros if x is None else x, k, features=False) for n, x in numbers.items()
    )
    assert theta is not None
    poles = Momentum(alpha, eta, jnp.ones_like(theta))
    return run_all(q, k, v, poles, None, theta, None, 0.0, Reads("after", "before"), Run(**run))
