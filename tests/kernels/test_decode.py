"""Few queries against many keys, by kernels: heads packed into rows, keys split over a GPU's processors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import attend, masks, normalizers, scores
from pallas_kernels import compile_for
from pallas_kernels.attention import _api
from tests.kernels.targets import BOTH, GPU, TPU, by_kernels, interpreted
from tests.tolerances import assert_close


def inputs(queries: int, keys: int = 1024):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return draw(2, queries, 6, 32), draw(2, keys, 2, 32), draw(2, keys, 2, 16)


@pytest.mark.parametrize("queries", [1, 3])
@BOTH
def test_decoding_equals_the_dense_form(target, queries):
    """A cache filled to another length in each sequence, a slope for each head, statistics."""
    q, k, v = inputs(queries)
    filled = jnp.array([700, 1000])
    mask = masks.from_function(lambda batch, head, t, s: s < filled[batch])
    score = scores.dot_product() >> scores.alibi(jnp.linspace(0.01, 0.3, 6))
    of = lambda form: attend(q, k, v, mask=mask, score=score, implementation=form, stats=("logsumexp", "entropy"))
    want, want_stats = of("dense")
    got, stats = by_kernels(target, lambda: of("pallas"))
    assert_close(got, want)
    for name in stats:
        assert_close(stats[name], want_stats[name])


@BOTH
def test_decoding_without_softmax(target):
    q, k, v = inputs(2)
    of = lambda form: attend(q, k, v, normalizer=normalizers.sigmoid(), implementation=form)
    assert_close(by_kernels(target, lambda: of("pallas")), of("dense"))


@BOTH
def test_a_sequence_that_sees_nothing_is_zero(target):
    q, k, v = inputs(1)
    mask = masks.from_array(jnp.array([True, False])[:, None, None, None])
    of = lambda form: attend(q, k, v, mask=mask, implementation=form)
    got = by_kernels(target, lambda: of("pallas"))
    assert_close(got[0], of("dense")[0])
    assert not np.asarray(got[1]).any()


@interpreted
def test_keys_are_split_over_the_processors_of_a_gpu(monkeypatch):
    pieces = []
    split = _api.split
    monkeypatch.setattr(_api, "split", lambda *x: pieces.append(x[-1]) or split(*x))
    q, k, v = inputs(1)
    of = lambda form: attend(q, k, v, mask=masks.window(700, 700), implementation=form, stats="logsumexp")
    (got, stats), (want, want_stats) = by_kernels(GPU, lambda: of("pallas")), of("dense")
    assert set(pieces) == {2}
    assert_close(got, want)
    assert_close(stats["logsumexp"], want_stats["logsumexp"])


def test_gradients_of_few_queries_are_streamed():
    q, k, v = inputs(2)
    of = lambda form: jax.grad(lambda *x: attend(*x, implementation=form).sum(), (0, 1, 2))(q, k, v)
    with compile_for(TPU):
        got = of("pallas")
    jax.tree.map(lambda a, b: assert_close(a, b, kind="derivative"), got, of("dense"))
