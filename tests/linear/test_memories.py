"""Memories trained while they are read, against loops over tokens and against what they are said to be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from attnjax import linear
from attnjax.linear import memory_theory
from tests.references import memories as reference

pytestmark = pytest.mark.usefixtures("x64")


once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""A program that is run a few times only: what costs is to compile it."""


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def assert_near(got, want, bound=1e-10):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * max(1.0, float(np.max(np.abs(want)))))


def tokens(length=11, batch=2, heads=2, group=2, features=4, width=3):
    """Queries, unit keys and values; rate, momentum and forget."""
    q, v = draw(batch, length, heads * group, features), draw(batch, length, heads, width, seed=1)
    k = unit(draw(batch, length, heads, features, seed=2))
    rng = np.random.default_rng(3)
    numbers = [rng.uniform(0, high, (batch, length, heads)) for high in (1.0, 0.9, 0.3)]
    return [jnp.asarray(x) for x in (q, k, v, *numbers)]


# --- gradient descent with momentum on any memory


def test_a_linear_memory_is_titans():
    """With segments and lengths, and momentum or forgetting that is nothing or all."""
    arrays = tokens(40)
    arrays[4] = arrays[4].at[0, 5].set(0)
    arrays[5] = arrays[5].at[1, 7].set(1)
    learn = functools.partial(
        linear.neural_memory, params=jnp.zeros((2, 4, 3)), apply=linear.linear_memory, return_state=True
    )
    knobs = {"segment_ids": jnp.arange(40)[None] // 13, "lengths": jnp.array([40, 31])}
    got, state = once(learn)(*arrays, **knobs)
    want, last = once(functools.partial(linear.titans, return_state=True))(*arrays, **knobs)
    assert_near(got, want)
    assert_near(state.memory, last.value[:, :, 0])
    assert_near(state.momentum, last.value[:, :, 1])


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_perceptron_as_memory_against_its_loop(chunk):
    """Gradients by hand; chunks that do not divide the length, a segment that begins inside one, and a state."""
    arrays = tokens(16, batch=1)
    params = linear.mlp_memory_init(jax.random.key(0), heads=2, features=4, hidden=5, width=3)
    segments = jnp.asarray([[0] * 4 + [1] * 12])
    run = once(functools.partial(linear.neural_memory, params=params, chunk_size=chunk, return_state=True))
    begin = jax.tree.map(lambda x: x[None], params)
    state = linear.MemoryState(begin, jax.tree.map(jnp.zeros_like, begin))
    outs = []
    for half in (slice(0, 8), slice(8, 16)):
        out, state = run(*(x[:, half] for x in arrays), segment_ids=segments[:, half], state=state)
        outs.append(out)
    got = jnp.concatenate(outs, 1)
    chunks = [*range(0, 8, chunk), *range(8, 16, chunk)]
    for n in range(4):
        own = [np.asarray(x[0, :, n // 2]) for x in arrays[1:]]
        matrices = [np.asarray(m[n // 2]).T for m in params]
        want, memory, speeds = reference.perceptron(np.asarray(arrays[0][0, :, n]), *own, *matrices, chunks, [4])
        assert_near(got[0, :, n], want)
        for found, wanted in ((state.memory, memory), (state.momentum, speeds)):
            for leaf, matrix in zip(found, wanted, strict=True):
                assert_near(leaf[0, n // 2], matrix.T)


def test_chunks_of_gradients_are_another_memory_the_further_the_longer_they_are():
    q, k, v, *_ = tokens(64, batch=1)
    rate = jnp.full((1, 64, 2), 0.2)
    params = linear.mlp_memory_init(jax.random.key(0), heads=2, features=4, hidden=16, width=3)
    learn = functools.partial(linear.neural_memory, params=params)
    exact, *others = (once(functools.partial(learn, chunk_size=size))(q, k, v, rate) for size in (1, 2, 8))
    distances = [float(jnp.linalg.norm(x - exact) / jnp.linalg.norm(exact)) for x in others]
    print(distances)
    assert 0.01 < distances[0] < 0.5 * distances[1]


def test_a_memory_of_products_is_linear_attention():
    """Descent on ``-<read, value>``: decays and sums, also in chunks, for nothing is read to learn from."""
    q, k, v, rate, _, forget = tokens(20)
    loss = lambda read, value: -jnp.dot(read, value)
    run = functools.partial(
        linear.neural_memory, params=jnp.zeros((2, 4, 3)), apply=linear.linear_memory, loss=loss, chunk_size=6
    )
    got = once(run)(q, k, v, rate, None, forget)
    assert_near(got, once(linear.attend)(q, k, rate[..., None] * v, log_decay=jnp.log1p(-forget)))


def test_a_residual_memory_adds_departures_of_one_size():
    params, x = [jnp.asarray(draw(6, 8)), jnp.asarray(draw(8, 6))], jnp.asarray(draw(6))
    departure = once(linear.residual_memory)(params, x) - x
    assert float(jnp.mean(departure)) == pytest.approx(0, abs=1e-12)
    assert float(jnp.std(departure)) == pytest.approx(1, abs=1e-3)


def test_gradients_flow_through_what_is_learned_while_reading():
    """Against differences, through chunks, momentum and the parameters to begin with; and forward over reverse."""
    q, k, v, *numbers = (x[:1, :5] for x in tokens())
    params = linear.mlp_memory_init(jax.random.key(0), heads=2, features=4, hidden=3, width=3)

    def loss(params, k):
        return jnp.sum(linear.neural_memory(q, k, v, *numbers, params=params, chunk_size=2) ** 2)

    step = (jax.tree.map(lambda x: jnp.asarray(draw(*x.shape, seed=5)), params), jnp.asarray(draw(*k.shape, seed=6)))

    @once
    def derivatives(at):
        def slope(at):
            own = jax.grad(loss, (0, 1))(*at)
            return sum(jnp.vdot(g, s) for g, s in zip(jax.tree.leaves(own), jax.tree.leaves(step), strict=True))

        return jax.jvp(slope, (at,), (step,))

    found, bend = derivatives((params, k))
    value = once(lambda by: loss(*jax.tree.map(lambda x, s: x + by * s, (params, k), step)))
    h = 1e-4
    low, middle, high = (float(value(by)) for by in (-h, 0.0, h))
    assert float(found) == pytest.approx((high - low) / (2 * h), rel=1e-5)
    assert float(bend) == pytest.approx((high - 2 * middle + low) / h**2, rel=1e-4)


# --- regression in context


def test_a_memory_learns_regression_in_context_and_forgets_by_decay():
    """It comes to the least squares solution, noisy or not; what later keys do not touch goes only by decay."""
    length = 2000
    weights, k = draw(6, 3), unit(draw(length, 6, seed=1))

    @once
    def memory(k, v, rate, forget):
        learned = linear.titans(
            k[:, None], k[:, None], v[:, None], rate[:, None], None, forget[:, None], return_state=True
        )
        return learned[1].value[0, 0]

    learn = lambda k, v, rate, forget: memory(*(jnp.asarray(x) for x in (k, v, rate, forget)))
    ones = np.ones(length)
    assert_near(learn(k, k @ weights, ones, 0 * ones), weights, 1e-8)

    noisy, again = k[:10] @ weights + draw(10, 3, seed=2), np.arange(length) % 10
    best = np.linalg.lstsq(k[:10], noisy)[0]
    away = {rate: np.linalg.norm(learn(k[again], noisy[again], rate * ones, 0 * ones) - best) for rate in (1.0, 0.2)}
    print(away, np.linalg.norm(best - weights))
    assert away[0.2] < 0.5 * away[1.0] < 0.5 * np.linalg.norm(best - weights)

    later = np.arange(length) >= length - 150  # two tasks, on features that have nothing to do with each other
    keys = unit(k * np.where(later[:, None], np.arange(6) >= 3, np.arange(6) < 3))
    for alpha in (0.0, 0.02):
        before = learn(keys, keys @ weights, ones * ~later, alpha * ~later)
        after = learn(keys, keys @ weights, ones, alpha * ones)
        assert_near(after[:3], (1 - alpha) ** 150 * before[:3])
    assert np.linalg.norm(after[:3]) < 0.06 * np.linalg.norm(weights[:3])
    assert np.linalg.norm(after[3:] - weights[3:]) < 0.3 * np.linalg.norm(weights[3:])


@pytest.mark.parametrize(("rate", "forget", "before"), [(1.0, 0.0, 0.0), (0.7, 0.1, 1.0)])
def test_the_learning_curve_of_a_linear_memory(rate, forget, before):
    """Relative error at fresh queries, from nothing and from a matrix of another task."""
    draws, length, features = 500, 24, 6
    weights, held = draw(draws, features, 4), np.sqrt(before) * draw(draws, features, 4, seed=1)
    k, q = unit(draw(draws, length, 1, features, seed=2)), unit(draw(draws, length, 1, features, seed=3))
    values = lambda x: np.einsum("btkh,bhv->btkv", x, weights)
    state = linear.State(jnp.stack([jnp.asarray(held), jnp.zeros(held.shape)], 1)[:, None])
    number = lambda x: jnp.full((draws, length, 1), x)
    read = once(linear.titans)(*map(jnp.asarray, (q, k, values(k))), number(rate), None, number(forget), state=state)
    errors = np.sum((np.asarray(read) - values(q)) ** 2, (2, 3)) / 4
    half = 3 * errors.std(0) / np.sqrt(draws)
    law = memory_theory.descent_curve(length, features, rate, forget, before)[1:]
    print(np.stack([law, errors.mean(0), half], 1)[::8])
    assert np.all(np.abs(errors.mean(0) - law) < half)


def test_the_error_that_noise_leaves():
    """``theta s / (2 - theta)`` for each weight."""
    draws, features, rate = 200, 6, 0.4
    k, noise = unit(draw(draws, 150, 1, features)), 0.7 * draw(draws, 150, 1, 2, seed=1)
    learn = once(functools.partial(linear.titans, return_state=True))
    _, state = learn(*map(jnp.asarray, (k, k, noise, np.full((draws, 150, 1), rate))))
    errors = np.mean(np.asarray(state.value[:, 0, 0]) ** 2, (1, 2))
    half = 2.6 * errors.std() / np.sqrt(draws)
    predicted = memory_theory.descent_noise(rate, 0.49)
    print(f"predicted {predicted:.4f}, measured {errors.mean():.4f} +- {half:.4f}")
    assert abs(errors.mean() - predicted) < half


# --- other losses and other geometries

CASES = {
    "moneta": (
        lambda *a, **run: linear.moneta(*a, **run),
        lambda e, t: 3 * np.sign(e) * np.abs(e) ** 2,
        lambda a: a / (np.sum(np.abs(a) ** 4) + 1e-6) ** 0.5,
    ),
    "moneta, dual": (
        lambda *a, **run: linear.moneta(*a, image="dual", sharpness=10, **run),
        lambda e, t: 3 * np.tanh(10 * e) * (e**2 + 1e-6),
        lambda a: np.sign(a) * np.abs(a) ** 3 / (np.sum(np.abs(a) ** 4) + 1e-6) ** 0.5,
    ),
    "yaad": (
        lambda q, k, v, rate, forget, **run: linear.yaad(q, k, v, rate, rate + 0.3, forget, **run),
        lambda e, d: e if np.linalg.norm(e) <= d else d * e / np.linalg.norm(e),
        lambda a: a,
    ),
    "yaad, by coordinate": (
        lambda q, k, v, rate, forget, **run: linear.yaad(q, k, v, rate, rate + 0.3, forget, bend="coordinate", **run),
        lambda e, d: np.where(np.abs(e) <= d, e, d * np.sign(e)),
        lambda a: a,
    ),
    "memora": (
        lambda *a, **run: linear.memora(*a, **run),
        lambda e, t: e,
        lambda a: np.exp(a) / np.sum(np.exp(a), 1, keepdims=True),
    ),
}


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_miras_against_its_loop(name, chunk):
    """In steps of one token and in chunks, from a state of their own."""
    mechanism, gradient, image = CASES[name]
    q, k, v, rate, _, forget = tokens(12, batch=1)
    arrays = q, k, v, 0.2 * rate, forget
    run = once(functools.partial(mechanism, chunk_size=chunk, return_state=True))
    first, state = run(*(x[:, :8] for x in arrays), state=linear.MemoryState(jnp.zeros((1, 2, 4, 3))))
    rest, last = run(*(x[:, 8:] for x in arrays), state=state)
    for n in (0, 3):
        own = [np.asarray(x) for x in (q[0, :, n], *(x[0, :, n // 2] for x in arrays[1:]))]
        bends = lambda e, t, own=own: gradient(e, own[3][t] + 0.3)
        want, matrix = reference.matrix(*own[:4], 1 - own[4], bends, image, chunk=chunk)
        assert_near(jnp.concatenate([first, rest], 1)[0, :, n], want)
        assert_near(last.memory[0, n // 2], matrix.T)


@pytest.mark.parametrize("chunk", [1, 4])
def test_elastic_net_retention_against_its_loop(chunk):
    """Sparse, as the others are not."""
    q, k, v, rate, ridge, lasso = tokens(batch=1)
    run = once(functools.partial(linear.elastic_net, chunk_size=chunk, return_state=True))
    got, state = run(q, k, v, rate, ridge, lasso)
    soft = lambda x, c: np.sign(x) * np.maximum(np.abs(x) - c, 0)
    own = [np.asarray(x) for x in (q[0, :, 1], *(x[0, :, 0] for x in (k, v, rate, ridge, lasso)))]
    kept = 1 / (1 + own[3] * own[4])
    want, last = reference.matrix(
        *own[:3], kept * own[3], kept, lambda e, t: e,
        after=lambda w, t: soft(w, kept[t] * own[3][t] * own[5][t]), chunk=chunk,
    )  # fmt: skip
    assert_near(got[0, :, 1], want)
    assert_near(state.memory[0, 0], last.T)
    assert 0.05 < float(jnp.mean(state.memory == 0)) < 1


def test_a_step_with_elastic_net_retention_solves_its_problem():
    """Nothing near is better; without lasso it is weight decay."""
    q, k, v, rate, ridge, lasso = tokens(1, batch=1, heads=1, group=1)
    before, run = draw(4, 3, seed=9), once(functools.partial(linear.elastic_net, return_state=True))
    _, state = run(q, k, v, rate, ridge, lasso, params=jnp.asarray(before)[None])
    found, key = np.asarray(state.memory[0, 0]), np.asarray(k[0, 0, 0])
    gradient = np.outer(key, before.T @ key - np.asarray(v[0, 0, 0]))
    theta, two, one = (float(x[0, 0, 0]) for x in (rate, ridge, lasso))

    def objective(w):
        near = np.sum(gradient * w) + np.sum((w - before) ** 2) / (2 * theta)
        return near + two / 2 * np.sum(w**2) + one * np.sum(np.abs(w))

    assert all(objective(found + 1e-4 * draw(4, 3, seed=seed)) > objective(found) for seed in range(50))
    q, k, v, rate, ridge, lasso = tokens(batch=1)
    kept = 1 / (1 + rate * ridge)
    decayed = once(linear.titans)(q, k, v, kept * rate, None, 1 - kept)
    assert_near(run(q, k, v, rate, ridge, 0 * lasso)[0], decayed)


def test_moneta_of_squares_is_the_delta_rule():
    """At twice the rate, whichever its image; with weight decay, titans without momentum."""
    q, k, v, rate, _, forget = tokens(30, batch=1)
    squares = lambda image: once(functools.partial(linear.moneta, power=2, norm=2, image=image))
    assert_near(squares("printed")(q, k, v, rate), once(linear.delta_rule)(2 * q, k, v, 2 * rate), 1e-13)
    assert_near(squares("dual")(q, k, v, rate, forget), once(linear.titans)(q, k, v, 2 * rate, None, forget), 1e-13)


def test_the_dual_image_is_the_mirror_map_of_its_norm_and_the_printed_one_is_not():
    """The greatest of ``<A, W> - |W|_r^2 / 2`` by a general optimizer; and what happens where A is scaled or zero."""
    a, r = draw(4, 3), 4 / 3
    minus = lambda w: np.sum(np.abs(w) ** r) ** (2 / r) / 2 - np.sum(a.ravel() * w)
    greatest = optimize.minimize(minus, a.ravel(), method="BFGS", options={"gtol": 1e-10}).x.reshape(4, 3)
    queries, nothing = jnp.eye(4)[:, None], jnp.zeros((4, 1))

    def images(name):
        read = lambda a: linear.moneta(
            queries, 0 * queries, jnp.zeros((4, 1, 3)), nothing, params=a[None], image=name, eps=1e-14
        )[:, 0]  # fmt: skip
        return once(jax.vmap(read))(jnp.stack([jnp.asarray(a), jnp.asarray(2 * a), jnp.zeros((4, 3))]))

    dual, printed = images("dual"), images("printed")
    assert_near(dual[0], greatest, 1e-6)
    assert float(np.max(np.abs(printed[0] - greatest))) > 0.1
    assert_near(dual[1], 2 * dual[0])
    assert_near(printed[1], printed[0] / 2)
    assert_near(jnp.stack([dual[2], printed[2]]), np.zeros((2, 4, 3)))


@pytest.mark.parametrize("bend", ["norm", "coordinate"])
def test_yaad_steps_do_not_jump_at_the_threshold(bend):
    """Nor grow beyond it; far below it is least squares."""
    k = jnp.asarray(unit(draw(1, 1, 4)))
    direction = jnp.asarray(unit(draw(1, 1, 5, seed=1))) if bend == "norm" else jnp.eye(5)[None, :1]

    @once
    def length(size, threshold):
        half = jnp.full((1, 1), 0.5)
        return jnp.linalg.norm(linear.yaad(k, k, size * direction, half, threshold[None, None], bend=bend))

    step = lambda size, threshold=0.7: float(length(jnp.asarray(size), jnp.asarray(threshold)))

    assert step(0.7 - 1e-9) == pytest.approx(0.35, abs=1e-8)
    assert step(0.7 + 1e-9) == pytest.approx(0.35, abs=1e-8)
    assert step(100.0) == pytest.approx(0.35, abs=1e-12)
    assert step(100.0, np.inf) == pytest.approx(50, abs=1e-9)


def test_memora_stays_a_distribution_for_thousands_of_steps_in_float32():
    """Keeping W itself, a weight that was ever too small for float32 is zero for good."""
    length, features, width = 2000, 6, 3
    target = np.random.default_rng(0).dirichlet(np.full(features, 0.3), width).T
    k = np.eye(features)[np.random.default_rng(1).integers(features, size=length)]
    out_of_reach = np.where(np.arange(features)[:, None] == 0, 3.0, -3.0) * np.ones(width)
    values = np.where(np.arange(length)[:, None] < 300, k @ out_of_reach, k @ target)
    rate, forget = (np.full((length, 1), x) for x in (2.0, 0.003))
    arrays = [jnp.asarray(x, jnp.float32) for x in (k[:, None], k[:, None], values[:, None], rate, forget)]
    _, state = once(functools.partial(linear.memora, return_state=True))(*arrays)
    weights = jax.nn.softmax(state.memory[0], axis=0)
    assert state.memory.dtype == jnp.float32
    assert bool(jnp.all(jnp.isfinite(state.memory)))
    assert_near(weights.sum(0), np.ones(width), 1e-6)
    assert_near(weights, target, 0.05)

    kept = np.full((features, width), 1 / features, np.float32)
    with np.errstate(divide="ignore"):
        for key, value in zip(k, values, strict=True):
            logits = 0.997 * np.log(kept) - 2 * np.outer(key, kept.T @ key - value)
            kept = np.exp(logits - logits.max(0), dtype=np.float32, casting="same_kind")
            kept /= kept.sum(0)
    print("weights that are zero for good", int(np.sum(kept == 0)))
    assert np.max(np.abs(kept - target)) > 0.2


def test_a_bent_loss_survives_outliers_that_squares_do_not():
    """One token in twenty has a wild value: relative error of the map that was learned."""
    rng = np.random.default_rng(0)
    k, true = unit(rng.standard_normal((8, 2000, 1, 8))), rng.standard_normal((8, 8, 8))
    clean = np.einsum("btkh,bhv->btkv", k, true)
    wild = clean + 30 * (rng.random((8, 2000, 1, 1)) < 0.05) * rng.standard_normal(clean.shape)
    rate = jnp.full((8, 2000, 1), 0.1)

    def error(values, mechanism):
        k_, v = (jnp.asarray(x, jnp.float32) for x in (k, values))
        last = once(mechanism)(k_, v, jnp.asarray(rate, jnp.float32))[1].memory[:, 0]
        return float(np.median(np.linalg.norm(last - true, axis=(1, 2)) / np.linalg.norm(true, axis=(1, 2))))

    squares = lambda k, v, rate: linear.yaad(k, k, v, rate, np.inf * rate, return_state=True)
    bent = lambda k, v, rate: linear.yaad(k, k, v, rate, 10 * rate, return_state=True)
    found = {
        name: [error(x, mechanism) for x in (clean, wild)] for name, mechanism in (("squares", squares), ("bent", bent))
    }
    print(found)
    assert found["squares"][1] > 1
    assert found["bent"][1] < 0.1 * found["squares"][1]
    assert max(found["squares"][0], found["bent"][0]) < 1e-5


# --- bad input


@pytest.mark.usefixtures("without_run_time_types")
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda q, k, v, n: linear.neural_memory(q, k, v, -n, params=jnp.zeros((2, 4, 3))), ["rate: got -1.0, want at least 0"]),
        (lambda q, k, v, n: linear.neural_memory(q, k, v, n, params=jnp.zeros((3, 4, 3))), ["params: got leaves of shape [(3, 4, 3)]", "K=2"]),
        (lambda q, k, v, n: linear.neural_memory(q, k, v, n, params=()), ["params: got leaves of shape []", "[K, ...]"]),
        (lambda q, k, v, n: linear.moneta(q, k, v, n, state=linear.State(v)), ["state: got State, want the MemoryState"]),
        (lambda q, k, v, n: linear.moneta(q, k, v, n, state=linear.MemoryState(v)), ["state: got leaves of shape [(2, 11, 2, 3)]", "[(2, 2, 4, 3)]"]),
        (lambda q, k, v, n: linear.moneta(q, k, v, n, chunk_size=0), ["chunk_size: got 0"]),
        (lambda q, k, v, n: linear.moneta(q, k, v, n, power=0.5), ["power: got 0.5, want at least 1"]),
        (lambda q, k, v, n: linear.moneta(q, k, v, n, norm=1), ["norm: got 1, want at least 2"]),
        (lambda q, k, v, n: linear.moneta(q, k, v, n, image="exact"), ["image: got 'exact'", "'dual'"]),
        (lambda q, k, v, n: linear.yaad(q, k, v, n, -n), ["threshold: got -1.0, want at least 0"]),
        (lambda q, k, v, n: linear.yaad(q, k, v, n, n, bend="all"), ["bend: got 'all'", "'coordinate'"]),
        (lambda q, k, v, n: linear.elastic_net(q, k, v, n, n, -n), ["lasso: got -1.0, want at least 0"]),
        (lambda q, k, v, n: linear.memora(q, k, v, n[:1, :2]), ["rate: got shape (1, 2, 2)", "[2, 11, 2]"]),
    ],
)  # fmt: skip
def test_messages(call, words):
    q, k, v, rate, *_ = tokens()
    with pytest.raises(ValueError, match="got") as caught:
        call(q, k, v, jnp.ones_like(rate))
    assert all(word in str(caught.value) for word in words), caught.value
