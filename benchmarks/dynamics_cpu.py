"""Training of the toy models on a CPU: many seeds in one vmap against one seed, and against a plain torch loop.

The torch loops are what one would write: the model as a module, autograd, torch's own optimizers and generators, the
default number of threads. They take the same steps: with the same weights and prompts their loss and gradients are
compared with ours before anything is timed. Run it alone on the machine:

    python -m benchmarks.dynamics_cpu --out runs/dynamics_cpu.json
"""

import dataclasses
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

from attnjax.dynamics import autoregressive_attention, linear_attention, linear_transformer, scan_and_snap
from attnjax.dynamics import softmax_attention as softmax
from attnjax.tasks import initial_states, linear_regression, linear_sequences, sequences, token_classes
from benchmarks.measuring import WrongValues, alternate, cores, environment, relative_error, save
from experiments.framework.training import advance

TOLERANCE = 1e-4
"""Relative RMS error of float32 losses and gradients between two packages."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
        quick: few steps: shows that everything runs, its times mean nothing.
        only: models; all by default.
        out: where to write the figures as JSON.
        seeds: runs in one vmap.
        steps: of training in one timed call.
        repetitions: turns, after one for warming up.
    """

    quick: bool = False
    only: tuple[str, ...] = ()
    out: Path | None = None
    seeds: int = 16
    steps: int = 50
    repetitions: int = 5


class Case(NamedTuple):
    """A toy model at its paper's sizes.

    Attributes:
        sizes: In words.
        start: One state, from a key.
        step: `(state, key) -> (state, report)`.
        torch: Builds `(state, key) -> (run, check)`: `run(steps)` trains in torch, `check()` raises `WrongValues`; None
            where there is no torch loop.
    """

    sizes: str
    start: Callable[[jax.Array], Any]
    step: Callable[[Any, jax.Array], tuple[Any, Any]]
    torch: Callable[[], Callable[[int], None]] | None


# --- the models -------------------------------------------------------------------------------------------------------


def softmax_heads() -> Case:
    """He et al., 2025: D = 5, 40 examples, 256 prompts, 2 heads, Adam."""
    d, length, batch, heads, noise = 5, 40, 256, 2, 0.1**0.5
    adam = optax.adam(1e-3)
    draw = lambda key: linear_regression(
        key, batch=batch, length=length, covariance=jnp.ones(d), prior=jnp.ones(d) / d, noise=noise
    )
    return Case(
        f"D {d}, {length} examples, {batch} prompts, {heads} heads, Adam",
        lambda key: softmax.init(key, dimension=d, heads=heads, optimizer=adam),
        lambda state, key: softmax.step(state, draw(key), adam),
        lambda: _torch_softmax_heads(d, length, batch, heads, noise),
    )


def scan_and_snap_layer() -> Case:
    """Tian et al., 2023, Syn-Small: 34 tokens, 128 sequences of 128, SGD with momentum."""
    classes = token_classes()
    vocabulary = classes.contextual.shape[1]
    draw = lambda key: scan_and_snap.count(sequences(key, classes, batch=128, length=128), vocabulary)
    return Case(
        f"{vocabulary} tokens, 128 sequences of 128, SGD with momentum",
        lambda key: scan_and_snap.init(vocabulary),
        lambda state, key: scan_and_snap.step(state, draw(key), rate_y=1.0, rate_z=1.0, momentum=0.9),
        lambda: _torch_scan_and_snap(classes, vocabulary),
    )


def linear_layer() -> Case:
    """Zhang et al., 2024: D = 5, 20 examples, 256 prompts, SGD."""
    draw = lambda key: linear_regression(key, batch=256, length=20, covariance=jnp.ones(5))
    return Case(
        "D 5, 20 examples, 256 prompts, SGD",
        lambda key: linear_attention.init(jnp.eye(5), 0.1),
        lambda state, key: linear_attention.step(state, draw(key), 0.01),
        None,
    )


def linear_layers() -> Case:
    """Ahn et al., 2023: 3 layers, D = 5, 20 examples, 1000 prompts, Adam."""
    d, length, batch, layers = 5, 20, 1000, 3
    adam = optax.adam(0.02, b2=0.9)
    draw = lambda key: linear_regression(key, batch=batch, length=length, covariance=jnp.ones(d))
    return Case(
        f"{layers} layers, D {d}, {length} examples, {batch} prompts, Adam",
        lambda key: linear_transformer.init(key, dimension=d, layers=layers, scale=0.05, optimizer=adam),
        lambda state, key: linear_transformer.step(state, draw(key), adam),
        lambda: _torch_linear_layers(d, length, batch, layers),
    )


def autoregressive_layer() -> Case:
    """Zheng et al., 2024: D = 5, sequences of 100 states, 100 of them, gradient descent."""

    def draw(key):
        start_key, map_key = jax.random.split(key)
        return linear_sequences(map_key, initial_states(start_key, "gaussian", batch=100, dimension=5), length=100)

    return Case(
        "D 5, 100 sequences of 100 states, gradient descent",
        lambda key: autoregressive_attention.init(5, 0.1, 0.1),
        lambda state, key: autoregressive_attention.step(state, draw(key), 1e-4),
        None,
    )


CASES: dict[str, Callable[[], Case]] = {
    "softmax heads": softmax_heads,
    "scan and snap": scan_and_snap_layer,
    "linear layer": linear_layer,
    "linear layers": linear_layers,
    "autoregressive layer": autoregressive_layer,
}


# --- the same in torch ------------------------------------------------------------------------------------------------


def _require(label: str, got: Any, want: Any) -> None:
    error = relative_error(got, want)
    if not error <= TOLERANCE:
        raise WrongValues(f"{label}: relative error {error:.1e}, above {TOLERANCE:.0e}; nothing is timed")


def _torch_softmax_heads(d: int, length: int, batch: int, heads: int, noise: float) -> Callable[[int], None]:
    import torch

    class Heads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            e = d + 1
            linear = lambda inputs, outputs: torch.nn.Linear(inputs, outputs, bias=False)
            self.q, self.k, self.v = (torch.nn.ModuleList(linear(e, e) for _ in range(heads)) for _ in range(3))
            self.o = linear(heads * e, 1)

        def forward(self, examples, query):
            outputs = []
            for q, k, v in zip(self.q, self.k, self.v, strict=True):
                scores = k(examples) @ q(query).unsqueeze(-1) / (d + 1) ** 0.5
                outputs.append((torch.softmax(scores, dim=1) * v(examples)).sum(dim=1))
            return self.o(torch.cat(outputs, dim=-1)).squeeze(-1)

    def draw():
        x, query = torch.randn(batch, length, d), torch.randn(batch, d)
        w = torch.randn(batch, d) / d**0.5
        y = (x * w[:, None]).sum(-1) + noise * torch.randn(batch, length)
        tokens = torch.cat([x, y[..., None]], dim=-1)
        return tokens, torch.nn.functional.pad(query, (0, 1)), (query * w).sum(-1)

    model = Heads()
    examples, query, label = draw()
    loss = ((model(examples, query) - label) ** 2).mean()
    loss.backward()
    stack = lambda layers: jnp.stack([jnp.asarray(layer.weight.detach().numpy()) for layer in layers])
    grads = lambda layers: np.stack([layer.weight.grad.numpy() for layer in layers])
    params = softmax.Params(
        stack(model.q), stack(model.k), stack(model.v), jnp.asarray(model.o.weight.detach().numpy()).reshape(heads, -1)
    )
    prompts = softmax.Prompts(
        *(jnp.asarray(part.numpy()) for part in (examples[..., :-1], examples[..., -1], query[:, :-1], label))
    )
    value, gradient = jax.value_and_grad(softmax.loss)(params, prompts)
    _require("softmax heads, loss", loss.item(), value)
    for name, one in (("q", model.q), ("k", model.k), ("v", model.v)):
        _require(f"softmax heads, gradient of {name}", grads(one), getattr(gradient, name))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def run(steps: int) -> None:
        for _ in range(steps):
            examples, query, label = draw()
            optimizer.zero_grad()
            ((model(examples, query) - label) ** 2).mean().backward()
            optimizer.step()

    return run


def _torch_linear_layers(d: int, length: int, batch: int, layers: int) -> Callable[[int], None]:
    import torch

    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p, self.q = (torch.nn.Parameter(0.05 * torch.randn(layers, d, d)) for _ in range(2))

        def forward(self, tokens):
            pad = lambda block: torch.nn.functional.pad(block, (0, 1, 0, 1))
            corner = torch.zeros(d + 1, d + 1)
            corner[-1, -1] = -1
            for p, q in zip(self.p, self.q, strict=True):
                scores = tokens @ pad(q).T @ tokens[:, :-1].transpose(1, 2)
                tokens = tokens + scores @ (tokens[:, :-1] @ (corner - pad(p)).T) / length
            return -tokens[:, -1, -1]

    def draw():
        x, w = torch.randn(batch, length + 1, d), torch.randn(batch, d, 1)
        y = x @ w
        label = y[:, -1, 0].clone()
        y[:, -1] = 0
        return torch.cat([x, y], dim=-1), label

    model = Layers()
    with torch.no_grad():
        model.q += 0.3 * torch.eye(d)  # at the tiny start itself, losses hardly depend on the weights
    tokens, label = draw()
    loss = ((model(tokens) - label) ** 2).mean()
    loss.backward()
    array = lambda part: jnp.asarray(part.detach().numpy())
    free = linear_transformer.Free(array(model.p), array(model.q))
    prompts = linear_transformer.Prompts(
        array(tokens[:, :-1, :-1]), array(tokens[:, :-1, -1]), array(tokens[:, -1, :-1]), array(label)
    )
    value, gradient = jax.value_and_grad(
        lambda free: linear_transformer.loss(linear_transformer.descent(free), prompts)
    )(free)
    _require("linear layers, loss", loss.item(), value)
    for name in ("p", "q"):
        _require(f"linear layers, gradient of {name}", getattr(model, name).grad.numpy(), getattr(gradient, name))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, betas=(0.9, 0.9))

    def run(steps: int) -> None:
        for _ in range(steps):
            tokens, label = draw()
            optimizer.zero_grad()
            ((model(tokens) - label) ** 2).mean().backward()
            optimizer.step()

    return run


def _torch_scan_and_snap(classes: Any, vocabulary: int) -> Callable[[int], None]:
    import torch

    law = torch.from_numpy(np.array(classes.contextual))
    last_of, next_of = (torch.from_numpy(np.array(part)).long() for part in (classes.last, classes.next))

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.y, self.z = (torch.nn.Parameter(torch.zeros(vocabulary, vocabulary)) for _ in range(2))

        def forward(self, context, last):
            weights = torch.softmax(torch.gather(self.z[last], 1, context), dim=1)
            mixed = torch.zeros(len(last), vocabulary).scatter_add(1, context, weights)
            return mixed / mixed.norm(dim=1, keepdim=True) @ self.y

    def draw():
        kind = torch.randint(len(law), (128,))
        return torch.multinomial(law[kind], 127, replacement=True), last_of[kind], next_of[kind]

    model = Layer()
    with torch.no_grad():
        model.y.normal_()
        model.z.normal_()
    context, last, following = draw()
    loss = torch.nn.functional.cross_entropy(model(context, last), following)
    loss.backward()
    params = scan_and_snap.Params(*(jnp.asarray(part.detach().numpy()) for part in (model.y, model.z)))
    drawn = scan_and_snap.Sequences(*(jnp.asarray(part.numpy(), jnp.int32) for part in (context, last, following)))
    value, gradient = jax.value_and_grad(scan_and_snap.loss)(params, scan_and_snap.count(drawn, vocabulary))
    _require("scan and snap, loss", loss.item(), value)
    for name in ("y", "z"):
        _require(f"scan and snap, gradient of {name}", getattr(model, name).grad.numpy(), getattr(gradient, name))
    with torch.no_grad():
        model.y.zero_()
        model.z.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)

    def run(steps: int) -> None:
        for _ in range(steps):
            context, last, following = draw()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(context, last), following).backward()
            optimizer.step()

    return run


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(case: Case, config: Config) -> dict[str, Any]:
    """Milliseconds of `config.steps` steps for one seed, for all, and for one in torch; and the ratios asked for.

    Raises:
        WrongValues: Torch's loss or gradients are not ours.
    """
    keys = jax.random.split(jax.random.key(0), config.seeds)
    states = jax.vmap(case.start)(keys)
    first = lambda tree: jax.tree.map(lambda leaf: leaf[:1], tree)
    many = f"{config.seeds} seeds"
    runs: dict[str, Callable[[], Any]] = {
        "1 seed": lambda: advance(case.step, first(states), keys[:1], config.steps),
        many: lambda: advance(case.step, states, keys, config.steps),
    }
    if case.torch is not None and importlib.util.find_spec("torch") is not None:
        in_torch = case.torch()
        runs["torch, 1 seed"] = lambda: in_torch(config.steps)
    found = alternate(runs, config.repetitions)
    ms = found["ms"]
    found["sizes"], found["steps"] = case.sizes, config.steps
    found["all_seeds_over_one"] = found["ratio_to_first"][many]
    found["seed_steps_per_second"] = {
        name: (config.seeds if name == many else 1) * config.steps / (took / 1e3) for name, took in ms.items()
    }
    if "torch, 1 seed" in ms:
        rates = found["seed_steps_per_second"]
        found["rate_over_torch"] = rates[many] / rates["torch, 1 seed"]
    return found


def table_of(sections: dict[str, Any]) -> Table:
    """Every model's times and ratios."""
    table = Table("model", "sizes", "run", "ms per step", "seed-steps per second", "all seeds / one", "rate / torch")
    for name, found in sections.items():
        ratios = [f"{found['all_seeds_over_one']:.2f}", f"{found.get('rate_over_torch', float('nan')):.2f}"]
        label, sizes = name, found["sizes"]
        for run, ms in found["ms"].items():
            rate = f"{found['seed_steps_per_second'][run]:.0f}"
            table.add_row(label, sizes, run, f"{ms / found['steps']:.3f}", rate, *ratios)
            label, sizes, ratios = "", "", ["", ""]
    return table


def main(config: Config) -> dict[str, Any]:
    """Measure every model and print one table.

    Raises:
        WrongValues: Before anything of that model is timed.
    """
    if config.quick:
        config = dataclasses.replace(config, seeds=2, steps=2, repetitions=1)
    console = Console(width=160)
    report = environment() | {"config": dataclasses.asdict(config) | {"out": None}, "sections": {}}
    console.print(f"{report['machine']['cpu']}, {cores()} cores; jax {report['versions']['jax']}")
    for name in config.only or CASES:
        report["sections"][name] = measure(CASES[name](), config)
        save(report, config.out)
    console.print(table_of(report["sections"]))
    return report


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except WrongValues as wrong:
        sys.exit(f"WRONG VALUES: {wrong}")
