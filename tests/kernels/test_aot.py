"""The kernels, compiled by the real compilers for chips that are not there: python -m pytest -m aot tests/kernels."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from attnjax import attend, linear, masks, scores
from pallas_kernels import compile_for
from pallas_kernels._target import SHARED, named
from pallas_kernels._topology import TOPOLOGIES, compile_on, devices, prepare
from tests.kernels.targets import nothing_streamed
from tests.kernels.test_linear import nothing_looped
from tests.kernels.test_monoid import own_softmax

pytestmark = pytest.mark.aot


@functools.cache
def device(generation: str):
    prepare()
    return devices(named(generation))[0]


def compiled(generation: str, function, *shapes):
    """Compiled, everything in kernels."""
    with compile_for(named(generation)), nothing_streamed(), nothing_looped():
        return compile_on(device(generation), function, *shapes)


def heads_first(function):
    """Arrays ``[N, T, H]``, as the kernels read them: no copies blur what is measured."""
    turn = lambda x: jnp.swapaxes(x, 0, 1)
    return lambda *x: turn(function(*map(turn, x)))


def arrays(length: int, heads: int, kv_heads: int, width: int, dtype=jnp.bfloat16):
    q, k = (jax.ShapeDtypeStruct((n, length, width), dtype) for n in (heads, kv_heads))
    return q, k, k


def plain(**knobs):
    return lambda q, k, v: attend(q, k, v, implementation="pallas", **knobs)


def forward(**knobs):
    return heads_first(plain(**knobs))


def with_gradients(function):
    def both(q, k, v, cotangent):
        output, pull = jax.vjp(function, q, k, v)
        return output, pull(cotangent)

    return both


def backward(**knobs):
    return with_gradients(forward(**knobs))


GENERATIONS = [*TOPOLOGIES, *SHARED]


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_forward_and_backward_compile(generation, width):
    q, k, v = arrays(2048, 8, 2, width)
    compiled(generation, backward(mask=masks.causal()), q, k, v, q)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_long_window_compiles(generation):
    """Backward needs two passes here: the gradient of the queries does not fit the chip."""
    q, k, v = arrays(131072, 1, 1, 128)
    compiled(generation, backward(mask=masks.causal() & masks.window(4096)), q, k, v, q)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_scores_with_gradients_and_lengths_that_no_tile_divides_compile(generation):
    def loss(q, k, v, slopes, ids):
        score = scores.dot_product() >> scores.softcap(30.0) >> scores.alibi(slopes)
        mask = masks.causal() & masks.segments(ids)
        return attend(q, k, v, mask=mask, score=score, implementation="pallas").astype(jnp.float32).sum()

    q, k = (jax.ShapeDtypeStruct((2, 1000, n, 64), jnp.float32) for n in (4, 2))
    slopes, ids = jax.ShapeDtypeStruct((4,), jnp.float32), jax.ShapeDtypeStruct((2, 1000), jnp.int32)
    compiled(generation, jax.grad(loss, (0, 1, 2, 3)), q, k, k, slopes, ids)


def between_features(name: str):
    """Scores that look at one feature, or entry of a table, after another; and the shapes of what they learn."""
    number = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    distance = scores.from_query_key(lambda q, k: -jnp.sum(jnp.abs(q[:, None, :] - k[None, :, :]), axis=-1))
    return {
        "additive": (scores.additive, (number(2, 64, 32), number(2, 64, 32), number(2, 32))),
        "distance": (lambda: distance, ()),
        "relative bias": (lambda table: scores.dot_product() >> scores.relative_bias(table), (number(2, 65),)),
    }[name]


@pytest.mark.parametrize("name", ["additive", "distance", "relative bias"])
@pytest.mark.parametrize("generation", ["v4", "v6e", "h100"])
def test_scores_between_features_compile(generation, name):
    score, learned = between_features(name)

    def loss(q, k, v, *learned):
        found = attend(q, k, v, mask=masks.causal(), score=score(*learned), implementation="pallas")
        return found.astype(jnp.float32).sum()

    q, k = (jax.ShapeDtypeStruct((1024, n, 64), jnp.bfloat16) for n in (2, 1))
    compiled(generation, jax.grad(loss, tuple(range(3 + len(learned)))), q, k, k, *learned)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_tangents_compile(generation):
    q, k, v = arrays(1024, 2, 2, 128)
    moved = lambda *x: jax.jvp(forward(mask=masks.causal()), x[:3], x[3:])
    compiled(generation, moved, q, k, v, q, k, v)


@pytest.mark.parametrize("width", [64, 128, 256])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_decoding_compiles(generation, width):
    """A step of one query a sequence against a cache that is filled to a traced length."""

    def step(q, k, v, filled):
        mask = masks.from_function(lambda batch, head, t, s: s < filled[batch])
        return attend(q, k, v, mask=mask, implementation="pallas")

    q, k = (jax.ShapeDtypeStruct((2, n, heads, width), jnp.bfloat16) for n, heads in ((1, 32), (8192, 4)))
    compiled(generation, step, q, k, k, jax.ShapeDtypeStruct((2,), jnp.int32))


@pytest.mark.parametrize("generation", ["v4", "v6e", "h100"])
def test_a_normalizer_of_the_user_compiles(generation):
    function = lambda q, k, v: attend(
        q, k, v, mask=masks.causal(), normalizer=own_softmax(2.0), implementation="pallas"
    )
    q, k = (jax.ShapeDtypeStruct((1024, heads, 64), jnp.bfloat16) for heads in (4, 2))
    compiled(generation, function, q, k, k)


def test_memory_is_linear_in_length():
    temporary = {}
    functions = {"v5e": backward(mask=masks.causal()), "h100": with_gradients(plain(mask=masks.causal()))}
    for generation, function in functions.items():
        for length in (4096, 16384):
            # A GPU's kernels read positions before heads, as they are given.
            lengths = (8, length) if generation == "v5e" else (length, 8)
            q = jax.ShapeDtypeStruct((*lengths, 128), jnp.bfloat16)
            found = compiled(generation, function, q, q, q, q)
            temporary[generation, length] = found.memory_analysis().temp_size_in_bytes
    print(temporary)
    for generation in functions:
        assert temporary[generation, 16384] <= 100e6
        assert temporary[generation, 16384] <= 4.4 * max(temporary[generation, 4096], 20e6)


def linear_gradients(delta: bool, by_feature: bool):
    """Outputs and gradients of linear attention in chunks of 64."""

    def forward(q, k, v, log_decay, beta):
        knobs = {"beta": beta} if delta else {}
        return linear.attend(q, k, v, log_decay=log_decay, **knobs, form="pallas", chunk_size=64)

    def both(q, k, v, numbers, features, cotangent):
        output, pull = jax.vjp(lambda *x: forward(*x, numbers), q, k, v, features if by_feature else numbers)
        return output, pull(cotangent)

    return both


def linear_arrays(length: int, heads: int, width: int, dtype=jnp.bfloat16):
    q, numbers = jax.ShapeDtypeStruct((length, heads, width), dtype), jax.ShapeDtypeStruct((length, heads), jnp.float32)
    return q, q, q, numbers, jax.ShapeDtypeStruct(q.shape, jnp.float32), q


@pytest.mark.parametrize("kind", ["decay by feature", "delta rule"])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_linear_attention_compiles(generation, kind):
    """The delta rule with a decay by token: all of what that alone needs is in it."""
    by_feature = kind == "decay by feature"
    compiled(generation, linear_gradients(not by_feature, by_feature), *linear_arrays(192, 2, 128))


@pytest.mark.parametrize(("width", "dtype"), [(64, jnp.bfloat16), (256, jnp.bfloat16), (128, jnp.float32)])
@pytest.mark.parametrize("generation", ["v5e", "h100"])
def test_linear_attention_of_other_sizes_and_types_compiles(generation, width, dtype):
    compiled(generation, linear_gradients(True, False), *linear_arrays(192, 2, width, dtype))


@pytest.mark.parametrize("generation", ["v6e", "h100"])
def test_the_delta_rule_with_a_decay_by_feature_compiles(generation):
    compiled(generation, linear_gradients(True, True), *linear_arrays(192, 2, 128))


@pytest.mark.parametrize("generation", ["v5e", "h100"])
def test_memory_of_linear_attention_is_linear_in_length(generation):
    """States between chunks, and on a GPU what is computed for all chunks at once."""
    of = lambda length: compiled(generation, linear_gradients(True, False), *linear_arrays(length, 4, 128))
    short, long = (of(length).memory_analysis().temp_size_in_bytes for length in (4096, 16384))
    print(f"{short:,} bytes at 4096, {long:,} at 16384")
    assert long <= 4.4 * max(short, 20e6)
    assert long <= 4 * 16384 * 20 * 128 * 4, "not more than twenty float32 arrays of keys"


def run_command(*arguments: str) -> subprocess.CompletedProcess:
    """In a process of its own: the compiler reads only once where schedules are to be written."""
    return subprocess.run([sys.executable, "-m", "attnjax.aot", *arguments], capture_output=True, text=True)


def test_the_command():
    done = run_command("--target", "v5p", "--queries", "2048", "--heads", "2")
    assert done.returncode == 0, done.stderr
    wanted = ("compiles for v5p", "temporary ", "bundles a tile of 512 x 512", "10 of 16 tiles")
    assert all(words in done.stdout for words in wanted), done.stdout


def test_the_command_for_a_gpu():
    done = run_command("--target", "h100", "--queries", "2048", "--heads", "2")
    assert done.returncode == 0, done.stderr
    wanted = ("compiles for h100", "temporary ", "fold_scaled_row", "spills 0 bytes of stores and 0 of loads")
    assert all(words in done.stdout for words in wanted), done.stdout


def test_the_command_says_what_is_wrong():
    done = run_command("--target", "v3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "want one of ['v4'" in done.stderr
    done = run_command("--target", "v4", "--width", "1024", "--block-q", "1024", "--block-kv", "1024")
    assert done.returncode == 1
    assert "v4 has 16 MiB" in done.stdout
