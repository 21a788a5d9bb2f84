"""SGD on linear self-attention over settings and seeds at once, in one vmap."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attnjax.dynamics import linear_attention
from attnjax.tasks import linear_regression
from experiments.framework.context import Context
from experiments.framework.flows import decay

TEST_CHUNK = 1024  # prompts in memory at a time, per setting and seed


class Ensemble(NamedTuple):
    """What differs between settings, stacked along a leading axis; all see the same random draws, seed by seed.

    Attributes:
        covariances: `[settings, D, D]`.
        noises: Standard deviation of the label noise `[settings]`.
        thetas: Shape of the start `[settings, D, D]`.
        learning_rates: At the first step; it falls linearly to zero `[settings]`.
    """

    covariances: Any
    noises: Any
    thetas: Any
    learning_rates: Any


class Shift(NamedTuple):
    """Test prompts of another law than the training ones.

    Attributes:
        covariance: Of the context's inputs `[D, D]`.
        prior: Of the task vector `[D, D]`.
        query: Covariance of the query's input `[D, D]`.
    """

    covariance: Any
    prior: Any
    query: Any


class Trained(NamedTuple):
    """What SGD did, in float64 on the host.

    Attributes:
        steps: Number of steps.
        learning_rates: At the first step `[settings]`.
        times: Flow time after every step, the sum of the learning rates so far `[settings, steps]`.
        products: tr(w u) / D after every step `[settings, seeds, steps]`.
        checkpoints: The steps after which the test risk was measured, as indices into `times` `[K]`.
        risks: Test risk at each checkpoint `[settings, seeds, K]`.
        final_products: w u at the end `[settings, seeds, D, D]`.
        stray: Norm of all entries outside the two blocks over the norm of all, at the end `[settings, seeds]`.
        lengths: Prompt lengths of `risks_by_length`, the training length first `[L]`.
        risks_by_length: Test risk at the end `[settings, seeds, L]`.
        risks_by_shift: Test risk at the end of one of the settings, by name of the shift `[seeds]`.
    """

    steps: int
    learning_rates: np.ndarray
    times: np.ndarray
    products: np.ndarray
    checkpoints: np.ndarray
    risks: np.ndarray
    final_products: np.ndarray
    stray: np.ndarray
    lengths: tuple[int, ...]
    risks_by_length: np.ndarray
    risks_by_shift: dict[str, np.ndarray]


def train(
    ensemble: Ensemble,
    config: Any,
    steps: int,
    key: jax.Array,
    context: Context,
    shifts: dict[str, Shift],
    shifted: int,
) -> Trained:
    """Train and test every setting and seed.

    Args:
        ensemble: The settings; computed in float32 whatever they are.
        config: Config of the experiment: seeds, batch, length, checkpoints, test sizes and lengths.
        steps: A multiple of `config.checkpoints`.
        key: Random key.
        context: Surroundings, for progress.
        shifts: Further tests, by name.
        shifted: The setting that they are for.

    Returns:
        The measurements.
    """
    ensemble = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), ensemble)
    settings, (train_key, curve_key, final_key) = len(ensemble.noises), jax.random.split(key, 3)
    keys = jax.random.split(train_key, config.seeds)
    state = jax.vmap(lambda theta: linear_attention.init(theta, config.init_scale))(ensemble.thetas)
    state = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], config.seeds, axis=1), state)
    stride = steps // config.checkpoints
    risks, products = [], []
    for checkpoint in context.track(
        range(config.checkpoints), f"SGD, {steps} steps of {settings} x {config.seeds} runs"
    ):
        state, trace = _advance(state, keys, ensemble, steps, stride=stride, batch=config.batch, length=config.length)
        fresh = jax.random.fold_in(curve_key, checkpoint)
        risks.append(np.asarray(_risk(state, fresh, ensemble, prompts=config.test_prompts // 8, length=config.length)))
        products.append(np.asarray(trace))
    lengths = (config.length, *(n for n in config.test_lengths if n != config.length))
    by_length = [
        np.asarray(_risk(state, jax.random.fold_in(final_key, n), ensemble, prompts=config.test_prompts, length=n))
        for n in context.track(lengths, "test at other lengths")
    ]
    last = jax.tree.map(lambda leaf: leaf[shifted], state)
    shift_keys = jax.random.split(jax.random.fold_in(final_key, 0), config.seeds)
    by_shift = {
        name: np.asarray(
            _shifted_risk(
                last, shift_keys, jax.tree.map(jnp.float32, shift), prompts=config.test_prompts, length=config.length
            ),
            np.float64,
        )
        for name, shift in shifts.items()
    }
    rates = np.asarray(ensemble.learning_rates, np.float64)
    return Trained(
        steps=steps,
        learning_rates=rates,
        times=rates[:, None] * np.cumsum(decay(np.arange(steps), steps)),
        products=np.concatenate(products, axis=-1).astype(np.float64),
        checkpoints=np.arange(stride, steps + 1, stride) - 1,
        risks=np.stack(risks, axis=-1).astype(np.float64),
        final_products=np.asarray(_products(state), np.float64),
        stray=np.asarray(_stray(state), np.float64),
        lengths=lengths,
        risks_by_length=np.stack(by_length, axis=-1).astype(np.float64),
        risks_by_shift=by_shift,
    )


def _over_runs(function: Any) -> Any:
    """vmap over settings, then over the seeds of each; arguments (state, key, setting)."""
    return jax.vmap(jax.vmap(function, in_axes=(0, 0, None)), in_axes=(0, None, 0))


@jax.jit(static_argnames=("stride", "batch", "length"))
def _advance(state, keys, ensemble, steps, *, stride: int, batch: int, length: int):
    """`stride` of the `steps` steps of every run, and tr(w u) / D after each `[settings, seeds, stride]`."""

    def step(state, key, setting):
        fresh = jax.random.fold_in(key, state.step)
        prompts = linear_regression(
            fresh, batch=batch, length=length, covariance=setting.covariances, noise=setting.noises
        )
        learning_rate = setting.learning_rates * decay(state.step, steps)
        return linear_attention.step(state, prompts, learning_rate)[0]

    def advance_all(state, _):
        state = _over_runs(step)(state, keys, ensemble)
        return state, jnp.trace(_products(state), axis1=-2, axis2=-1) / ensemble.thetas.shape[-1]

    state, trace = jax.lax.scan(advance_all, state, length=stride)
    return state, jnp.moveaxis(trace, 0, -1)


@jax.jit(static_argnames=("prompts", "length"))
def _risk(state, key, ensemble, *, prompts: int, length: int):
    """Mean squared error of every run on fresh prompts of its own task without label noise on the query."""

    def risk(state, key, setting):
        draw = lambda key: linear_regression(
            key, batch=TEST_CHUNK, length=length, covariance=setting.covariances, noise=setting.noises
        )
        chunk = lambda key: 2 * linear_attention.loss(state.params, draw(key))
        return jnp.mean(jax.lax.map(chunk, jax.random.split(key, -(-prompts // TEST_CHUNK))))

    return _over_runs(risk)(state, jax.random.split(key, state.step.shape[1]), ensemble)


@jax.jit(static_argnames=("prompts", "length"))
def _shifted_risk(state, keys, shift: Shift, *, prompts: int, length: int):
    """Mean squared error of every run of one setting on prompts of another law."""

    def risk(state, key):
        draw = lambda key: linear_regression(
            key,
            batch=TEST_CHUNK,
            length=length,
            covariance=shift.covariance,
            prior=shift.prior,
            query_covariance=shift.query,
        )
        chunk = lambda key: 2 * linear_attention.loss(state.params, draw(key))
        return jnp.mean(jax.lax.map(chunk, jax.random.split(key, -(-prompts // TEST_CHUNK))))

    return jax.vmap(risk)(state, keys)


def _products(state):
    """w u of every run."""
    return state.params.w_pv[..., -1, -1, None, None] * state.params.w_kq[..., :-1, :-1]


def _stray(state):
    """Norm of the entries that theory keeps at zero, over the norm of all."""
    w_pv, w_kq = state.params
    inside = w_pv[..., -1, -1] ** 2 + jnp.sum(w_kq[..., :-1, :-1] ** 2, axis=(-2, -1))
    everything = jnp.sum(w_pv**2, axis=(-2, -1)) + jnp.sum(w_kq**2, axis=(-2, -1))
    return jnp.sqrt(jnp.maximum(everything - inside, 0) / everything)
