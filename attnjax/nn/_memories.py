"""What is special to each mechanism that corrects or trains its memory, as ``_mechanisms`` for the others."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax import linear

from ._gates import LowRank, Steps, Strengths, step_bias
from ._mechanisms import Mechanism, options_of


class DeltaRule(Mechanism):
    """Writes that correct, of strength ``sigmoid(x W)`` (Yang et al., 2024, arXiv 2406.06484)."""

    activated = ("query", "key", "value")
    unit = True

    def __init__(self, size, rngs):
        self.beta = Strengths(size.model_dim, size.heads, **options_of(size, rngs))

    def __call__(self, x, query, key, value, **run):
        return linear.delta_rule(query, key, value, self.beta(x), **run)


class GatedDeltaRule(DeltaRule):
    """The same with a decay for each head, ``exp(-A softplus(x W + b))`` (Yang et al., 2024, arXiv 2412.06464)."""

    def __init__(self, size, rngs):
        super().__init__(size, rngs)
        options = options_of(size, rngs)
        self.steps = Steps(size.model_dim, size.heads, **options)
        rates = jax.random.uniform(rngs.params(), (size.heads,), options["param_dtype"], 1e-3, 16.0)
        self.log_rate = nnx.Param(jnp.log(rates))

    def __call__(self, x, query, key, value, **run):
        steps = self.steps(x)
        rate = jnp.exp(self.log_rate[...]).reshape((1,) * (steps.ndim - 1) + (-1,))
        return linear.delta_rule(query, key, value, self.beta(x), -rate * steps, **run)


class KimiDeltaRule(DeltaRule):
    """The same with a decay for each feature (Kimi Team, 2025, Kimi Linear, arXiv 2510.26692)."""

    def __init__(self, size, rngs):
        super().__init__(size, rngs)
        options = options_of(size, rngs)
        wide = size.model_dim, size.heads, size.key_dim
        self.steps = LowRank(*wide, rank=size.value_dim, use_bias=False, **options)
        self.bias = step_bias((size.heads, size.key_dim), **options)
        rates = jax.random.uniform(rngs.params(), (size.heads, 1), options["param_dtype"], 1.0, 16.0)
        self.log_rate = nnx.Param(jnp.log(rates))

    def __call__(self, x, query, key, value, **run):
        found = self.steps(x)
        lead = lambda param: param[...].reshape((1,) * (found.ndim - 2) + param.shape)
        decay = -jnp.exp(lead(self.log_rate)) * jax.nn.softplus(found + lead(self.bias))
        return linear.delta_rule(query, key, value, self.beta(x), decay, **run)


class Learner(Mechanism):
    """A memory that is trained while it reads; its rate, and what else it is governed by, are sigmoids.

    Deviation: what shrinks the memory starts near 0.02; the papers name no start.
    """

    activated = ("query", "key", "value")
    unit = True
    shrinks: tuple[str, ...] = ("forget",)
    governs: tuple[str, ...] = ()

    def __init__(self, size, rngs):
        small = {name: -4.0 for name in self.shrinks}
        strengths = lambda name: Strengths(
            size.model_dim, size.heads, bias=small.get(name, 0.0), **options_of(size, rngs)
        )  # fmt: skip
        self.strengths = nnx.Dict({name: strengths(name) for name in ("rate", *self.governs, *self.shrinks)})

    def numbers(self, x: Any) -> dict[str, Any]:
        """Rate and all others, by name."""
        return {name: strengths(x) for name, strengths in self.strengths.items()}


class Titans(Learner):
    """A linear memory with momentum (Behrouz et al., 2025, arXiv 2501.00663), exact in chunks of any size."""

    governs = ("momentum",)

    def __call__(self, x, query, key, value, **run):
        return linear.titans(query, key, value, **self.numbers(x), **run)


def _by_token(run: dict[str, Any]) -> dict[str, Any]:
    """Gradients at the memory before each token: in chunks it would be another function, and decoding a third."""
    return {"chunk_size": 1, **{name: x for name, x in run.items() if name not in ("form", "chunk_size")}}


class NeuralMemory(Learner):
    """A memory that is a network of one hidden layer, with momentum (Behrouz et al., 2025, arXiv 2501.00663)."""

    governs = ("momentum",)

    def __init__(self, size, rngs):
        super().__init__(size, rngs)
        sizes = {"heads": size.heads, "features": size.key_dim, "hidden": 4 * size.key_dim, "width": size.value_dim}
        start = linear.mlp_memory_init(rngs.params(), **sizes)
        dtype = options_of(size, rngs)["param_dtype"]
        self.memory = nnx.List([nnx.Param(matrix.astype(dtype)) for matrix in start])

    def __call__(self, x, query, key, value, **run):
        params = tuple(matrix[...] for matrix in self.memory)
        return linear.neural_memory(query, key, value, **self.numbers(x), params=params, **_by_token(run))


class Moneta(Learner):
    """Errors to the third power, a memory of fixed 4-norm (Behrouz et al., 2025, arXiv 2504.13173)."""

    def __call__(self, x, query, key, value, **run):
        return linear.moneta(query, key, value, **self.numbers(x), **_by_token(run))


class Yaad(Learner):
    """Huber's loss (Behrouz et al., 2025, arXiv 2504.13173)."""

    governs = ("threshold",)

    def __call__(self, x, query, key, value, **run):
        return linear.yaad(query, key, value, **self.numbers(x), **_by_token(run))


class Memora(Learner):
    """A memory whose columns are distributions (Behrouz et al., 2025, arXiv 2504.13173)."""

    def __call__(self, x, query, key, value, **run):
        return linear.memora(query, key, value, **self.numbers(x), **_by_token(run))


class ElasticNet(Learner):
    """A memory whose small entries become zero (Behrouz et al., 2025, arXiv 2504.13173)."""

    shrinks = ("ridge", "lasso")

    def __call__(self, x, query, key, value, **run):
        return linear.elastic_net(query, key, value, **self.numbers(x), **_by_token(run))
