"""Feature maps with more than a map: flows, InLine, L2ViT, scans in more than one dimension; and their claims."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import linear
from tests.references import linear_features as reference

pytestmark = pytest.mark.usefixtures("x64")

QUICK = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=QUICK)


def run(function, *arrays, **knobs):
    """Compiled as one program."""
    return jit(functools.partial(function, **knobs))(*arrays)


def weights_of(q, k, mechanism, **knobs):
    return run(linear.weights, q, k, mechanism=mechanism, **knobs)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_near(got, want, bound=1e-10):
    np.testing.assert_allclose(got, want, rtol=0, atol=bound * max(1.0, float(np.max(np.abs(want)))))


def entropy(weights):
    return float(linear.concentration(weights, 1).entropy.mean())


# --- flows


@pytest.mark.parametrize("sizes", [(12, 12), (9, 14)])
def test_flow_attention_is_its_matrix(sizes):
    """Of n queries and m keys, two heads of queries for each of keys; and each flow is conserved."""
    n, m = sizes
    q, k, v = draw(2, n, 4, 5), draw(2, m, 2, 5, seed=1), draw(2, m, 2, 3, seed=2)
    arrays = [jnp.asarray(x) for x in (q, k, v)]
    got = run(linear.flow_attention, *arrays, causal=False, eps=0)
    flows = run(linear.flows, *arrays[:2], causal=False, eps=0)
    for b in range(2):
        for h in range(4):
            weights, (incoming, outgoing, sinks, sources) = reference.flow_attention(q[b, :, h], k[b, :, h // 2], v)
            assert_near(got[b, :, h], weights @ v[b, :, h // 2])
            wanted = (incoming / m, outgoing / n, sinks * n / m, sources)
            for found, want in zip(flows, wanted, strict=True):
                assert_near(found[b, :, h], want)
            # What the names say: one unit into each query is n in all, one out of each key is m.
            assert_near(flows.sinks[b, :, h].sum() * m / n, m)
            assert_near(flows.sources[b, :, h].sum(), n)
            capacity = reference.sigmoid(q[b, :, h]) @ reference.sigmoid(k[b, :, h // 2]).T
            assert_near((capacity / (m * flows.incoming[b, :, h, None])).sum(1), np.ones(n))
            assert_near((capacity / (n * flows.outgoing[b, None, :, h])).sum(0), np.ones(m))


@pytest.mark.parametrize("clip", [1.0, None])
def test_causal_flow_attention_is_its_recurrence(clip):
    """In every form, in segments, of sequences that end early, and going on from a state; token by token too."""
    q, k, v = draw(2, 20, 2, 5), draw(2, 20, 1, 5, seed=1), draw(2, 20, 1, 3, seed=2)
    segments, lengths = np.array([[0] * 8 + [1] * 12, [0] * 15 + [1] * 5]), np.array([20, 15])
    bound = np.inf if clip is None else clip
    want = np.zeros((2, 20, 2, 3))
    for b, part in ((0, slice(8)), (0, slice(8, None)), (1, slice(15))):
        for h in range(2):
            want[b, part, h] = reference.causal_flow_attention(q[b, part, h], k[b, part, 0], v[b, part, 0], bound)
    arrays = [jnp.asarray(x) for x in (q, k, v)]
    go = lambda q, k, v, segments, lengths=None, state=None, form="chunked": linear.flow_attention(
        q, k, v, clip=clip, eps=0, segment_ids=segments, lengths=lengths, form=form, chunk_size=7, state=state,
        return_state=True,
    )  # fmt: skip
    segments, lengths = jnp.asarray(segments), jnp.asarray(lengths)
    whole, last = run(go, *arrays, segments, lengths)
    assert_near(whole, want)
    assert_near(run(go, *arrays, segments, lengths, form="recurrent")[0], want)
    out, state = run(go, *(x[:, :13] for x in arrays), segments[:, :13])
    outs, step = [out], jit(go)
    for t in range(13, 15):
        out, state = step(*(x[:, t : t + 1] for x in arrays), segments[:, t : t + 1], None, state)
        outs.append(out)
    assert_near(jnp.concatenate(outs, 1), want[:, :15])
    for got, after in zip(jax.tree.leaves(last), jax.tree.leaves(state), strict=True):
        assert_near(got[1], after[1])


@pytest.mark.parametrize("causal", [True, False])
def test_flow_attention_of_sequences_that_end_early(causal):
    """As if the rest were not there; of none at all, zeros. Gradients are finite."""
    q, k, v = (jnp.asarray(x) for x in draw(3, 3, 12, 2, 5))
    lengths = jnp.array([12, 7, 0])
    of = lambda q, k, v: linear.flow_attention(q, k, v, causal=causal, eps=0, lengths=lengths)
    got, gradients = jit(lambda *x: (of(*x), jax.grad(lambda *y: (of(*y) ** 2).sum(), (0, 1, 2))(*x)))(q, k, v)
    assert_near(got[1, :7], run(linear.flow_attention, q[1, :7], k[1, :7], v[1, :7], causal=causal, eps=0))
    assert not np.any(got[1, 7:])
    assert not np.any(got[2])
    for x in gradients:
        assert np.isfinite(x).all()
        assert not np.any(x[1, 7:])


def test_the_first_token_of_causal_flow_attention_is_allotted_sigmoid_of_one():
    """And is not divided further: .7311 of its value; later rows do not sum to what is allotted."""
    q, k = (jnp.asarray(x) for x in draw(2, 6, 1, 4))
    weights = weights_of(q, k, linear.flow_attention, eps=0)[0]
    assert float(weights[0, 0]) == pytest.approx(0.7310585786300049, abs=1e-12)
    allotted = jax.nn.sigmoid(run(linear.flows, q, k, eps=0).sinks[:, 0])
    assert float(jnp.abs(weights.sum(1) - allotted)[1:].min()) > 1e-6
    both = weights_of(q, k, linear.flow_attention, causal=False)[0]
    assert float(jnp.abs(both[-1] - weights[-1]).max()) > 1e-3


@pytest.mark.parametrize(
    ("sizes", "plain", "competed"),
    [((64, 64, 16), 4.153, 4.140), ((64, 64, 64), 4.158, 4.154), ((48, 80, 16), 4.376, 4.367)],
)
def test_competition_lowers_the_entropy_of_rows(sizes, plain, competed):
    """Of n normal queries and m keys, from what the sigmoids' products alone have. That is without the bound on sources:
    with it, where n = m, the entropy falls by half as much."""
    n, m, width = sizes
    q, k = jnp.asarray(draw(10, n, 1, width)), jnp.asarray(draw(10, m, 1, width, seed=1))
    alone = entropy(jnp.einsum("btnh,bsnh->bnts", jax.nn.sigmoid(q), jax.nn.sigmoid(k)))
    free, bounded = (entropy(weights_of(q, k, linear.flow_attention, causal=False, clip=clip)) for clip in (None, 1))
    print(sizes, "predicted", plain, competed, "measured", alone, free, "bounded", bounded)
    assert [alone, free] == pytest.approx([plain, competed], abs=0.004)
    assert free <= bounded < alone
    if n == m:
        assert 0.3 < (alone - bounded) / (alone - free) < 0.6


def test_what_the_clip_of_sources_takes():
    """It binds for about half of the keys, and halves the spread of what they compete by."""
    q, k = (jnp.asarray(x) for x in draw(2, 64, 1, 16))
    sources = run(linear.flows, q, k, causal=False).sources[:, 0]
    clipped = jnp.minimum(sources, 1)
    print(float((sources > 1).mean()), float(sources.std()), float(clipped.std()))
    assert 0.35 < float((sources > 1).mean()) < 0.65
    assert float(clipped.std()) < 0.7 * float(sources.std())


def test_flow_attention_of_large_logits_is_finite():
    """Features that vanish: eps keeps divisors from zero, values and gradients; at no bound on sources, too."""
    with jax.enable_x64(False):
        q, k, v = (jnp.asarray(x, jnp.float32) for x in 200 * draw(3, 10, 1, 4))
        for causal in (True, False):
            of = lambda q, k, v, causal=causal: (
                linear.flow_attention(q, k, v, causal=causal, clip=None) * jnp.cos(v)
            ).sum()
            value, gradients = jit(jax.value_and_grad(of, (0, 1, 2)))(q, k, v)
            assert np.isfinite(value)
            assert all(np.isfinite(x).all() for x in gradients)


# --- InLine


def test_injective_attention_is_its_matrix():
    """Bidirectional, and causal: each row that of the tokens so far. Rows sum to one."""
    q, k, v = draw(2, 11, 4, 5), draw(2, 11, 2, 5, seed=1), draw(2, 11, 2, 3, seed=2)
    arrays = [jnp.asarray(x) for x in (q, k, v)]
    whole = run(linear.injective_attention, *arrays, lengths=jnp.array([11, 6]))
    so_far = run(linear.injective_attention, *arrays, causal=True, chunk_size=4)
    for b, h in np.ndindex(2, 4):
        seen = 11 if b == 0 else 6
        queries, keys, values = q[b, :, h], k[b, :, h // 2], v[b, :, h // 2]
        weights = reference.injective_weights(queries[:seen], keys[:seen])
        assert_near(weights.sum(1), np.ones(seen))
        assert_near(whole[b, :seen, h], weights @ values[:seen])
        assert not np.any(whole[b, seen:, h])
        rows = [reference.injective_weights(queries[[t]], keys[: t + 1])[0] @ values[: t + 1] for t in range(11)]
        assert_near(so_far[b, :, h], rows)
    first, state = run(linear.injective_attention, *(x[:, :4] for x in arrays), causal=True, return_state=True)
    rest = jit(lambda q, k, v, state: linear.injective_attention(q, k, v, causal=True, state=state))
    assert_near(jnp.concatenate([first, rest(*(x[:, 4:] for x in arrays), state)], 1), so_far)


def test_which_weights_tell_a_query_from_three_times_it():
    """Greatest difference of weights: none where products of homogeneous features are divided by their sum, .039 for
    InLine, .84 for softmax; elu + 1 is not homogeneous, and still tells by 1e-3 only."""
    differences, negative = {}, 0.0
    q, k = (jnp.asarray(x) for x in draw(2, 256, 1, 16))
    bidirectional = functools.partial(linear.linear_attention, causal=False, form="parallel")
    exponential = lambda q: linear.weights(q, k, linear.log_normal, causal=False, form="parallel")
    mechanisms = {
        "relu": lambda q: linear.weights(q, k, bidirectional, feature_map=jax.nn.relu),
        "InLine": lambda q: linear.weights(q, k, linear.injective_attention, form="parallel"),
        "softmax": lambda q: jax.nn.softmax(jnp.einsum("tnh,snh->nts", q, k) / 4, -1),
        "elu": lambda q: linear.weights(q, k, bidirectional),
    }
    for name, of in mechanisms.items():
        found = jit(of)(q)
        differences[name] = float(jnp.abs(found - jit(of)(3 * q)).max())
        negative = float((found < 0).mean()) if name == "InLine" else negative
    print(differences, "negative weights of InLine", negative)
    assert differences["relu"] < 1e-14
    assert 0.02 < differences["InLine"] < 0.1
    assert 0.5 < differences["softmax"] < 1
    assert differences["elu"] < 0.05 * differences["softmax"]
    # Features exp cannot tell a query from the same plus a constant.
    assert float(jnp.abs(jit(exponential)(q) - jit(exponential)(q + 2)).max()) < 1e-14


def test_local_parts_are_convolutions_by_channel():
    x, kernels = draw(2, 5, 6, 3), draw(2, 3, 3, 3, seed=1)
    got = run(linear.local_residual, jnp.asarray(x), jnp.asarray(kernels))
    assert_near(got, np.stack([reference.depthwise(*pair) for pair in zip(x, kernels, strict=True)]))
    kernels, biases, (scale, shift) = draw(2, 7, 7, 3), draw(2, 3, seed=2), draw(2, 3, seed=3)
    got = run(linear.local_concentration, *(jnp.asarray(y) for y in (x, kernels, biases, scale, shift)))
    gelu = lambda y: np.asarray(jax.nn.gelu(y, approximate=False))
    for image, found in zip(x, got, strict=True):
        hidden = gelu(reference.depthwise(image, kernels[0]) + biases[0]) * scale + shift
        assert_near(found, reference.depthwise(hidden, kernels[1]) + biases[1])


# --- L2ViT


@pytest.mark.parametrize("causal", [False, True])
def test_enhanced_linear_attention_is_its_matrix(causal):
    """Where the floor binds and where it does not: rows sum to the temperature, or less."""
    q, k, v = draw(2, 12, 4, 6), draw(2, 12, 2, 6, seed=1), draw(2, 12, 2, 3, seed=2)
    tau = np.array([0.5, 1.0, 2.0, 0.1])
    products = np.einsum("btnh,bsnh->bnts", np.maximum(q, 0), np.maximum(np.repeat(k, 2, 2), 0))
    products = products * (np.tril(np.ones((12, 12))) if causal else 1)
    arrays = [jnp.asarray(x) for x in (q, k, v)]
    for floor in (1e-3, 15.0):
        weights = tau[:, None, None] * products / np.maximum(products.sum(-1, keepdims=True), floor)
        got = run(linear.enhanced_linear_attention, *arrays, jnp.asarray(tau), floor=floor, causal=causal)
        assert_near(got, np.einsum("bnts,bsnv->btnv", weights, np.repeat(v, 2, 2)))
    by_default = run(linear.enhanced_linear_attention, *arrays, floor=15.0, causal=causal)
    assert_near(by_default, 6**-0.5 * np.asarray(got) / tau[:, None])


def test_linear_attention_concentrates_less_than_softmax():
    """Mass of the 16 greatest of 256 weights, 64 features: .107 and .297, of twice the logits .652; entropies 5.49 and
    5.04. The floor of 100 is far below all divisors."""
    q, k = (jnp.asarray(x) for x in draw(2, 256, 1, 64))
    relu = jax.nn.relu(q[:, 0]) @ jax.nn.relu(k[:, 0]).T
    logits = q[:, 0] @ k[:, 0].T / 8
    found = [linear.concentration(x, 16) for x in (relu, jax.nn.softmax(logits), jax.nn.softmax(2 * logits))]
    masses, entropies = ([float(x.mean()) for x in y] for y in zip(*found, strict=True))
    print(masses, entropies, float(relu.sum(1).min()))
    assert masses == pytest.approx([0.107, 0.297, 0.652], abs=0.01)
    assert entropies[:2] == pytest.approx([5.49, 5.04], abs=0.02)
    assert float(relu.sum(1).min()) > 1000


def test_the_local_module_puts_mass_on_the_neighborhood():
    """Share of what other tokens move a token by, in a grid of 14 by 14 within 3 of it: 25% or less is there by size;
    beside linear attention alone no more, after the local module twice that."""
    side = 14
    q, k = (jnp.asarray(x) for x in draw(2, side**2, 1, 16))
    weights = linear.weights(q, k, linear.enhanced_linear_attention, form="parallel")[0] * 4  # rows sum to one
    kernels, ones, zeros = jnp.asarray(draw(2, 7, 7, 1)) / 7, jnp.ones(1), jnp.zeros((2, 1))
    place = np.stack(np.divmod(np.arange(side**2), side), -1)
    distance = np.abs(place[:, None] - place[None]).max(-1)

    def block(x, local):
        x = x + weights @ x
        grid = x.reshape(side, side, 1)
        return x + local * linear.local_concentration(grid, kernels, zeros, ones, zeros[0]).ravel()

    moved = jit(lambda x: [jnp.abs(jax.jacobian(block)(x, local)) for local in (0.0, 1.0)])(jnp.asarray(draw(side**2)))
    shares = [float((x * ((distance > 0) & (distance <= 3))).sum() / (x * (distance > 0)).sum()) for x in moved]
    print("share of the neighborhood: by size", float(((distance > 0) & (distance <= 3)).mean()), "measured", shares)
    assert shares[0] < 0.25
    assert shares[1] > 2 * shares[0]


# --- scans in more than one dimension


def test_one_scan_of_a_grid_sees_all_of_it_in_any_order():
    """LightNet: read with the totals it is a softmax over all cells, whichever way the grid is flattened."""
    q, k, v = draw(4, 3, 4, 2, 3), 3 * draw(4, 3, 4, 2, 3, seed=1), draw(4, 3, 4, 2, 4, seed=2)
    weights = np.asarray(jax.nn.softmax(k.reshape(-1, 2, 3), axis=0))
    want = np.einsum("...nh,snh,snv->...nv", q, weights, v.reshape(-1, 2, 4)) / np.sqrt(3)

    @jit
    def both(*cells):
        return linear.light_net(*cells, causal=False), linear.light_net(*cells, return_state=True)[1]

    for order in ((0, 1, 2), (2, 0, 1)):
        back = np.argsort(order)
        turned = [jnp.asarray(x.transpose(*order, 3, 4)) for x in (q, k, v)]
        cells = [x.reshape(-1, *x.shape[-2:]) for x in turned]
        twice, state = both(*cells)
        means = state.value[:, 0, :, :-1] / state.value[:, 0, :, -1:]
        once = jnp.einsum("tnh,nhv->tnv", cells[0], means) / np.sqrt(3)
        for got in (twice, once):
            got = got.reshape(*turned[2].shape).transpose(*back, 3, 4)
            assert_near(got, want)


# --- other types and axes


def test_sums_are_float32():
    """16-bit inputs are divided and multiplied as float32, and only then rounded; another axis is one of the batch."""
    mechanisms = (linear.flow_attention, linear.injective_attention, linear.enhanced_linear_attention)
    with jax.enable_x64(False):
        arrays = [jnp.asarray(x, jnp.bfloat16) for x in draw(3, 2, 30, 2, 4)]

        @jit
        def everything(q, k, v):
            wide = [x.astype(jnp.float32) for x in (q, k, v)]
            return [(f(q, k, v), f(*wide), jax.vmap(f)(*wide)) for f in mechanisms]

        for short, long, mapped in everything(*arrays):
            assert short.dtype == jnp.bfloat16
            assert_near(short.astype(jnp.float32), long, 4e-3)
            assert_near(mapped, long, 1e-5)


LONG = {
    "flow": functools.partial(linear.flow_attention, causal=False),
    "causal flow": linear.flow_attention,
    "causal InLine": functools.partial(linear.injective_attention, causal=True),
    "L2ViT": linear.enhanced_linear_attention,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long_sequences(name):
    """Of 16384 tokens in float32, beside float64: outputs and gradients to 1e-5 of the greatest; and memory grows as
    the length does."""
    inputs = draw(3, 16384, 1, 16)

    def of(*arrays):
        out, pull = jax.vjp(LONG[name], *arrays)
        return out, *pull(jnp.cos(arrays[2]))

    want = jax.jit(of)(*(jnp.asarray(x) for x in inputs.astype(np.float32).astype(np.float64)))
    with jax.enable_x64(False):
        arrays = [jnp.asarray(x, jnp.float32) for x in inputs]
        program = jax.jit(of).lower(*arrays).compile()
        for got, right in zip(program(*arrays), want, strict=True):
            error = float(np.abs(np.asarray(got) - np.asarray(right)).max() / np.abs(np.asarray(right)).max())
            print(name, error)
            assert error < 1e-5
        half = jax.jit(of).lower(*(x[:8192] for x in arrays)).compile()
        sizes = [x.memory_analysis().temp_size_in_bytes for x in (half, program)]
        print(name, "bytes", sizes)
        assert sizes[1] < 2.2 * sizes[0]


# --- bad input


def test_messages(without_run_time_types):
    with jax.enable_x64(False):
        x = jnp.ones((10, 4, 8))
        with pytest.raises(ValueError, match="causal=False: want neither state"):
            linear.flow_attention(x, x, x, causal=False, return_state=True)
        with pytest.raises(ValueError, match="state: got State, want the FlowState"):
            linear.flow_attention(x, x, x, state=linear.State(x))
        _, state = linear.flow_attention(x, x, x, return_state=True)
        with pytest.raises(ValueError, match=r"state: got ends of shape \(4, 16\), want .*ends \[2, 16\]"):
            linear.flow_attention(x[:, :2], x[:, :2], x[:, :2], state=state)
        with pytest.raises(ValueError, match="k: got 9 tokens"):
            linear.flow_attention(x, x[:9], x[:9])
        with pytest.raises(ValueError, match="floor: got 0, want a positive number"):
            linear.enhanced_linear_attention(x, x, x, floor=0)
        with pytest.raises(ValueError, match=r"temperature: got shape \(3,\)"):
            linear.enhanced_linear_attention(x, x, x, jnp.ones(3))
        with pytest.raises(ValueError, match="count: got 9, want 1 to 8"):
            linear.concentration(x, 9)
