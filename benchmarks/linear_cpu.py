"""Linear attention on a CPU: its forms beside each other, beside softmax attention, and beside plain torch.

Run it alone on the machine:

    python -m benchmarks.linear_cpu --out runs/linear_cpu.json
"""

import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from attnjax import attend, linear, masks
from benchmarks.measuring import WrongValues, alternate, cores, environment, relative_error, save

TOLERANCE = 1e-4
"""Relative RMS error of float32 outputs."""

KINDS = ("linear", "retention", "gated", "delta")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        quick: tiny sizes: shows that everything runs, its times mean nothing.
        out: where to write the figures as JSON.
        kinds: of linear attention.
        heads: N.
        width: H = V.
        length: T at which forms, softmax and torch are compared.
        lengths: T of the time per token.
        softmax_lengths: T at which softmax attention is compared.
        torch_length: T of torch's loop over tokens.
        chunk_size: C.
        repetitions: turns, after one for warming up.
    """

    quick: bool = False
    out: Path | None = None
    kinds: tuple[str, ...] = KINDS
    heads: int = 8
    width: int = 64
    length: int = 8192
    lengths: tuple[int, ...] = (1024, 4096, 16384, 65536)
    softmax_lengths: tuple[int, ...] = (1024, 4096, 8192)
    torch_length: int = 1024
    chunk_size: int = 64
    repetitions: int = 5


QUICK: dict[str, Any] = {
    "heads": 2, "width": 8, "length": 64, "lengths": (32, 64), "softmax_lengths": (64,), "torch_length": 32,
    "chunk_size": 16, "repetitions": 1,
}  # fmt: skip


# --- what runs --------------------------------------------------------------------------------------------------------


def draw(kind: str, config: Config, length: int) -> dict[str, jax.Array]:
    """Unit keys, and what the kind needs beside them."""
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (length, config.heads, config.width)
    q, k, v = (jax.random.normal(key, shape) for key in keys[:3])
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    found = {"q": unit(q), "k": unit(k), "v": v}
    if kind in ("retention", "delta"):
        found["log_decay"] = -0.1 * jax.random.uniform(keys[3], shape[:2])
    if kind == "gated":
        found["log_decay"] = -0.1 * jax.random.uniform(keys[3], shape)
    if kind == "delta":
        found["beta"] = jax.random.uniform(keys[4], shape[:2])
    return found


@functools.cache
def compiled(form: str, chunk_size: int, gradients: bool) -> Callable:
    """A form of linear attention, or causal softmax in blocks; outputs, or gradients of their sum of squares."""

    def forward(arrays: dict) -> jax.Array:
        if form == "softmax":
            return attend(arrays["q"], arrays["k"], arrays["v"], mask=masks.causal(), implementation="blocks")
        return linear.attend(**arrays, form=form, chunk_size=chunk_size)  # type: ignore[arg-type]

    return jax.jit(jax.grad(lambda arrays: (forward(arrays) ** 2).sum()) if gradients else forward)


def torch_loop(arrays: dict[str, jax.Array], gradients: bool) -> Callable[[], Any]:
    """The recurrence as one would write it in torch: all heads at once, token by token."""
    import torch

    given = {name: torch.from_numpy(np.asarray(x).copy()).requires_grad_(gradients) for name, x in arrays.items()}

    def forward():
        q, k, v = given["q"], given["k"], given["v"]
        decay, beta = given.get("log_decay"), given.get("beta")
        state, out = torch.zeros(k.shape[1], k.shape[2], v.shape[2]), []
        for t in range(len(q)):
            if decay is not None:
                state = state * decay[t].exp().reshape(len(decay[t]), -1, 1)
            write = v[t]
            if beta is not None:
                write = beta[t][:, None] * (write - torch.einsum("nh,nhv->nv", k[t], state))
            state = state + torch.einsum("nh,nv->nhv", k[t], write)
            out.append(torch.einsum("nh,nhv->nv", q[t], state))
        return torch.stack(out)

    def both():
        for x in given.values():
            x.grad = None
        (forward() ** 2).sum().backward()
        return given["q"].grad

    return both if gradients else forward


def _require(what: str, got: Any, want: Any) -> None:
    error = relative_error(got, want)
    if not error <= TOLERANCE:
        raise WrongValues(f"{what}: relative error {error:.2e}, want at most {TOLERANCE:.0e}")


# --- sections ---------------------------------------------------------------------------------------------------------


def forms(kind: str, config: Config) -> dict[str, Any]:
    """Chunks beside token by token, and softmax attention."""
    found = {}
    for gradients in (False, True):
        arrays = draw(kind, config, config.length)
        names = ("chunked", "recurrent", "softmax")
        runs = {name: functools.partial(compiled(name, config.chunk_size, gradients), arrays) for name in names}
        got, want = (np.asarray(jax.tree.leaves(runs[name]())[0]) for name in names[:2])
        _require(f"{kind}, chunks beside token by token", got, want)
        found["forward+backward" if gradients else "forward"] = alternate(runs, config.repetitions)
    return found


def per_token(kind: str, config: Config) -> dict[str, Any]:
    """Microseconds a token over lengths, in turns."""
    found = {}
    for gradients in (False, True):
        runs = {}
        for length in config.lengths:
            function = compiled("chunked", config.chunk_size, gradients)
            runs[str(length)] = functools.partial(function, draw(kind, config, length))
        ms = alternate(runs, config.repetitions)["ms"]
        each = {length: 1e3 * ms[length] / int(length) for length in ms}
        name = "forward+backward" if gradients else "forward"
        found[name] = {"microseconds": each, "most over least": max(each.values()) / min(each.values())}
    return found


def softmax(config: Config) -> list[dict[str, Any]]:
    """From which length on chunks of a decay by token are faster than causal softmax attention."""
    rows = []
    for length in config.softmax_lengths:
        for gradients in (False, True):
            arrays = draw("retention", config, length)
            runs = {
                name: functools.partial(compiled(name, config.chunk_size, gradients), arrays)
                for name in ("chunked", "softmax")
            }
            timed = alternate(runs, config.repetitions)
            rows.append({"length": length, "gradients": gradients, **timed})
    return rows


def beside_torch(kind: str, config: Config) -> dict[str, Any]:
    """Chunks beside torch's loop over tokens, of the same length."""
    found = {}
    arrays = draw(kind, config, config.torch_length)
    for gradients in (False, True):
        other = torch_loop(arrays, gradients)
        run = functools.partial(compiled("chunked", config.chunk_size, gradients), arrays)
        own = run()["q"] if gradients else run()
        _require(f"{kind}, torch", other().detach().numpy(), own)
        name = "forward+backward" if gradients else "forward"
        found[name] = alternate({"chunked": run, "torch": other}, config.repetitions)
    return found


def memory(kind: str, config: Config) -> dict[str, int]:
    """Temporary bytes of gradients over lengths, from the compiled programs."""
    found = {}
    for length in (config.length // 4, config.length):
        shapes = jax.eval_shape(lambda length=length: draw(kind, config, length))
        program = compiled("chunked", config.chunk_size, True).lower(shapes).compile()
        found[str(length)] = program.memory_analysis().temp_size_in_bytes
    return found


# --- the report -------------------------------------------------------------------------------------------------------


def table_of(sections: dict[str, Any]) -> Table:
    """Every comparison's times and ratios."""
    table = Table("what", "kind", "pass", "ms", "over chunks")
    for what, kinds in sections.items():
        if what in ("forms", "torch"):
            for kind, passes in kinds.items():
                for name, found in passes.items():
                    for run, ms in found["ms"].items():
                        table.add_row(what, kind, name, f"{run} {ms:.1f}", f"{found['ratio_to_first'][run]:.2f}")
        elif what == "per token":
            for kind, passes in kinds.items():
                for name, found in passes.items():
                    each = "  ".join(f"{n}: {us:.1f} us" for n, us in found["microseconds"].items())
                    table.add_row(what, kind, name, each, f"{found['most over least']:.2f} most / least")
        elif what == "memory":
            for kind, found in kinds.items():
                short, long = found.values()
                table.add_row(
                    what, kind, "gradients", "  ".join(f"{n}: {b:,}" for n, b in found.items()), f"{long / short:.2f}"
                )
        else:
            for row in kinds:
                name = "forward+backward" if row["gradients"] else "forward"
                ms = "  ".join(f"{n} {x:.1f}" for n, x in row["ms"].items())
                table.add_row(what, f"T {row['length']}", name, ms, f"{row['ratio_to_first']['softmax']:.2f}")
    return table


def main(config: Config) -> dict[str, Any]:
    """Measure everything and print one table.

    Raises:
        WrongValues: a form, or torch, does not compute the same.
    """
    if config.quick:
        config = dataclasses.replace(config, **QUICK)
    console = Console(width=160)
    report = environment() | {"config": dataclasses.asdict(config) | {"out": None}, "sections": {}}
    console.print(f"{report['machine']['cpu']}, {cores()} cores; jax {report['versions']['jax']}")
    each = lambda measure: {kind: measure(kind, config) for kind in config.kinds}
    parts: dict[str, Callable[[], Any]] = {
        "forms": lambda: each(forms), "per token": lambda: each(per_token), "softmax": lambda: softmax(config),
        "memory": lambda: each(memory),
    }  # fmt: skip
    if importlib.util.find_spec("torch") is not None:
        parts["torch"] = lambda: each(beside_torch)
    for name, measure in parts.items():
        report["sections"][name] = measure()
        save(report, config.out)
    console.print(table_of(report["sections"]))
    return report


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except WrongValues as wrong:
        sys.exit(f"WRONG VALUES: {wrong}")
