"""A step on paper: memory of a chip, seconds of operations and of each kind of traffic, for slices of any size.

    python -m experiments.pod.estimate 70b v5p data=1,fsdp=512,context=2,tensor=4 --length 8192 --tokens 4194304

What `compile.py` reads from a program, by formulas: full rematerialization, bfloat16 traffic, a float32 state.
"""

import dataclasses
import functools
import sys
from typing import Any, Literal

import jax
import tyro

from experiments.pod.chips import CHIPS
from experiments.pod.config import mesh_sizes
from experiments.pod.configs import CONFIGS
from experiments.pod.model import Decoder, count, flops_per_token


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one chip; bytes, and seconds of a step.

    Attributes:
        chips: How many there are.
        state: Parameters and optimizer, `12 P / (fsdp context tensor)`.
        inputs: What layers keep, `2 L D` for each of its tokens.
        logits: And their gradient, float32, `8 V / tensor` for each.
        compute: Of the model's operations at peak; a third more is computed twice.
        fsdp: Parameters gathered twice, gradients scattered: `6 P / tensor` bytes round all axes of the torus.
        tensor: Six sums of the activations of a layer, `2 D` bytes for each token, over one axis.
        ring: Keys and values three times around, their gradients once, one way over one link.
    """

    chips: int
    state: float
    inputs: float
    logits: float
    compute: float
    fsdp: float
    tensor: float
    ring: float

    @property
    def mfu(self) -> tuple[float, float]:
        """If nothing overlaps, and if everything does."""
        busy = 4 / 3 * self.compute
        traffic = (self.fsdp, self.tensor, self.ring)
        return self.compute / (busy + sum(traffic)), self.compute / max(busy, *traffic)


@functools.cache
def _shapes(config: str) -> Any:
    return jax.eval_shape(Decoder(CONFIGS[config], None).init, jax.random.key(0))


def estimate(config: str, chip: str, mesh: dict[str, int], length: int, tokens: int) -> Estimate:
    """The step of a configuration.

    Args:
        config: Its name.
        chip: A name in `CHIPS`.
        mesh: Sizes of data, fsdp, context and tensor; 1 where not named.
        length: Tokens of a sequence.
        tokens: Of a step.
    """
    model, hardware, params = CONFIGS[config].model, CHIPS[chip], _shapes(config)
    data, fsdp, context, tensor = (mesh.get(name, 1) for name in ("data", "fsdp", "context", "tensor"))
    chips, weights = data * fsdp * context * tensor, count(params)
    own = tokens / (data * fsdp * context)  # tokens that a chip's group of `tensor` shares
    ring_bytes = 4 * 3 * (context - 1) + 8 * context if context > 1 else 0
    hops = own * model.layers * model.kv_heads * model.head_dim / tensor * ring_bytes
    return Estimate(
        chips=chips,
        state=12 * weights / (fsdp * context * tensor),
        inputs=2 * model.layers * model.width * own,
        logits=8 * model.vocab / tensor * own,
        compute=flops_per_token(model, params, length) * tokens / chips / hardware.flops,
        fsdp=6 * weights / tensor / (hardware.link * hardware.axes) if fsdp * context > 1 else 0.0,
        tensor=6 * model.layers * 2 * 2 * model.width * own / hardware.link if tensor > 1 else 0.0,
        ring=hops / (hardware.link / 2),
    )


def row(config: str, chip: str, mesh: dict[str, int], length: int, tokens: int) -> str:
    """A line of a Markdown table."""
    found = estimate(config, chip, mesh, length, tokens)
    memory = " / ".join(f"{x / 1e9:.2f}" for x in (found.state, found.inputs, found.logits))
    seconds = " / ".join(f"{x:.2f}" for x in (found.compute, found.fsdp, found.tensor, found.ring))
    shape = " x ".join(str(mesh.get(name, 1)) for name in ("data", "fsdp", "context", "tensor"))
    low, high = found.mfu
    cells = [config, f"{found.chips:,} {chip}", shape, f"{length:,}", f"{tokens / 1e6:.2f} M", memory, seconds]
    return "| " + " | ".join([*cells, f"{low:.0%} to {high:.0%}"]) + " |"


HEAD = (
    "| config | chips | data x fsdp x context x tensor | T | tokens | state / inputs / logits, GB | "
    "compute / fsdp / tensor / ring, s | MFU |\n|---|---|---|---|---|---|---|---|"
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What is estimated.

    Attributes:
        config: Name of a configuration.
        chip: Generation of the chips.
        meshes: As `fsdp=512,tensor=4`.
        length: Tokens of a sequence.
        tokens: Of a step.
    """

    config: tyro.conf.Positional[Literal["tiny", "125m", "1b3", "7b", "70b"]]
    chip: tyro.conf.Positional[Literal["v4", "v5e", "v5p", "v6e", "tpu7x"]]
    meshes: tyro.conf.Positional[tuple[str, ...]]
    length: int = 8192
    tokens: int = 2**22


if __name__ == "__main__":
    given = tyro.cli(Arguments, prog="experiments.pod.estimate")
    print(HEAD)
    for text in given.meshes:
        print(row(given.config, given.chip, mesh_sizes(text), given.length, given.tokens))
    sys.exit(0)
