"""Bad input: each message names the argument, what was got and what is wanted."""

import jax.numpy as jnp
import pytest

from attnjax import linear

pytestmark = pytest.mark.usefixtures("without_run_time_types")

X = jnp.ones((2, 10, 4, 8))
K = jnp.ones((2, 10, 2, 8))
NUMBERS = jnp.ones((2, 10, 2))
STATE = linear.State(jnp.zeros((2, 2, 1, 8, 8)))


@pytest.mark.parametrize(
    ("knobs", "kind", "words"),
    [
        ({"chunk_size": 0}, ValueError, ["chunk_size: got 0", "positive int"]),
        ({"chunk_size": 2.5}, ValueError, ["chunk_size: got 2.5"]),
        ({"form": "fast"}, ValueError, ["form: got 'fast'", "'chunked'"]),
        ({"normalize": "all"}, ValueError, ["normalize: got 'all'", "'row'"]),
        ({"log_decay": NUMBERS}, ValueError, ["log_decay: got 1.0, want at most 0", "log of a decay"]),
        ({"log_decay": -NUMBERS[0]}, ValueError, ["log_decay: got shape (10, 2)", "[*B, T, K]", "[2, 10, 2]"]),
        ({"log_decay": -jnp.ones((2, 10, 2, 5))}, ValueError, ["log_decay: got shape (2, 10, 2, 5)", "[2, 10, 2, 8]"]),
        ({"log_decay": -jnp.ones((2, 10, 2), int)}, TypeError, ["log_decay: got int32", "floating-point"]),
        ({"beta": -NUMBERS}, ValueError, ["beta: got -1.0, want at least 0"]),
        ({"beta": NUMBERS, "normalize": "row"}, ValueError, ["beta: want neither normalize nor log_write"]),
        ({"beta": NUMBERS, "causal": False}, ValueError, ["causal=False", "causal only"]),
        ({"state": STATE, "causal": False}, ValueError, ["causal=False", "what came before, not all"]),
        (
            {"state": linear.State(STATE.value[..., :7])},
            ValueError,
            ["state: got value of shape (2, 2, 1, 8, 7)", "[2, 2, 1, 8, 8]"],
        ),
        ({"state": STATE, "normalize": "row"}, ValueError, ["state: got value", "adds a column"]),
        ({"state": STATE, "log_write": NUMBERS}, ValueError, ["state: got log_scale of shape None, want (2, 2, 8)"]),
        ({"state": jnp.zeros(3)}, ValueError, ["state: got", "want the State that the same call returned"]),
        ({"segment_ids": jnp.zeros((2, 9), int)}, ValueError, ["segment_ids: got shape (2, 9)", "[2, 10]"]),
        ({"segment_ids": jnp.zeros((2, 10))}, TypeError, ["segment_ids: got float32, want integers"]),
        ({"lengths": jnp.zeros((3,), int)}, ValueError, ["lengths: got shape (3,)", "here [2]"]),
    ],
)
def test_message(knobs, kind, words):
    with pytest.raises(kind) as caught:
        linear.attend(X, K, K, **knobs)
    assert all(word in str(caught.value) for word in words), caught.value


def test_messages_about_shapes_and_mechanisms():
    with pytest.raises(ValueError, match="k: got 9 tokens, want q's, T=10"):
        linear.attend(X, K[:, :9], K[:, :9])
    with pytest.raises(ValueError, match="K=2 key/value heads|divisor"):
        linear.attend(X[:, :, :3], K, K)
    with pytest.raises(ValueError, match="log_decay: got shape"):
        linear.retention(X, K, K, log_decay=-jnp.ones(3))
    with pytest.raises(ValueError, match="at least 2 layers"):
        linear.lightning_decay(4, 0, 1)
    with pytest.raises(ValueError, match="rate: got -1.0, want at least 0"):
        linear.titans(X, K, K, -NUMBERS)
    with pytest.raises(ValueError, match="N=4 readers for K=2 heads"):
        linear.state_space(X, K, K, NUMBERS, -jnp.ones(2), jnp.ones(2))
    with pytest.raises(TypeError, match="unexpected keyword"):
        linear.retention(X, K, K, chunks=3)
