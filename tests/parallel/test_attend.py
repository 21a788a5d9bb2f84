"""Attention over devices gives what one device gives: every mask, score, normalizer and statistic, every derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attnjax import BlockSizes, attend, masks, normalizers, parallel, statistics
from attnjax.attention._component import aligned, leaves, replace_leaves
from tests.attention.cases import MASKS, NORMALIZERS, ROWS_ONLY, SCORES, Case, Sizes
from tests.attention.test_conformance import assert_near, derivatives, gradients
from tests.tolerances import assert_close

SIZES = [Sizes((2,), 64, 64, 8, 2, 4, 3), Sizes((), 32, 64, 8, 1, 3, 4), Sizes((2, 1), 64, 32, 8, 8, 4, 4)]
PLACEMENTS = [parallel.zigzag(4), parallel.contiguous(8), parallel.contiguous(2), parallel.zigzag(2)]
FORMS = {"ring": parallel.ring_attend, "all to all": parallel.all_to_all_attend}


@functools.cache
def layout_of(devices: int) -> parallel.Layout:
    """Eight devices: batch over those that the sequence leaves, two at most."""
    shape = {"data": min(2, 8 // devices), "sequence": devices}
    mesh = jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return parallel.layout(mesh, {"batch": "data", "sequence": "sequence"})


def placed(part, placement: parallel.Placement, q, k):
    """A mask or score whose arrays lie in a placement's order along queries and keys."""
    sizes = {"B": q.shape[:-3], "N": q.shape[-2:-1], "T": q.shape[-3:-2], "S": k.shape[-3:-2]}

    def place(leaf):
        x, letters = aligned(leaf, sizes)
        for axis, letter in enumerate(letters):
            if letter in ("T", "S") and x.shape[axis] > 1:
                x = placement.place(x, axis)
        return x

    return None if part is None else replace_leaves(part, [place(leaf) for leaf in leaves(part)])


def split(form: str, placement: parallel.Placement, q, k, v, **knobs):
    """A call over devices, of arrays in the order of the text."""
    axis = q.ndim - 3
    knobs |= {name: placed(knobs.get(name), placement, q, k) for name in ("mask", "score")}
    found = FORMS[form](
        *(placement.place(x, axis) for x in (q, k, v)),
        layout=layout_of(placement.devices), placement=placement, block_sizes=BlockSizes(8, 4), **knobs,
    )  # fmt: skip
    return jax.tree.map(lambda x: placement.restore(x, axis), found)


def quickly(function, *arguments):
    """The outputs of a function that is run once: its compilation, not optimized, is what takes time."""
    compiled = jax.jit(function).lower(*arguments).compile({"xla_backend_optimization_level": 0})
    return compiled(*arguments)


def cycle() -> list[tuple[Case, parallel.Placement]]:
    """Every mask, score and normalizer that streams, in a few combinations; neighborhoods want grids of their own."""
    every = [name for name in MASKS if not name.startswith("neighborhood")]
    names = [every, list(SCORES), [n for n in NORMALIZERS if n not in ROWS_ONLY]]
    return [
        (Case(*(each[i % len(each)] for each in names), SIZES[i % 3], BlockSizes(8, 4)), PLACEMENTS[i % 4])
        for i in range(max(map(len, names)))
    ]


CASES = cycle()


def test_the_cases_use_every_entry_that_streams():
    used = [{getattr(case, name) for case, _ in CASES} for name in ("mask", "score", "normalizer")]
    assert used[0] == {name for name in MASKS if not name.startswith("neighborhood")}
    assert used[1] == set(SCORES)
    assert used[2] == set(NORMALIZERS) - ROWS_ONLY


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("case", "placement"), CASES, ids=str)
def test_case(case, placement, form):
    """Values and gradients; of the ring also tangents and Hessian-vector products, for some."""
    floats, integers = case.draw()
    tangents = {name: x - floats[name] for name, x in case.draw(seed=1)[0].items()}
    cotangent = np.random.default_rng(2).standard_normal((*case.size.batch, case.size.t, case.size.n, case.size.v))

    def everything(floats, integers, tangents, cotangent):
        def call(where, floats):
            arrays = floats | integers
            q, k, v = (jnp.asarray(arrays[x]) for x in "qkv")
            if where is None:
                return attend(q, k, v, **case.knobs(arrays), implementation="dense")
            return split(where, placement, q, k, v, **case.knobs(arrays))

        which = derivatives if form == "ring" and CASES.index((case, placement)) % 3 == 0 else gradients
        return [which(functools.partial(call, where), floats, tangents, cotangent) for where in (form, None)]

    got, want = quickly(everything, floats, integers, tangents, cotangent)
    assert_close(got["value"], want["value"])
    for name, kind in (("gradient", "derivative"), ("hvp", "second")):
        if name in want:
            assert_near(got[name], want[name], kind)
    if "jvp" in want:
        assert_near({"jvp": got["jvp"]}, {"jvp": want["jvp"]}, "derivative")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS[:2], ids=str)
def test_statistics_and_their_gradients(form, placement):
    near = statistics.mass_on(masks.window(5) | masks.sinks(3), "near")
    wanted = ("logsumexp", "entropy", "max_logit", "participation_ratio", "key_mass", near)
    names = (*wanted[:-1], "near")
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 32, n, 4))) for n in (8, 2, 2))
    weights = [jnp.asarray(x) for x in rng.standard_normal((len(names), 2, 32, 8))]

    def loss(found):
        output, stats = found
        return output.sum() + sum((w * stats[name]).sum() for w, name in zip(weights, names, strict=True)), found

    def over_devices(arrays):
        return loss(split(form, placement, *arrays, mask=masks.causal(), stats=wanted))

    def alone(arrays):
        return loss(attend(*arrays, mask=masks.causal(), stats=wanted, implementation="dense"))

    both = lambda arrays: [jax.value_and_grad(f, has_aux=True)(arrays) for f in (over_devices, alone)]
    ((_, got), got_gradients), ((_, want), want_gradients) = quickly(both, (q, k, v))
    jax.tree.map(assert_close, got, want)
    jax.tree.map(lambda a, b: assert_close(a, b, kind="derivative"), got_gradients, want_gradients)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
def test_neighborhoods_of_images(form):
    mask = masks.neighborhood((8, 8), (3, 5), stride=(1, 2))
    q, k, v = (jnp.asarray(x) for x in np.random.default_rng(0).standard_normal((3, 64, 4, 4)))
    assert_close(split(form, PLACEMENTS[0], q, k, v, mask=mask), attend(q, k, v, mask=mask, implementation="dense"))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("placement", PLACEMENTS[:2], ids=str)
def test_own_verbs_need_not_commute(form, placement):
    """A fold whose order matters, a running sum that each key halves, is carried in the order of the text."""

    def lift(score, visible, v):
        ahead = jnp.cumsum(visible[:, ::-1], 1)[:, ::-1] - visible  # keys after this one, in the tile
        weight = jnp.where(visible, jnp.sin(score) * 0.5**ahead, 0)
        return {"kept": 0.5 ** visible.sum(1, dtype=score.dtype), "total": weight @ v}

    fold = normalizers.from_monoid(
        init=lambda rows, width, dtype: {"kept": jnp.ones(rows, dtype), "total": jnp.zeros((rows, width), dtype)},
        lift=lift,
        combine=lambda a, b: {"kept": a["kept"] * b["kept"], "total": a["total"] * b["kept"][:, None] + b["total"]},
        finalize=lambda state: state["total"],
    )
    arrays = [jnp.asarray(x) for x in np.random.default_rng(0).standard_normal((3, 2, 64, 8, 4))]
    knobs = {"mask": masks.causal() & masks.window(40), "normalizer": fold}
    cube = lambda call: lambda arrays: (call(*arrays) ** 3).sum()
    over = cube(lambda *x: split(form, placement, *x, **knobs))
    alone = cube(lambda *x: attend(*x, **knobs, implementation="dense"))
    got, want = quickly(lambda arrays: [jax.value_and_grad(f)(arrays) for f in (over, alone)], arrays)
    jax.tree.map(lambda a, b: assert_close(a, b, kind="derivative"), got, want)
