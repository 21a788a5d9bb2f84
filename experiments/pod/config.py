"""What a training run is: frozen dataclasses, from which the command line is made."""

import dataclasses
from pathlib import Path
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Model:
    """A pre-norm decoder.

    Attributes:
        vocab: number of tokens.
        width: D, of the residual stream.
        layers: L.
        heads: N, of queries.
        kv_heads: K, of keys and values; linear-time mechanisms have N of them.
        head_dim: H.
        mlp: hidden width of the gated MLP.
        mixer: "softmax", or a mechanism of `attnjax.nn.LinearAttention`; of several, layer i has number i modulo their
            number (a hybrid).
        window: how many tokens before its own a query of softmax attention sees; None for all.
        rotary_base: of the rotary encoding.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    mixer: tuple[str, ...] = ("softmax",)
    window: int | None = None
    rotary_base: float = 10_000.0


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices each kind of parallelism takes; one of them may be -1, for all that are left.

    Attributes:
        data: copies of the model, each with a part of the batch.
        fsdp: parts of the batch, and of the parameters, which are gathered layer by layer.
        context: parts of every sequence, and of the parameters.
        tensor: parts of the heads and of the MLP.
        sequence_parallel: how parts of a sequence attend: "ring" passes keys and values on, "all_to_all" exchanges
            tokens for heads.
        zigzag: give each part of a sequence an early and a late piece, so that causal work is even.
    """

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1
    sequence_parallel: Literal["ring", "all_to_all"] = "ring"
    zigzag: bool = True


def mesh_sizes(text: str) -> dict[str, int]:
    """Sizes of a mesh's axes from a text such as fsdp=16,context=8."""
    return {name: int(n) for name, n in (part.split("=") for part in text.split(","))}


@dataclasses.dataclass(frozen=True)
class Data:
    """What is read.

    Attributes:
        path: a file of token numbers (.npy, of any integer type), memory-mapped; None for the bytes of Python's
            standard library.
        document_end: the token that ends a document; those after it do not see those before it.
        length: T, tokens of a sequence.
        batch: sequences of a step, over all devices.
        seed: of the order of sequences.
        threads: that read ahead on each host.
    """

    path: Path | None = None
    document_end: int | None = 0
    length: int = 2048
    batch: int = 256
    seed: int = 0
    threads: int = 4


@dataclasses.dataclass(frozen=True)
class Training:
    """How it is trained.

    Attributes:
        steps: of the whole run.
        rate: greatest learning rate, after `warmup` steps; it falls to a tenth by a cosine.
        warmup: steps.
        weight_decay: of matrices.
        clip: greatest norm of the gradient.
        accumulate: parts of a batch whose gradients are added up, one after another.
        remat: what a layer keeps for its backward pass: nothing but its input, its matrix products, or everything.
        dtype: of the computation; parameters and optimizer are float32.
        implementation: of attention on each device; see `attnjax.attend`.
        pmap: run the step under `jax.pmap`, for data parallelism alone.
        seed: of the initial parameters.
    """

    steps: int = 10_000
    rate: float = 3e-4
    warmup: int = 500
    weight_decay: float = 0.1
    clip: float = 1.0
    accumulate: int = 1
    remat: Literal["full", "dots", "none"] = "full"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    implementation: Literal["auto", "blocks", "pallas"] = "auto"
    pmap: bool = False
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Output:
    """What is written.

    Attributes:
        folder: of metrics and checkpoints; on a pod one that all hosts see (gs://...).
        save_every: steps between checkpoints.
        keep: how many checkpoints remain.
        log_every: steps between two looks at the metrics; in between nothing waits for the devices.
        tensorboard: also write scalars for TensorBoard.
        profile: the first and the last step of a profile, or None.
    """

    folder: str = "runs/pod"
    save_every: int = 500
    keep: int = 3
    log_every: int = 10
    tensorboard: bool = True
    profile: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Cluster:
    """How processes find each other. On TPU slices, Slurm and Open MPI all of it is found in the environment.

    Attributes:
        coordinator: address:port of process 0; else the variable JAX_COORDINATOR_ADDRESS.
        processes: how many; else JAX_NUM_PROCESSES.
        process: which of them this is; else JAX_PROCESS_ID.
        heartbeat: seconds without a sign of life after which a process counts as dead, and all others end.
        cpu_devices: simulate so many devices on the CPU of each process.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    heartbeat: int = 30
    cpu_devices: int | None = None


@dataclasses.dataclass(frozen=True)
class Config:
    """A run."""

    model: Model
    mesh: Mesh = Mesh()
    data: Data = Data()
    training: Training = Training()
    output: Output = Output()
    cluster: Cluster = Cluster()
