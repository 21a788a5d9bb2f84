"""Train a decoder with any attention, on one device or on a pod. Read it from top to bottom.

    python -m experiments.pod.train tiny                            on this machine
    python -m experiments.pod.train 7b --mesh.context 8             on every host of a slice

Started again with the same command it goes on from its last checkpoint, on any number of devices. It ends with code 0
when all steps are done, with 75 when it was told that its machine will be taken away: start it again then.
"""

import dataclasses
import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType

from attnjax import parallel
from experiments.framework.context import UsageError
from experiments.pod.checkpoint import Checkpoints, Unwritten
from experiments.pod.config import Cluster, Config, Mesh, Training
from experiments.pod.data import Batch, Sequences, batches, fingerprint, load
from experiments.pod.metrics import Metrics
from experiments.pod.model import Decoder, count, flops_per_token, partition

PREEMPTED = 75
"""The exit code that says: start me again."""
MISTAKEN = 2
"""The exit code of a mistake in the command or the data, which does not mend itself."""


class State(NamedTuple):
    """Of training.

    Attributes:
        step: How many have been taken.
        params: Float32.
        optimizer: Of optax.
    """

    step: Any
    params: Any
    optimizer: Any


def main(config: Config) -> int:
    # 1. Processes, devices, and which axis of which array is split over them.
    start(config.cluster)
    agree("command", repr(dataclasses.replace(config, cluster=Cluster())))
    layout = layout_of(config.mesh)
    decoder, optimizer = Decoder(config, layout), optimizer_of(config.training)
    check(config, layout, decoder)

    # 2. The state: made where it lives, no device ever holds all of it; or read from the last checkpoint.
    shardings = shardings_of(config, decoder, optimizer, layout)
    checkpoints = Checkpoints(config)
    make = functools.partial(initial, decoder, optimizer)
    like = jax.tree.map(with_sharding, jax.eval_shape(make, jax.random.key(config.training.seed)), shardings)
    found = checkpoints.restore(like)
    if found is None:
        state = jax.jit(make, out_shardings=shardings)(jax.random.key(config.training.seed))
    else:
        state = found[1]
    first = 0 if found is None else found[0]

    # 3. The data, from the step that comes next.
    tokens = load(config.data)
    agree("data", fingerprint(tokens))
    sequences = Sequences(tokens, config.data, decoder.placement, config.model.vocab)
    place = layout.sharding("batch", "sequence")
    reader = batches(config.data, sequences, place, first)

    # 4. One step: gradients of a batch in parts, and the optimizer. The old state's memory becomes the new one's.
    if config.training.pmap:
        step = pmapped(config, optimizer)
    else:
        step = jitted(decoder, optimizer, config.training, shardings)

    # 5. The loop.
    flops = flops_per_token(config.model, like.params, config.data.length) * config.data.batch * config.data.length
    metrics = Metrics(config, parameters=count(like.params), flops=flops, first=first)
    _, done = loop(config, step, state, reader, checkpoints, metrics, first, config.training.steps)
    checkpoints.close()
    metrics.close()
    return 0 if done else PREEMPTED


def loop(
    config: Config,
    step: Callable[[State, Batch], tuple[State, Any]],
    state: State,
    reader: Iterator[Batch],
    checkpoints: Checkpoints,
    metrics: Metrics,
    first: int,
    last: int,
) -> tuple[State, bool]:
    """Steps from the first up to the last; the state, and whether all were taken.

    Nothing in it waits for the devices, but to log, to save, and at the end.
    """
    for number in range(first, last):
        metrics.profile(number)
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            state, report = step(state, next(reader))
        metrics.step(number + 1, report)
        preempted = checkpoints.preempted(number + 1)
        checkpoints.save(number + 1, state, now=preempted or number + 1 == config.training.steps)
        if preempted:
            return state, False
    return state, True


# --- 1. processes and devices ---------------------------------------------------------------------------------------


def start(cluster: Cluster) -> None:
    """Let the processes of a job find each other; before anything else asks JAX for a device."""
    if cluster.cpu_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", cluster.cpu_devices)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = cluster.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    number = lambda given, name: int(os.environ[name]) if given is None and name in os.environ else given
    wait = cluster.heartbeat
    limits: dict[str, Any] = {"heartbeat_timeout_seconds": wait, "shutdown_timeout_seconds": wait}
    if address is not None:
        jax.distributed.initialize(
            address,
            number(cluster.processes, "JAX_NUM_PROCESSES"),
            number(cluster.process, "JAX_PROCESS_ID"),
            **limits,
        )
    elif _many_hosts():
        jax.distributed.initialize(**limits)


def _many_hosts() -> bool:
    """Whether the environment is that of a job of several processes, which JAX can read itself."""
    tasks = (os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    return any(int(n) > 1 for n in tasks) or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def agree(name: str, mine: str) -> None:
    """See that all processes have the same of something; they would wait for each other, or learn nonsense.

    Raises:
        UsageError: They have not; in all processes.
    """
    own = np.frombuffer(hashlib.sha256(mine.encode()).digest()[:8], np.uint32)
    every = np.reshape(multihost_utils.process_allgather(own), (-1, 2))
    others = [rank for rank, found in enumerate(every) if not np.array_equal(found, every[0])]
    if others:
        raise UsageError(
            f"{name}: processes {others} have another than process 0; process {jax.process_index()}: {mine}"
        )


def layout_of(mesh: Mesh, devices: Any = None) -> parallel.Layout:
    """The mesh, and what is split over its axes."""
    total = jax.device_count() if devices is None else len(devices)
    sizes = {name: getattr(mesh, name) for name in ("data", "fsdp", "context", "tensor")}
    known = int(np.prod([n for n in sizes.values() if n != -1]))
    sizes = {name: total // max(known, 1) if n == -1 else n for name, n in sizes.items()}
    if int(np.prod(list(sizes.values()))) != total:
        raise UsageError(f"mesh: got {sizes} for {total} devices, want sizes whose product is their number")
    made = _mesh(sizes, jax.devices() if devices is None else devices)
    rules = {
        "batch": ("data", "fsdp"), "sequence": "context", "heads": "tensor",
        # Devices that share a sequence hold parts of the parameters, as those that share a batch do.
        "embed": ("fsdp", "context"), "mlp": "tensor", "vocab": "tensor",
    }  # fmt: skip
    return parallel.layout(made, rules)


def _mesh(sizes: dict[str, int], devices: Any) -> jax.sharding.Mesh:
    """Neighbors on a mesh are joined by links; slices, which are not, lie along `data`."""
    kinds = (AxisType.Auto,) * len(sizes)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=devices)
    if sizes["data"] % slices:
        raise UsageError(
            f"mesh: got data={sizes['data']} for {slices} slices, want a multiple: only a network joins them"
        )
    within = {**sizes, "data": sizes["data"] // slices}
    array = mesh_utils.create_hybrid_device_mesh(
        tuple(within.values()), (slices, 1, 1, 1), devices, allow_split_physical_axes=True
    )
    return jax.sharding.Mesh(array, tuple(sizes), axis_types=kinds)


def check(config: Config, layout: parallel.Layout, decoder: Decoder) -> None:
    """See that sizes fit the mesh and that the model can be traced, before anything is made.

    Raises:
        UsageError: What does not fit, and what would.
    """
    for name, value in (
        ("data.batch", config.data.batch), ("training.steps", config.training.steps),
        ("training.accumulate", config.training.accumulate), ("output.save_every", config.output.save_every),
        ("output.log_every", config.output.log_every), ("output.keep", config.output.keep),
    ):  # fmt: skip
        if value < 1:
            raise UsageError(f"{name}={value}: want at least 1")
    parts, accumulate, pieces = layout.size("batch"), config.training.accumulate, decoder.placement.pieces
    if config.data.batch % (parts * accumulate):
        raise UsageError(
            f"data.batch={config.data.batch}: want a multiple of {parts * accumulate}, for {parts} devices along "
            f"data and fsdp and training.accumulate={accumulate}"
        )
    if config.data.length % pieces:
        raise UsageError(
            f"data.length={config.data.length}: want a multiple of {pieces}, for {decoder.placement.devices} devices "
            "along context" + " that hold two pieces each" * decoder.placement.folded
        )
    tokens = jax.ShapeDtypeStruct((config.data.batch // accumulate, config.data.length), jnp.int32)
    try:
        jax.eval_shape(decoder.logits, jax.eval_shape(decoder.init, jax.random.key(0)), tokens, tokens)
    except (ValueError, NotImplementedError) as error:
        raise UsageError(f"this model on this mesh: {error}") from error


# --- 2. the state ---------------------------------------------------------------------------------------------------


def optimizer_of(training: Training) -> optax.GradientTransformation:
    """AdamW with a clipped gradient, warm-up and cosine decay; vectors are not decayed."""
    warmup = min(training.warmup, max(1, training.steps - 1))
    rate = optax.warmup_cosine_decay_schedule(0.0, training.rate, warmup, training.steps, training.rate / 10)
    matrices = lambda params: jax.tree_util.tree_map_with_path(
        lambda path, x: x.ndim - ("blocks" in jax.tree_util.keystr(path)) > 1, params
    )
    return optax.chain(
        optax.clip_by_global_norm(training.clip),
        optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=training.weight_decay, mask=matrices),
    )


def initial(decoder: Decoder, optimizer: optax.GradientTransformation, key: jax.Array) -> State:
    params = decoder.init(key)
    return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def shardings_of(
    config: Config, decoder: Decoder, optimizer: optax.GradientTransformation, layout: parallel.Layout
) -> State:
    """Where every array of the state lives; what the optimizer keeps of a parameter lives where that does."""
    shapes = jax.eval_shape(functools.partial(initial, decoder, optimizer), jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(lambda p, x: partition(p, x.shape, config.model, layout), shapes.params)
    kept = optax.tree_map_params(
        optimizer, lambda _, place: place, shapes.optimizer, params, transform_non_params=lambda _: layout.sharding()
    )
    return State(layout.sharding(), params, kept)


def with_sharding(x: Any, place: Any) -> jax.ShapeDtypeStruct:
    """The shape and the type of an array, and where it lives."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


# --- 4. the step ----------------------------------------------------------------------------------------------------


def loss_of(decoder: Decoder, dtype: Any, params: Any, batch: Batch) -> jax.Array:
    """Sum over tokens of ``-log p(target)``, in float32."""
    narrow = jax.tree.map(lambda x: x.astype(dtype), params)
    logits = decoder.logits(narrow, batch.tokens, batch.segments).astype(jnp.float32)
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets) * batch.weights)


def gradients(decoder: Decoder, training: Training, params: Any, batch: Batch) -> tuple[Any, jax.Array, jax.Array]:
    """Sums over the batch: gradients, losses, weights. A part of the batch after another."""
    parts = training.accumulate
    evaluate = jax.value_and_grad(functools.partial(loss_of, decoder, training.dtype))
    if parts == 1:
        loss, found = evaluate(params, batch)
        return found, loss, batch.weights.sum()
    # Every part takes sequences of every device: row r belongs to part r mod parts.
    cut = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, x.shape[-1]), 0, 1), batch)

    def add(total: tuple[Any, jax.Array], part: Batch) -> tuple[Any, None]:
        loss, found = evaluate(params, part)
        return (jax.tree.map(jnp.add, total[0], found), total[1] + loss), None

    nothing = (jax.tree.map(jnp.zeros_like, params), jnp.zeros(()))
    (found, loss), _ = jax.lax.scan(add, nothing, cut)
    return found, loss, batch.weights.sum()


def train_step(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    training: Training,
    state: State,
    batch: Batch,
    total: Callable[[Any], Any] = lambda x: x,
) -> tuple[State, dict[str, jax.Array]]:
    """The next state, and what to report of this one. `total` adds up what devices under `jax.pmap` have found."""
    found, loss, weight = total(gradients(decoder, training, state.params, batch))
    mean = jax.tree.map(lambda x: x / weight, found)
    updates, kept = optimizer.update(mean, state.optimizer, state.params)
    report = {"loss": loss / weight, "gradient norm": optax.tree.norm(mean)}
    return State(state.step + 1, optax.apply_updates(state.params, updates), kept), report


def jitted(decoder: Decoder, optimizer: optax.GradientTransformation, training: Training, shardings: State) -> Any:
    """The step, compiled for the mesh that the state is split over."""
    step = functools.partial(train_step, decoder, optimizer, training)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, shardings.step))


def pmapped(config: Config, optimizer: optax.GradientTransformation) -> Callable[[State, Batch], Any]:
    """The same step under `jax.pmap`: every device has the whole state and a part of the batch."""
    devices = jax.local_device_count()
    mesh = config.mesh
    if jax.process_count() > 1 or (mesh.fsdp, mesh.context, mesh.tensor) != (1, 1, 1):
        raise UsageError("pmap: want one process, and data parallelism alone (--mesh.data -1 --mesh.fsdp 1)")
    decoder = Decoder(config, None)
    add_up = functools.partial(jax.lax.psum, axis_name="data")
    step = functools.partial(train_step, decoder, optimizer, config.training, total=add_up)
    run = jax.pmap(step, "data", in_axes=(None, 0), out_axes=None)
    return lambda state, batch: run(state, jax.tree.map(lambda x: x.reshape(devices, -1, x.shape[-1]), batch))


if __name__ == "__main__":
    import tyro

    from experiments.pod.configs import CONFIGS

    choices = {
        name: (f"{config.model.layers} layers of {config.model.width}", config) for name, config in CONFIGS.items()
    }
    try:
        code = main(tyro.extras.overridable_config_cli(choices, prog="experiments.pod.train"))
    except (UsageError, Unwritten) as error:
        sys.stderr.write(f"\nerror: {error}\n")  # threads of a checkpoint may be in the middle of a line
        code = MISTAKEN if isinstance(error, UsageError) else 1
    sys.exit(code)
