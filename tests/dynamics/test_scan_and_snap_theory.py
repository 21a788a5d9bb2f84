"""The closed forms of Scan and Snap against recursions, integration and the layer itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax.dynamics import scan_and_snap as layer
from attnjax.dynamics import scan_and_snap_theory as theory
from attnjax.tasks import token_classes


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("m", "k", "rate"), [(50, 1, 0.5), (34, 2, 1.0), (1000, 10, 5.0), (5, 3, 0.1)])
class TestDecoder:
    def test_sgd_from_zero_is_the_recursion(self, m, k, rate):
        """Orthonormal bags, one class after the other, k = 1..K: the logits of each are (M - 1) h* zeta."""
        logits = np.zeros((k, m))
        for _ in range(40):
            for n in range(k):
                alpha = np.exp(logits[n] - logits[n].max())
                logits[n] += rate * (np.eye(m)[n] - alpha / alpha.sum())
        height = theory.decoder_heights(40, vocabulary=m, rate=rate)[-1]
        for n in range(k):
            np.testing.assert_allclose(np.roll(logits[n], -n), theory.decoder_logits(height, m), atol=1e-10)

    def test_the_continuous_form_solves_its_equation_and_bounds_the_recursion(self, m, k, rate):
        s = jnp.concatenate([jnp.zeros(1), jnp.geomspace(1e-3, 1e8, 60)])
        h = theory.decoder_height(s, vocabulary=m, rate=rate)
        right = m * rate * s + 1
        np.testing.assert_allclose(jnp.exp(m * h) + (m - 1) * m * h, right, rtol=1e-12)
        slope = jax.vmap(jax.grad(lambda s: theory.decoder_height(s, vocabulary=m, rate=rate)))(s)
        np.testing.assert_allclose(slope, rate / (m - 1 + jnp.exp(m * h)), rtol=1e-9)
        discrete = theory.decoder_heights(400, vocabulary=m, rate=rate)
        gap = discrete - theory.decoder_height(jnp.arange(1.0, 401), vocabulary=m, rate=rate)
        assert (gap >= -1e-15).all()
        assert (gap <= 2 * rate / m).all()


@pytest.mark.parametrize(("m", "k", "rate_y", "rate_z", "common"), [(1000, 10, 0.5, 0.5, 0.1), (34, 2, 3.0, 1.0, 0.02)])
def test_scanned_solves_its_equation(m, k, rate_y, rate_z, common):
    of = {"vocabulary": m, "classes": k, "rate_y": rate_y, "rate_z": rate_z, "common": common}
    times = jnp.geomspace(0.01, 1e6, 40)
    b = theory.scanned(times, **of)
    slope = jax.vmap(jax.grad(lambda t: theory.scanned(t, **of)))(times)
    gamma = theory.drive(times, vocabulary=m, classes=k, rate=rate_y)
    np.testing.assert_allclose(slope, rate_z / common * gamma * jnp.exp(-4 * b), rtol=1e-9)


def test_the_force_peaks_near_the_snapping_time():
    """Theory's figure: M = 1000, K = 10; argmax at 112.9, 56.4, 28.2, 11.3, its height 4.416 whatever the rate."""
    for rate, peak in ((0.5, 112.9), (1.0, 56.4), (2.0, 28.2), (5.0, 11.3)):
        t = jnp.linspace(0.01, 2, 20_000) * theory.snapping_time(vocabulary=1000, classes=10, rate=rate)
        gamma = theory.drive(t, vocabulary=1000, classes=10, rate=rate)
        assert float(t[gamma.argmax()]) == pytest.approx(peak, rel=2e-3)
        assert float(gamma.max()) == pytest.approx(4.416, abs=1e-3)


@pytest.mark.parametrize("of", [{}, {"last": 2, "next_per_last": 3, "common": 1, "distinct": 4}])
def test_the_flow_is_the_layer_s_own_direction(of):
    """With the decoder that the flow assumes, the layer's closed-form gradient is the flow."""
    classes = token_classes(**of)
    k, m = classes.contextual.shape
    z = 0.3 * jax.random.normal(jax.random.key(0), (m, m))
    batch = layer.population(classes)
    c = layer.attention(z, batch)
    f = c / jnp.linalg.norm(c, axis=1, keepdims=True)
    h = theory.decoder_height(jnp.array(7.0) / k, vocabulary=m, rate=0.7)
    w = jnp.stack([jnp.roll(theory.decoder_logits(h, m), n) for n in classes.next])
    y = f.T @ jnp.linalg.solve(f @ f.T, w)
    np.testing.assert_allclose(f @ y, w, atol=1e-12)
    direction = layer.ascent(layer.Params(y, z), batch).z  # a mean over classes
    flow = theory.attention_flow(jnp.array(7.0), z, classes, rate_y=0.7, rate_z=2.0)
    np.testing.assert_allclose(flow, 2.0 * direction, atol=1e-12)
    assert jnp.abs(flow).max() > 1e-3
