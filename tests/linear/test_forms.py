"""Every form of every kind of linear attention against the recurrence in NumPy, and against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import linear
from tests.linear.cases import CASES, Case
from tests.references import linear as reference
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("x64")

FORMS = [
    ("recurrent", 64),
    ("parallel", 64),
    ("scan", 64),
    ("chunked", 1),
    ("chunked", 7),
    ("chunked", 16),
    ("chunked", 64),
]
EXACT = 1e-10
QUICK = {"xla_backend_optimization_level": 0}
"""Programs that run once are not worth optimizing."""


def run(case: Case, arrays: dict, form: str, size: int, **more):
    static = {**case.knobs, "form": form, "chunk_size": size, "return_state": True}
    arrays = {name: jnp.asarray(x) for name, x in (arrays | more).items() if name != "state"}
    of = lambda arrays, state: linear.attend(**arrays, **static, state=state)
    return jax.jit(of, compiler_options=QUICK)(arrays, more.get("state"))


def true_state(state: linear.State, width: int) -> jax.Array:
    """Without scales and masses."""
    value = state.value[..., 0, :, :width]
    return value if state.log_scale is None else value * jnp.exp(state.log_scale)[..., None]


def assert_near(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=EXACT * max(1.0, float(np.max(np.abs(want)))))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_form_is_the_recurrence(case):
    """Outputs and last states, for an odd length, segments, and a sequence that ends early."""
    length = 45
    segments = np.sort(np.random.default_rng(1).integers(0, 4, (2, length)), axis=-1)
    more = {"segment_ids": segments, "lengths": np.array([31, length])}
    arrays = case.draw(length)
    want, last = reference.attend(**arrays, **case.knobs, **more)
    for form, size in FORMS if CASES.index(case) % 3 == 1 else FORMS[:3]:
        print(form, size)
        got, state = run(case, arrays, form, size, **more)
        assert_near(got, want)
        assert_near(true_state(state, 3), last)


@pytest.mark.parametrize("case", CASES[1::2], ids=str)
def test_a_state_is_where_tokens_go_on(case):
    """Cut anywhere, the second part continues the first, in whatever form either is computed."""
    arrays = case.draw(40)
    whole, last = run(case, arrays, "recurrent", 1)
    for cut, before, form in ((13, "recurrent", "chunked"), (32, "chunked", "scan")):
        first, rest = ({name: x[:, part] for name, x in arrays.items()} for part in (slice(cut), slice(cut, None)))
        out, state = run(case, first, before, 16)
        more, state = run(case, rest, form, 16, state=state)
        assert_near(jnp.concatenate([out, more], 1), whole)
        assert_near(true_state(state, 3), true_state(last, 3))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_of_every_form_are_the_same(case):
    """With respect to everything, the first state too, from outputs and the last state; and forward mode."""
    arrays = {name: jnp.asarray(x) for name, x in case.draw(23).items()}
    _, state = run(case, case.draw(5, seed=3), "recurrent", 1)
    rng = np.random.default_rng(2)
    weights = jnp.asarray(rng.standard_normal((2, 23, 4, 3)))
    along = {name: jnp.asarray(rng.standard_normal(x.shape)) for name, x in arrays.items()}

    def of(form, size):
        def loss(arrays, value):
            given = linear.State(value, state.log_scale)
            out, last = linear.attend(
                **arrays, **case.knobs, state=given, form=form, chunk_size=size, return_state=True
            )
            return (out * weights).sum() + (true_state(last, 3) ** 2).sum()

        @functools.partial(jax.jit, compiler_options=QUICK)
        def both(arrays, value):
            gradient = jax.grad(loss, (0, 1))(arrays, value)
            return gradient, jax.jvp(lambda x: loss(x, value), (arrays,), (along,))[1]

        return both(arrays, state.value)

    want = of("recurrent", 1)
    for form, size in (("scan", 1), ("chunked", 7)):
        jax.tree.map(assert_near, of(form, size), want)


def test_vmap_and_single_precision_inputs(getkey):
    """An axis more is an axis of the batch; 16-bit inputs are summed in float32."""
    q, k, v = jax.random.normal(getkey(), (3, 2, 3, 50, 2, 8), jnp.float32)
    decay = -jnp.abs(jax.random.normal(getkey(), (2, 3, 50, 2), jnp.float32))
    of = lambda q, k, v, decay: linear.attend(q, k, v, log_decay=decay)
    assert_close(jax.vmap(of)(q, k, v, decay), of(q, k, v, decay), dtype="float32")
    short = of(*(x.astype(jnp.bfloat16) for x in (q, k, v)), decay)
    assert short.dtype == jnp.bfloat16
    rounded = of(*(x.astype(jnp.bfloat16).astype(jnp.float32) for x in (q, k, v)), decay)
    assert_close(short, rounded, dtype="bfloat16")
