"""A user's own score and normalizer, by kernels: nothing of a kernel is written for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks, normalizers, scores
from pallas_kernels import compile_for
from tests.kernels.targets import BOTH, TPU, by_kernels
from tests.tolerances import assert_close


def own_softmax(power):
    """Softmax in three verbs, its weights raised to a learned power: a state of three arrays, one of them -1e30."""

    def init(rows, width, dtype):
        zeros = jnp.zeros((rows,), dtype)
        return {"top": zeros - 1e30, "mass": zeros, "total": jnp.zeros((rows, width), dtype)}

    def lift(score, visible, v):
        top = jnp.max(jnp.where(visible, score, -1e30), axis=1)
        below = jnp.where(visible, score - top[:, None], 0)  # nothing to differentiate where nothing is seen
        weight = jnp.where(visible, jnp.exp(power * below), 0)
        return {"top": top, "mass": weight.sum(1), "total": weight @ v}

    def combine(earlier, later):
        top = jnp.maximum(earlier["top"], later["top"])
        a, b = (jnp.exp(power * (x["top"] - top)) for x in (earlier, later))
        total = earlier["total"] * a[:, None] + later["total"] * b[:, None]
        return {"top": top, "mass": earlier["mass"] * a + later["mass"] * b, "total": total}

    def finalize(state):
        return state["total"] / jnp.where(state["mass"] > 0, state["mass"], 1)[:, None]

    return normalizers.from_monoid(init, lift, combine, finalize)


def inputs():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return draw(2, 150, 4, 16), draw(2, 150, 2, 16), draw(2, 150, 2, 8), 0.3 * draw(4)


@BOTH
def test_a_learned_temperature_and_an_own_softmax(target):
    """Values by a kernel, gradients of everything, learned captured arrays among it, by the fold's own rule."""
    *arrays, temperature = inputs()

    def of(form):
        def run(q, k, v, temperature, power):
            score = scores.from_function(lambda score, batch, head, t, s: score * jnp.exp(temperature[head]))
            mask = masks.causal() & masks.window(60)
            return attend(q, k, v, mask=mask, score=score, normalizer=own_softmax(power), implementation=form)

        return run

    power = jnp.float32(1.3)
    want, pull = jax.vjp(of("dense"), *arrays, temperature, power)
    assert_close(by_kernels(target, of("pallas"), *arrays, temperature, power), want)
    cotangent = jnp.cos(jnp.arange(want.size, dtype=jnp.float32)).reshape(want.shape)
    gradient = lambda *x: jax.vjp(of("pallas"), *x)[1](cotangent)
    got = by_kernels(target, gradient, *arrays, temperature, power)
    jax.tree.map(lambda a, b: assert_close(a, b, kind="derivative"), got, pull(cotangent))


def test_a_state_that_is_not_one_number_is_streamed():
    x = jnp.ones((128, 1, 8))
    steps = normalizers.from_monoid(
        init=lambda rows, width, dtype: jnp.broadcast_to(jnp.arange(width, dtype=dtype), (rows, width)),
        lift=lambda score, visible, v: jnp.where(visible, score, 0) @ v,
        combine=lambda a, b: a + b,
        finalize=lambda state: state,
    )
    with compile_for(TPU), pytest.raises(NotImplementedError, match="more than one number"):
        attend(x, x, x, normalizer=steps, implementation="pallas")
