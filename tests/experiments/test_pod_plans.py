"""A training step compiled for slices that are not there: python -m pytest -m aot tests/experiments."""

import re

import jax
import jax.numpy as jnp
import pytest

from attnjax import masks, parallel
from experiments.framework.context import UsageError
from experiments.pod import hlo
from experiments.pod.compile import Plan, devices_of, measured, table
from experiments.pod.config import Mesh
from experiments.pod.train import layout_of
from pallas_kernels import compile_for
from pallas_kernels._target import named
from pallas_kernels._topology import prepare

pytestmark = pytest.mark.aot


@pytest.mark.parametrize(("topology", "mesh"), [("v5p:4x4x8", "fsdp=16,context=8"), ("v5e:16x16", "fsdp=32,context=8")])
def test_a_step_compiles_for_a_pod(topology, mesh):
    """Every attention in kernels; the state is reused; parameters are gathered, keys and values sent round."""
    prepare()
    plan = Plan("125m", topology, (mesh,), length=2048, batch=32, layers=2, implementation="pallas")
    found = measured(plan.made(mesh), topology)
    assert found["fits"]
    assert found["state bytes reused"] > 0.9 * found["state bytes"]
    assert found["received times"]["all-gather"] > 0
    assert found["received times"]["collective-permute"] > 0
    low, high = found["step seconds"]
    assert 0 < low <= high
    row = {"config": "125m", "topology": topology, "mesh": mesh, "length": 2048, "batch": 32, **found}
    assert table([row]).count("\n") == 2


def test_a_step_compiles_for_two_slices():
    """Copies of the model on slices that only a network joins: parameters are gathered within each."""
    prepare()
    devices = devices_of("v5e:4x4", 2)
    plan = Plan("tiny", "v5e:2x2", batch=8)
    assert measured(plan.made("data=2,fsdp=2,context=2"), "v5e:2x2", 2)["fits"]
    mesh = layout_of(Mesh(data=2, fsdp=4, context=4), devices).mesh
    assert [{d.slice_index for d in half.flat} for half in mesh.devices] == [{0}, {1}]
    with pytest.raises(UsageError, match="data=1 for 2 slices"):
        layout_of(Mesh(fsdp=32), devices)


def test_keys_travel_while_a_ring_computes():
    """In the compiler's schedule a hop's transfers begin before its kernel and end after it (large ones: the compiler
    does not care for those that are over in no time)."""
    prepare()
    layout = layout_of(Mesh(fsdp=1, context=4), devices_of("v5p:2x2x1"))
    x = jax.ShapeDtypeStruct((1, 32768, 32, 128), jnp.bfloat16, sharding=layout.sharding("batch", "sequence"))
    knobs = {"layout": layout, "placement": parallel.zigzag(4), "mask": masks.causal(), "implementation": "pallas"}
    call = lambda q, k, v: parallel.ring_attend(q, k, v, **knobs)
    with compile_for(named("v5p")):
        text = jax.jit(call).lower(x, x, x).compile().as_text()
    computations, _ = hlo.parse(text)
    (body,) = (b for b in computations.values() if any(i.operation == "collective-permute-start" for i in b))
    names = {"collective-permute-start": "S", "collective-permute-done": "D"}
    kernel = lambda i: i.operation == "custom-call" and "tpu_custom_call" in i.rest
    schedule = "".join("K" if kernel(i) else names.get(i.operation, "") for i in body)
    print(schedule)
    assert re.search(r"SS.*K.*DD", schedule), "keys and values; positions are a few bytes"
