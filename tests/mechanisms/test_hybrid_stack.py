"""Parts of a hybrid stack: experts by the chunk, and memory found by products of keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import mechanisms
from tests.mechanisms.helpers import assert_near, draw, once

pytestmark = pytest.mark.usefixtures("x64")


# --- product keys


@pytest.mark.parametrize("k", [1, 5, 16])
def test_two_code_books_find_the_greatest_of_all_products(k):
    """Of 16^2 sums for each of 200 queries: the same sums, to the last bit, and the same slots."""
    first, second = draw(200, 16), draw(200, 16, seed=1)
    every = (first[:, :, None] + second[:, None, :]).reshape(200, 256)
    slots = np.argsort(-every, -1)[:, :k]
    got_sums, got_slots = once(functools.partial(mechanisms.top_products, k=k))(first, second)
    np.testing.assert_array_equal(got_slots, slots)
    np.testing.assert_array_equal(got_sums, np.take_along_axis(every, slots, -1))


def test_a_memory_of_products_is_attention_over_its_greatest_scores():
    q, keys, values = draw(2, 7, 2, 8), draw(2, 2, 6, 4, seed=1), draw(36, 3, seed=2)
    want = np.zeros((2, 7, 2, 3))
    for b, t, n in np.ndindex(2, 7, 2):
        scores = np.array([q[b, t, n] @ np.concatenate([keys[0, n, i], keys[1, n, j]]) for i, j in np.ndindex(6, 6)])
        best = np.argsort(-scores)[:5]
        weights = np.exp(scores[best]) / np.exp(scores[best]).sum()
        want[b, t, n] = weights @ values[best]
    assert_near(once(functools.partial(mechanisms.product_key_memory, k=5))(q, keys, values), want)


# --- experts


def test_chunks_go_to_the_expert_of_their_mean():
    """Also the last chunk, which is shorter; outputs are scaled by the probability."""
    x, router, weights = draw(2, 10, 4), draw(4, 3, seed=1), draw(3, 4, 5, seed=2)

    @once
    def of(x, router, weights):
        routing = mechanisms.route_chunks(x, router, chunk_size=4)
        return routing, mechanisms.chunk_experts(x, routing, lambda w, x: jnp.tanh(x @ w), weights, chunk_size=4)

    routing, got = of(x, router, weights)
    want, experts = np.zeros((2, 10, 5)), np.zeros((2, 3), int)
    for b in range(2):
        for c, part in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
            p = np.exp(x[b, part].mean(0) @ router)
            p /= p.sum()
            experts[b, c] = e = p.argmax()
            want[b, part] = p[e] * np.tanh(x[b, part] @ weights[e])
    np.testing.assert_array_equal(routing.expert, experts)
    assert_near(routing.load, np.bincount(experts.ravel(), minlength=3) / 6)
    assert_near(got, want)


def test_the_balance_loss_is_between_one_and_the_number_of_experts():
    of = once(lambda x, router: mechanisms.route_chunks(x, router, chunk_size=1).balance_loss)
    assert float(of(np.eye(4), 100 * np.eye(4))) == pytest.approx(1)
    assert float(of(np.eye(4), 100 * np.eye(4)[:1].repeat(4, 0))) == pytest.approx(4)


def test_the_balance_loss_evens_the_load():
    """A router that sends nearly all chunks to one expert of four: by descent on the loss, a quarter to each."""
    x = jnp.asarray(draw(64, 8, 8))
    x = x.at[..., 0].add(1.0)  # what all have in common, and the router prefers the first by it
    router = jnp.asarray(0.1 * draw(8, 4, seed=1)).at[0, 0].add(3.0)
    loss = lambda router: mechanisms.route_chunks(x, router, chunk_size=4).balance_loss

    @once
    def loads(router):
        after = jax.lax.scan(lambda r, _: (r - 1.0 * jax.grad(loss)(r), None), router, length=200)[0]
        return [mechanisms.route_chunks(x, r, chunk_size=4).load for r in (router, after)]

    before, after = loads(router)
    print(before, after)
    assert float(before.max()) > 0.9
    assert float(after.max()) < 0.35


def test_messages(without_run_time_types):
    x = jnp.ones((2, 10, 4))
    with pytest.raises(ValueError, match="chunk_size: got 0, want at least 1"):
        mechanisms.route_chunks(x, jnp.ones((4, 3)), chunk_size=0)
    with pytest.raises(ValueError, match=r"router: got shape \(3, 3\), want \[D, E\], D=4"):
        mechanisms.route_chunks(x, jnp.ones((3, 3)), chunk_size=5)
    routing = mechanisms.route_chunks(x, jnp.ones((4, 3)), chunk_size=5)
    with pytest.raises(ValueError, match=r"routing: got experts of \(2, 2\) chunks, want \(2, 4\).*chunk_size=3"):
        mechanisms.chunk_experts(x, routing, lambda w, x: x, jnp.ones(3), chunk_size=3)
    with pytest.raises(ValueError, match="k: got 7, want from 1 to M=6"):
        mechanisms.top_products(jnp.ones(6), jnp.ones(6), 7)
    with pytest.raises(ValueError, match=r"want q \[\*B, T, N, 2 H\].*2 H=8, M\^2=36"):
        mechanisms.product_key_memory(jnp.ones((7, 2, 8)), jnp.ones((2, 2, 6, 4)), jnp.ones((35, 3)), 2)
