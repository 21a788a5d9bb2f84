"""The model against its definition, and the closed forms against differences, quadrature and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from attnjax.dynamics import joint_mlp_attention as layer
from attnjax.dynamics import joint_mlp_attention_theory as theory


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def frequencies(classes=4, tokens=6):
    return jax.random.dirichlet(jax.random.key(0), jnp.ones(tokens), (classes,))


@pytest.mark.parametrize("kind", layer.KINDS)
def test_loss_follows_the_definition(kind):
    x, tau = frequencies(), 0.7
    params = layer.init(jax.random.key(1), tokens=6, widths=(5, 4), scale=0.8).params
    found = layer.loss(params, x, kind=kind, temperature=tau, activation=jnp.tanh)
    z, (first, second) = np.asarray(params.z), (np.asarray(w) for w in params.layers)
    expected = 0.0
    for label, row in enumerate(np.asarray(x)):
        weights = {"linear": row * z, "exp": row * np.exp(z / tau)}.get(kind)
        if weights is None:
            weights = row * np.exp(z / tau) / (row * np.exp(z / tau)).sum()
        logits = second @ np.tanh(first @ np.append(weights, 1.0))
        expected -= (logits[label] - np.log(np.exp(logits).sum())) / len(x)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "exp"])
@pytest.mark.parametrize("activation", [layer.identity, jnp.tanh, jax.nn.relu])
def test_the_invariant_has_no_velocity(kind, activation):
    """d/dt of the invariant along -gradient, at a random point: an algebraic identity, no integration."""
    x, tau = frequencies(), 0.7
    params = layer.init(jax.random.key(1), tokens=6, widths=(5, 4), scale=0.8).params
    loss = lambda params: layer.loss(params, x, kind=kind, temperature=tau, activation=activation)

    def invariant(params):
        part = params.z**2 / 2 if kind == "linear" else params.z
        return part - theory.implied_logits(params.layers[0][:, :-1], kind, temperature=tau)

    velocity = jax.tree.map(jnp.negative, jax.grad(loss)(params))
    change = jax.jvp(invariant, (params,), (velocity,))[1]
    np.testing.assert_allclose(change, 0, atol=1e-15 + 1e-12 * float(jnp.abs(velocity.z).max()))
    assert float(jnp.abs(velocity.z).max()) > 1e-4


def test_softmax_has_the_second_term_where_attention_is_the_same_for_all_classes():
    """The invariant's one assumption, made true: every class has the same frequencies, so b is b-bar."""
    x = jnp.tile(frequencies()[:1], (4, 1))
    params = layer.init(jax.random.key(1), tokens=6, widths=(5, 4), scale=0.8).params
    loss = lambda params: layer.loss(params, x, kind="softmax")
    velocity = jax.tree.map(jnp.negative, jax.grad(loss)(params))
    mean_attention = layer.attention(params.z, x, "softmax")[0]
    implied = lambda params: theory.implied_logits(params.layers[0][:, :-1], "softmax", mean_attention=mean_attention)
    np.testing.assert_allclose(jax.jvp(implied, (params,), (velocity,))[1], velocity.z, atol=1e-14)


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="kind must be one of linear, exp, softmax, got 'cosine'"):
        layer.attention(jnp.zeros(6), frequencies(), "cosine")
    with pytest.raises(ValueError, match="kind must be one of"):
        theory.implied_logits(jnp.ones((2, 6)), "cosine")
    with pytest.raises(ValueError, match="softmax attention needs mean_attention"):
        theory.implied_logits(jnp.ones((2, 6)), "softmax")
    with pytest.raises(ValueError, match="must be at least 1"):
        layer.init(jax.random.key(0), tokens=3, widths=())


def test_clock_is_the_integral():
    v, start, mu, tau = jnp.array([0.3, 2.9]), jnp.array([0.05, 0.1]), jnp.array([1.0, 3.0]), 2.0
    expected = [
        quad(lambda u, m=m: np.exp(-(u**2) / tau) / (m - u), a, b)[0] for a, b, m in zip(start, v, mu, strict=True)
    ]
    np.testing.assert_allclose(theory.nonlinear_clock(v, start, mu, tau), expected, rtol=1e-9)


def test_every_clock_ticks_alike():
    """Along the flow, the rate of every token's clock is the same: 1 / (normalizer of attention)."""
    v, mu, tau = jnp.array([0.3, 1.9, 0.2]), jnp.array([1.0, 3.0, 2.0]), 2.0
    clock = lambda v: theory.nonlinear_clock(v, jnp.full(3, 0.05), mu, tau)
    ticks = jax.jvp(clock, (v,), (theory.nonlinear_flow(v, mu, tau),))[1]
    np.testing.assert_allclose(ticks, 1 / jnp.exp(v**2 / tau).sum(), rtol=1e-9)


def test_linear_path_solves_its_flow_and_blows_up_when_told():
    start, delta = jnp.array([0.3, -0.2, 0.1]), jnp.array([0.5, -2.0, 1.0])
    end = theory.blow_up_time(start, delta)
    path = lambda t: theory.linear_path(t[None], start, delta)[0]
    for share in (0.0, 0.5, 0.99):
        at, velocity = jax.jvp(path, (share * end,), (jnp.ones(()),))
        np.testing.assert_allclose(velocity, theory.linear_flow(at, delta), rtol=1e-8)
    late = path(end * (1 - 1e-12))
    assert int(jnp.argmax(jnp.abs(late))) == 1
    assert float(late[1]) < -6
