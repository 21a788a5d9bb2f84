"""Bad input: a ValueError or TypeError that names the argument, what it got and what it wants."""

import functools

import jax
import jax.numpy as jnp
import pytest

from attnjax import BlockSizes, attend, attention_weights, explain, masks, normalizers, scores, statistics

pytestmark = pytest.mark.usefixtures("without_run_time_types")

T, S, N, K, H, V = 6, 8, 4, 2, 3, 5
ARRAYS = {"q": jnp.ones((2, T, N, H)), "k": jnp.ones((2, S, K, H)), "v": jnp.ones((2, S, K, V))}


def of(**changed):
    """A call of ``attend`` with some arguments changed."""
    arguments = ARRAYS | changed
    q, k, v = (arguments.pop(name) for name in "qkv")
    return attend(q, k, v, **arguments)


def ones(*shape, dtype=jnp.float32):
    return jnp.ones(shape, dtype)


# What is done, the error, and texts that the message must hold: the argument, what was got, what is wanted.
CALLS = {
    "rank of q": (lambda: of(q=ones(T, H)), ValueError, ["q:", "got shape (6, 3)", "want [*B, T, N, H]"]),
    "rank of k": (lambda: of(k=ones(S, H)), ValueError, ["k:", "got shape (8, 3)", "want [*B, S, K, H"]),
    "rank of v": (lambda: of(v=ones(S)), ValueError, ["v:", "got shape (8,)", "want [*B, S, K, H or V]"]),
    "heads": (lambda: of(k=ones(2, S, 3, H), v=ones(2, S, 3, V)), ValueError,
              ["k:", "got K=3", "want a divisor of q's N=4"]),
    "more kv heads than heads": (lambda: of(k=ones(2, S, 8, H), v=ones(2, S, 8, V)), ValueError, ["k:", "got K=8", "N=4"]),
    "kv heads of v": (lambda: of(v=ones(2, S, 1, V)), ValueError, ["v:", "got [S, K]=[8, 1]", "want k's, [8, 2]"]),
    "H": (lambda: of(k=ones(2, S, K, 7)), ValueError, ["k:", "H=7", "want q's, 3"]),
    "S": (lambda: of(v=ones(2, 9, K, V)), ValueError, ["v:", "got [S, K]=[9, 2]", "want k's, [8, 2]"]),
    "batch of k": (lambda: of(k=ones(3, S, K, H)), ValueError, ["k:", "got batch shape (3,)", "want q's, (2,)"]),
    "batch of v": (lambda: of(v=ones(1, S, K, V)), ValueError, ["v:", "got batch shape (1,)", "want q's, (2,)"]),
    "batch rank": (lambda: of(k=ones(S, K, H)), ValueError, ["k:", "got batch shape ()", "want q's, (2,)"]),
    "empty axis": (lambda: of(k=ones(2, 0, K, H), v=ones(2, 0, K, V)), ValueError, ["k:", "got shape (2, 0, 2, 3)", "at least 1"]),
    "integer q": (lambda: of(q=ones(2, T, N, H, dtype=jnp.int32)), TypeError, ["q:", "got int32", "want a floating-point"]),
    "integer v": (lambda: of(v=ones(2, S, K, V, dtype=jnp.int32)), TypeError, ["v:", "got int32", "want a floating-point"]),
    "complex q": (lambda: of(q=ones(2, T, N, H, dtype=jnp.complex64)), TypeError, ["q:", "got complex64", "want a floating-point"]),
    "mixed dtypes": (lambda: of(k=ones(2, S, K, H, dtype=jnp.bfloat16)), TypeError, ["k:", "got bfloat16", "want q's dtype, float32"]),
    "zero scale": (lambda: of(scale=0), ValueError, ["scale=0", "want a finite number other than 0"]),
    "infinite scale": (lambda: of(scale=float("inf")), ValueError, ["scale=inf", "want a finite number"]),
    "scale per head": (lambda: of(scale=ones(N)), ValueError, ["scale:", "got shape (4,)", "want a scalar"]),
    "scale of a score without": (lambda: of(scale=1.0, score=scores.from_query_key(lambda q, k: q @ k.T)), ValueError,
                                 ["scale=1.0", "does not use a scale"]),
    "unknown implementation": (lambda: of(implementation="flash"), ValueError, ["implementation:", "got 'flash'", "want one of", "blocks"]),
    "pallas": (lambda: of(implementation="pallas"), NotImplementedError, ["implementation='pallas'", "use implementation='blocks'"]),
    "cudnn without a GPU": (lambda: of(implementation="cudnn"), NotImplementedError, ["implementation='cudnn'", "GPU"]),
    "sparsemax cannot stream": (lambda: of(normalizer=normalizers.sparsemax(), implementation="blocks"), ValueError,
                                ["implementation='blocks'", "cannot stream", "use implementation='rows'"]),
    "entmax cannot stream": (lambda: of(normalizer=normalizers.entmax15(), implementation="blocks"), ValueError,
                             ["implementation='blocks'", "cannot stream", "use implementation='rows'"]),
    "unknown statistic": (lambda: of(stats="variance"), ValueError, ["stats:", "got 'variance'", "want one of", "entropy"]),
    "a statistic twice": (lambda: of(stats=("entropy", "entropy")), ValueError, ["stats:", "got the names", "want each once"]),
    "logsumexp of a sigmoid": (lambda: of(stats="logsumexp", normalizer=normalizers.sigmoid()), ValueError, ["'logsumexp'", "exponentials"]),
    "logsumexp of a sigmoid, dense": (lambda: of(stats="logsumexp", normalizer=normalizers.sigmoid(), implementation="dense"),
                                      ValueError, ["implementation='dense'", "'logsumexp'"]),
    "an array as a mask": (lambda: of(mask=jnp.ones((T, S), bool)), TypeError, ["mask:", "want a mask", "from_array"]),
    "a name as a normalizer": (lambda: of(normalizer="softmax"), TypeError, ["normalizer:", "got str", "want one from attnjax.normalizers"]),
    "a function as a score": (lambda: of(score=lambda s: s), TypeError, ["score:", "got function", "want a score", "from_function"]),
    "shape of a mask": (lambda: of(mask=masks.from_array(jnp.ones((T, S + 1), bool))), ValueError,
                        ["FromArray", "got an array of shape (6, 9)", "T=6", "S=8"]),
    "heads of a mask": (lambda: of(mask=masks.from_array(jnp.ones((3, T, S), bool))), ValueError,
                        ["got an array of shape (3, 6, 8)", "N=4"]),
    "rank of a mask": (lambda: of(mask=masks.from_array(jnp.ones((1, 1, 2, N, T, S), bool))), ValueError,
                       ["got an array of shape (1, 1, 2, 4, 6, 8)", "B=2"]),
    "length of segments": (lambda: of(mask=masks.segments(jnp.zeros((2, T), int))), ValueError,
                           ["Segments.kv_ids", "got an array of shape (2, 6)", "S=8"]),
    "heads of slopes": (lambda: of(score=scores.alibi(ones(3))), ValueError, ["Alibi.slopes", "got an array of shape (3,)", "N=4"]),
    "heads of a sink": (lambda: of(normalizer=normalizers.softmax(sink=ones(5))), ValueError,
                        ["Softmax.sink", "got an array of shape (5,)", "N=4"]),
    "shape of a bias": (lambda: of(score=scores.bias(ones(T, T))), ValueError, ["Bias.values", "got an array of shape (6, 6)", "S=8"]),
    "shape of a score": (lambda: of(score=scores.from_query_key(lambda q, k: q @ q.T)), ValueError, ["from_query_key(function)", "got scores of shape"]),
    "shape of a modified score": (lambda: of(score=scores.from_function(lambda s, b, n, t, u: s.sum())), ValueError,
                                  ["from_function(function)", "got scores of shape ()"]),
    "weights: heads": (lambda: attention_weights(ones(T, 4, H), ones(S, 3, H)), ValueError, ["k:", "got K=3"]),
    "explain: H": (lambda: explain(ARRAYS["q"], ones(2, S, K, 7), ARRAYS["v"]), ValueError, ["k:", "H=7"]),
}  # fmt: skip
COMPONENTS = {
    "negative window": (lambda: masks.window(-1), ValueError, ["window(left)=-1", "want at least 0"]),
    "negative window to the right": (lambda: masks.window(3, -2), ValueError, ["window(right)=-2", "want at least 0"]),
    "window of a fraction": (lambda: masks.window(1.5), TypeError, ["window(left)", "got float 1.5", "want an integer"]),
    "window of a Boolean": (lambda: masks.window(True), TypeError, ["window(left)", "want an integer"]),
    "causal of a fraction": (lambda: masks.causal(0.5), TypeError, ["causal(offset)", "got float 0.5", "want an integer"]),
    "negative prefix": (lambda: masks.prefix(-1), ValueError, ["prefix(n)=-1", "want at least 0"]),
    "dilated by 0": (lambda: masks.dilated(0, 4), ValueError, ["dilated(step)=0", "want at least 1"]),
    "blocks of 0": (lambda: masks.block_local(0), ValueError, ["block_local(size)=0", "want at least 1"]),
    "segments of fractions": (lambda: masks.segments(ones(4)), TypeError, ["segments(q_ids)", "got float32[4]", "want integers"]),
    "no lengths": (lambda: masks.lengths(), ValueError, ["lengths()", "neither q_lengths nor kv_lengths"]),
    "negative length": (lambda: masks.lengths(kv_lengths=-1), ValueError, ["lengths(kv_lengths)=-1", "at least 0"]),
    "numbers as a mask": (lambda: masks.from_array(ones(3, 3)), TypeError, ["from_array(visible)", "got float32[3, 3]", "want bool"]),
    "no function": (lambda: masks.from_function(3), TypeError, ["from_function(function)", "got int", "want a callable"]),
    "no heads": (lambda: masks.heads(), ValueError, ["heads()", "want heads(0, 2, ...)"]),
    "negative head": (lambda: masks.heads(-1), ValueError, ["heads(-1,)", "want heads(0, 2, ...)"]),
    "no masks": (lambda: masks.per_head(), ValueError, ["per_head()", "want one for each query head"]),
    "mask & array": (lambda: masks.causal() & jnp.ones((3, 3), bool), TypeError, ["mask &", "want a mask", "from_array"]),
    "mask | None": (lambda: masks.causal() | None, TypeError, ["mask |", "got NoneType", "want a mask"]),
    "window above the grid": (lambda: masks.neighborhood((4, 4), (5, 1)), ValueError, ["neighborhood(window=5", "<= 4"]),
    "even too much dilation": (lambda: masks.neighborhood(8, 3, dilation=3), ValueError, ["window=3, dilation=3", "<= 8"]),
    "stride above the window": (lambda: masks.neighborhood(8, 3, stride=4), ValueError, ["neighborhood(stride=4)", "window=3"]),
    "windows of two dimensions": (lambda: masks.neighborhood(8, (3, 3)), ValueError, ["neighborhood(window=(3, 3))", "want one number or 1"]),
    "four dimensions": (lambda: masks.neighborhood((2, 2, 2, 2), 1), ValueError, ["neighborhood(shape=", "want 1 to 3"]),
    "cap of 0": (lambda: scores.softcap(0.0), ValueError, ["softcap(cap=0.0)", "want a positive number"]),
    "even table": (lambda: scores.relative_bias(ones(4, 6)), ValueError, ["relative_bias(table)", "got shape (4, 6)", "R = 2 * reach + 1"]),
    "integer bias": (lambda: scores.bias(jnp.ones((3, 3), int)), TypeError, ["bias(values)", "got int", "want floating point", "from_array"]),
    "a start in the middle": (lambda: scores.softcap(1.0) >> scores.dot_product(), ValueError, ["can only come first"]),
    "a function in a chain": (lambda: scores.softcap(1.0) >> (lambda s: s), TypeError, ["score >>", "got function", "from_function"]),
    "negative eps": (lambda: scores.cosine(-1.0), ValueError, ["cosine(eps=-1.0)", "want at least 0"]),
    "no score function": (lambda: scores.from_function(None), TypeError, ["from_function(function)", "got NoneType"]),
    "no start function": (lambda: scores.from_query_key(None), TypeError, ["from_query_key(function)", "got NoneType"]),
    "tie factor of 1": (lambda: normalizers.softmax(tie_factor=1.0), ValueError, ["softmax(tie_factor=1.0)", "want a number above 1"]),
    "minus one": (lambda: normalizers.softmax_plus_one(-1), ValueError, ["softmax_plus_one(n=-1)", "want at least 0"]),
    "no keys": (lambda: normalizers.log_n_softmax(n=0), ValueError, ["log_n_softmax(n=0)", "want a positive number"]),
    "no verb": (lambda: normalizers.from_monoid(None, *[lambda: 0] * 3), TypeError, ["from_monoid(init)", "got NoneType"]),
    "mass on an array": (lambda: statistics.mass_on(ones(3)), TypeError, ["mass_on(mask)", "want a mask"]),
    "tiles of 0": (lambda: BlockSizes(q=0), ValueError, ["BlockSizes(q=0)", "want a whole number from 1 up"]),
    "tiles of a fraction": (lambda: BlockSizes(kv=1.5), ValueError, ["BlockSizes(kv=1.5)", "want a whole number"]),
}  # fmt: skip


@pytest.mark.parametrize("name", [*CALLS, *COMPONENTS])
def test_message(name):
    do, error, texts = (CALLS | COMPONENTS)[name]
    with pytest.raises(error) as raised:
        do()
    message = str(raised.value)
    print(message)
    missing = [text for text in texts if text not in message]
    assert not missing, f"{missing} not in: {message}"


@pytest.mark.parametrize("do", [functools.partial(of, k=ones(2, S, 3, H), v=ones(2, S, 3, V)),
                                functools.partial(of, scale=0)])  # fmt: skip
def test_the_same_inside_jit(do):
    """Shapes and numbers are checked while tracing, so the message is the same."""
    with pytest.raises(ValueError, match="want"):
        jax.jit(do)()
