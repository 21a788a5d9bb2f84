"""Whether a training step fits on a slice that is not there, and how long it would take: compiled, not run.

    python -m experiments.pod.compile 7b --topology v5p:4x4x8 --meshes fsdp=128 fsdp=16,context=8

For each mesh: bytes on each chip by kind, whether they fit, what devices send each other, operations, and a bound on
the seconds of a step. Needs the extra `aot` (the compiler for TPUs) and no TPU. A compile of 7 billion parameters takes
minutes and about 2 GB of memory.
"""

import dataclasses
import functools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro

from experiments.pod.chips import CHIPS, Chip
from experiments.pod.config import Config, Mesh, mesh_sizes
from experiments.pod.configs import CONFIGS
from experiments.pod.data import Batch
from experiments.pod.hlo import collectives, largest
from experiments.pod.model import Decoder, flops_per_token

MARGIN = 0.95
"""Of a chip's memory, what a program may take: the rest is the runtime's."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compiled.

    Attributes:
        config: Name of a configuration.
        topology: A slice: generation:shape, such as v5p:4x4x8, v5e:16x16, v6e:16x16, v4:4x4x4.
        slices: How many of them, joined by a network; `data` is a multiple of it.
        meshes: One or more meshes, each as name=number of data, fsdp, context, tensor, separated by commas; what is not
            named is 1.
        length: Tokens of a sequence, in place of the configuration's.
        batch: Sequences of a step.
        layers: In place of the configuration's; memory and traffic are linear in it.
        mixer: What mixes tokens.
        remat: What layers keep.
        accumulate: Parts of a batch.
        sequence_parallel: How parts of a sequence attend.
        implementation: Of attention.
        results: A file that figures are added to, as JSON.
    """

    config: tyro.conf.Positional[Literal["tiny", "125m", "1b3", "7b", "70b"]]
    topology: str = "v5p:4x4x8"
    slices: int = 1
    meshes: tuple[str, ...] = ("fsdp=-1",)
    length: int | None = None
    batch: int | None = None
    layers: int | None = None
    mixer: tuple[str, ...] | None = None
    remat: Literal["full", "dots", "none"] = "full"
    accumulate: int = 1
    sequence_parallel: Literal["ring", "all_to_all"] = "ring"
    implementation: Literal["auto", "blocks", "pallas"] = "auto"
    results: Path | None = None

    def made(self, mesh: str) -> Config:
        """The configuration, with one of the meshes."""
        base = CONFIGS[self.config]
        sizes: dict[str, Any] = {"fsdp": 1} | mesh_sizes(mesh)
        given = lambda **values: {name: x for name, x in values.items() if x is not None}
        return dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, **given(layers=self.layers, mixer=self.mixer)),
            data=dataclasses.replace(base.data, **given(length=self.length, batch=self.batch)),
            mesh=Mesh(**sizes, sequence_parallel=self.sequence_parallel),
            training=dataclasses.replace(
                base.training,
                dtype="bfloat16",
                remat=self.remat,
                accumulate=self.accumulate,
                implementation=self.implementation,
            ),
        )


def devices_of(topology: str, slices: int = 1) -> list[Any]:
    """Described devices of a slice, or several.

    A 3-D slice of whole cubes of 4 x 4 x 4 chips is a torus, which the compiler must be told: without its wrap-around
    links it gathers parameters by sums of padded arrays, at twice the traffic.
    """
    from jax.experimental import topologies

    generation, shape = topology.split(":")
    sizes = [int(n) for n in shape.split("x")]
    options: dict[str, Any] = {} if slices == 1 else {"num_slices": slices}
    if len(sizes) == 3:
        options["wrap"] = (all(n % 4 == 0 for n in sizes),) * 3
    if generation == "v4":
        options |= {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1), "num_slices": slices}
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices)


def chip_of(topology: str) -> Chip:
    return CHIPS[topology.split(":")[0]]


def lower(config: Config, devices: Any) -> tuple[Any, Any]:
    """The step of a configuration on described devices, traced; and the shapes of its state."""
    from experiments.pod.train import initial, jitted, layout_of, optimizer_of, shardings_of, with_sharding

    layout = layout_of(config.mesh, devices)
    decoder, optimizer = Decoder(config, layout), optimizer_of(config.training)
    shardings = shardings_of(config, decoder, optimizer, layout)
    shapes = jax.eval_shape(functools.partial(initial, decoder, optimizer), jax.random.key(0))
    state = jax.tree.map(with_sharding, shapes, shardings)
    place, size = layout.sharding("batch", "sequence"), (config.data.batch, config.data.length)
    whole = jax.ShapeDtypeStruct(size, jnp.int32, sharding=place)
    batch = Batch(whole, whole, jax.ShapeDtypeStruct(size, jnp.float32, sharding=place), whole)
    return jitted(decoder, optimizer, config.training, shardings).lower(state, batch), shapes


def measured(config: Config, topology: str, slices: int = 1) -> dict[str, Any]:
    """Everything that is known of one mesh without a chip."""
    from pallas_kernels import compile_for
    from pallas_kernels._target import named

    chip, devices = chip_of(topology), devices_of(topology, slices)
    found: dict[str, Any] = {"devices": len(devices), "chips": len(devices) // chip.devices}
    begin = time.perf_counter()
    with compile_for(named(topology.split(":")[0].removeprefix("tpu"))):
        lowered, shapes = lower(config, devices)
        per_token = flops_per_token(config.model, shapes.params, config.data.length)
        flops = per_token * config.data.batch * config.data.length
        found |= {"model flops": flops, "compute seconds": flops / found["chips"] / chip.flops}
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "hbm" not in str(error).lower():
                raise
            wanted = re.search(r"\(([\d.]+[GM])\) exceeds available HBM \(([\d.]+[GM])\)", str(error))
            said = f"needs {wanted[1]} of {wanted[2]}" if wanted else str(error).splitlines()[0]
            return found | {"fits": False, "why": said, "compile seconds": time.perf_counter() - begin}
    memory, text = compiled.memory_analysis(), compiled.as_text()
    size, times = collectives(text)
    budget = MARGIN * chip.memory / chip.devices
    found |= {
        "compile seconds": time.perf_counter() - begin,
        "state bytes": memory.argument_size_in_bytes,
        "state bytes reused": memory.alias_size_in_bytes,
        "temporary bytes": memory.temp_size_in_bytes,
        "peak bytes": memory.peak_memory_in_bytes,
        "fits": memory.peak_memory_in_bytes <= budget,
        "received bytes": dict(size),
        "received times": dict(times),
    }
    if not found["fits"]:
        found["why"] = f"its largest arrays are {', '.join(kind for _, kind in largest(text, 4))}"
    seconds = wire_seconds(dict(size), chip)
    compute = found["compute seconds"] * (4 / 3 if config.training.remat == "full" else 1)
    slowest, all_in_turn = max(compute, *seconds.values(), 0.0), compute + sum(seconds.values())
    ideal = found["compute seconds"]
    return found | {
        "wire seconds": seconds,
        "step seconds": [slowest, all_in_turn],
        "MFU": [ideal / all_in_turn, ideal / slowest],
    }


def wire_seconds(size: dict[str, float], chip: Chip) -> dict[str, float]:
    """Seconds that a step's traffic takes, each kind alone.

    Gathers and scatters go both ways round every axis of the torus, sums take twice as long; a neighbor is reached over
    one link, one way; an exchange takes a quarter of a gather (jax-ml.github.io/scaling-book/sharding). Sums between
    slices are counted as if links joined them.
    """
    ring = chip.link * chip.axes
    speeds = {
        "all-gather": ring, "reduce-scatter": ring, "all-reduce": ring / 2, "all-to-all": 4 * ring,
        "collective-permute": chip.link / 2,
    }  # fmt: skip
    return {kind: n / speeds[kind] for kind, n in size.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """The figures of some meshes, as Markdown."""
    lines = [
        "| config | topology | mesh | T | batch | state, temporary, peak GiB | fits | received GB | step s | MFU |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        head = [row[name] for name in ("config", "topology", "mesh", "length", "batch")]
        if "peak bytes" not in row:
            lines.append("| " + " | ".join(map(str, [*head, "", f"**no**: {row['why']}", "", "", ""])) + " |")
            continue
        gib = ", ".join(f"{row[f'{name} bytes'] / 2**30:.2f}" for name in ("state", "temporary", "peak"))
        moved = ", ".join(f"{kind} {n / 1e9:.1f}" for kind, n in sorted(row["received bytes"].items()))
        fits = "yes" if row["fits"] else f"**no**: {row['why']}"
        low, high = row["step seconds"]
        worst, best = row["MFU"]
        lines.append(
            "| "
            + " | ".join(map(str, [*head, gib, fits, moved, f"{low:.2f} to {high:.2f}", f"{worst:.0%} to {best:.0%}"]))
            + " |"
        )
    return "\n".join(lines)


def main(plan: Plan) -> int:
    from pallas_kernels._topology import prepare

    prepare()
    rows = []
    for mesh in plan.meshes:
        config = plan.made(mesh)
        about = {
            "config": plan.config, "topology": plan.topology, "slices": plan.slices, "mesh": mesh,
            "length": config.data.length, "batch": config.data.batch, "layers": config.model.layers,
            "mixer": config.model.mixer, "remat": plan.remat, "sequence parallel": plan.sequence_parallel,
            "jax": jax.__version__,
        }  # fmt: skip
        rows.append(about | measured(config, plan.topology, plan.slices))
        print(json.dumps(rows[-1], indent=1), flush=True)
        if rows[-1].get("received times") and config.mesh.fsdp > 1 and not rows[-1]["received times"].get("all-gather"):
            print("warning: parameters are split, and nothing is gathered: is the slice described as a torus?")
    print(table(rows))
    if plan.results is not None:
        before = json.loads(plan.results.read_text()) if plan.results.exists() else []
        slices = lambda row: row.get("slices", 1)
        keys = ("config", "topology", "mesh", "length", "batch", "layers", "mixer", "remat", "sequence parallel")
        same = lambda a, b: all(json.dumps(a[k]) == json.dumps(b[k]) for k in keys) and slices(a) == slices(b)
        kept = [row for row in before if not any(same(row, new) for new in rows)]
        plan.results.write_text(json.dumps(kept + rows, indent=1) + "\n")
    return 0 if all(row["fits"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Plan, prog="experiments.pod.compile")))
