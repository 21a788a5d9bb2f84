"""The decoder as pure functions of stacked parameters: one layer is traced, however many there are."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from attnjax import attend, masks, nn, parallel
from experiments.framework.context import UsageError
from experiments.pod.config import Config, Model

POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "none": jax.checkpoint_policies.everything_saveable,
}


class Decoder:
    """Embedding, blocks, normalization, head.

    Parameters are a dictionary; those of the blocks are stacked along a first axis, one entry for each period of
    `model.mixer`, so that `jax.lax.scan` runs them.

    Args:
        config: Of the run.
        layout: The mesh axes of `batch`, `sequence`, `heads`, and of parameters; None on one device, or in `jax.pmap`.
    """

    def __init__(self, config: Config, layout: parallel.Layout | None):
        self.model, self.layout, self.remat = config.model, layout, POLICIES[config.training.remat]
        self.placement, self.attend = parallel.contiguous(1), attend
        if layout is not None:
            over = {"ring": parallel.ring_attend, "all_to_all": parallel.all_to_all_attend}
            self.placement = placement_of(config, layout)
            self.attend = functools.partial(
                over[config.mesh.sequence_parallel], layout=layout, placement=self.placement
            )
        self.implementation = config.training.implementation
        self.period = len(config.model.mixer)
        if "lightning" in config.model.mixer:  # its decays are those of a layer
            self.period = config.model.layers
        if config.model.layers % self.period:
            raise UsageError(f"layers={config.model.layers}: want a multiple of the {self.period} mixers")

    def _block(self, place: int, key: Any) -> nn.Block:
        model = self.model
        mixer = model.mixer[place % len(model.mixer)]
        knobs: dict[str, Any] = {}
        if mixer == "softmax":
            knobs = dict(
                kv_heads=model.kv_heads, head_dim=model.head_dim, rotary_base=model.rotary_base,
                implementation=self.implementation, attend=self.attend,
            )  # fmt: skip
        return nn.Block(
            model.width, model.heads, mixer=mixer, place=(place, model.layers), mlp_dim=model.mlp, gated=True,
            activation=jax.nn.silu, rngs=nnx.Rngs(key), **knobs,
        )  # fmt: skip

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Parameters, float32: normal embeddings; what adds to the residual stream shrinks with the depth."""
        model, (table, head, *keys) = self.model, jax.random.split(key, 2 + self.period)
        depth = (2 * model.layers) ** -0.5

        def one(place: int, key: jax.Array) -> Any:
            params = nnx.to_pure_dict(nnx.state(self._block(place, key), nnx.Param))
            shrink = lambda path, x: x * depth if path[-2].key in ("out", "down") else x
            return jax.tree_util.tree_map_with_path(shrink, params)

        stack = lambda place: jax.vmap(functools.partial(one, place))(
            jax.random.split(keys[place], model.layers // self.period)
        )
        return {
            "embed": jax.random.normal(table, (model.vocab, model.width)) * model.width**-0.5,
            "blocks": [stack(place) for place in range(self.period)],
            "norm": jnp.ones(model.width),
            "head": jax.random.normal(head, (model.width, model.vocab)) * model.width**-0.5,
        }

    def logits(self, params: dict[str, Any], tokens: jax.Array, segments: jax.Array | None) -> jax.Array:
        """Logits `[B, T, vocab]` of tokens in the placement's order, in the parameters' dtype.

        Args:
            params: As `init` returns them, perhaps in another dtype.
            tokens: `[B, T]`.
            segments: The document that each belongs to `[B, T]`, or None for one.
        """
        model = self.model
        constrain = (lambda x, *names: x) if self.layout is None else self.layout.constrain
        positions = jnp.asarray(self.placement(tokens.shape[-1]), jnp.int32)
        mask = masks.causal() if model.window is None else masks.causal() & masks.window(model.window)
        parts = [nnx.split(self._block(place, 0), nnx.Param, ...) for place in range(self.period)]
        over = None if self.layout is None else parallel.state_passing(self.layout)

        @functools.partial(jax.checkpoint, policy=self.remat, prevent_cse=False)
        def layers(x: jax.Array, stacked: list[Any]) -> tuple[jax.Array, None]:
            for (graph, like, rest), values in zip(parts, stacked, strict=True):
                held = jax.tree.map(lambda leaf: leaf, like)
                nnx.replace_by_pure_dict(held, values)
                block = nnx.merge(graph, held, rest)
                softmax = isinstance(block.attention, nn.Attention)
                run = {} if over is None else {"over": over}
                knobs: dict[str, Any] = {"mask": mask, "positions": positions} if softmax else {"run": run}
                x, _ = block(x, segment_ids=segments, **knobs)
                x = constrain(x, "batch", "sequence", None)
            return x, None

        x = constrain(jnp.take(params["embed"], tokens, axis=0), "batch", "sequence", None)
        x, _ = jax.lax.scan(layers, x, params["blocks"])
        mean = jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True)
        x = x * jax.lax.rsqrt(mean + 1e-6).astype(x.dtype) * params["norm"][None, None]
        return constrain(x @ params["head"], "batch", "sequence", "vocab")


def placement_of(config: Config, layout: parallel.Layout) -> parallel.Placement:
    """Where tokens lie: folded if causal softmax attention goes round a ring, else as they are read."""
    parts = layout.size("sequence")
    softmax = set(config.model.mixer) == {"softmax"} and config.model.window is None
    folded = config.mesh.zigzag and softmax and config.mesh.sequence_parallel == "ring" and parts > 1
    return parallel.zigzag(parts) if folded else parallel.contiguous(parts)


def partition(path: Any, shape: tuple[int, ...], model: Model, layout: parallel.Layout) -> jax.sharding.NamedSharding:
    """How a parameter is split: by what its axes are, told by their lengths and its name.

    The axis of the residual stream is split over `embed`; of the others one over `heads`, `mlp` or `vocab`. An axis
    that its devices do not divide stays whole.
    """
    keys = [str(getattr(k, "key", getattr(k, "idx", k))) for k in path]
    stacked = "blocks" in keys
    axes: list[str | None] = [None] * len(shape)
    lengths = {"heads": {model.heads, model.kv_heads}, "mlp": {model.mlp}, "vocab": {model.vocab}}
    if len(shape) - stacked > 1:
        order = list(range(stacked, len(shape)))
        if keys[-2:] and any(k in ("out", "down", "head") for k in keys[-2:]) and "head" not in keys:
            order.reverse()  # these end in the residual stream
        stream = next((i for i in order if shape[i] == model.width), None)
        if stream is not None:
            axes[stream] = "embed"
        for i in range(stacked, len(shape)):
            name = next((n for n, found in lengths.items() if shape[i] in found), None)
            if axes[i] is None and name is not None and name not in axes:
                axes[i] = name
    fits = [a if a is not None and n % layout.size(a) == 0 else None for a, n in zip(axes, shape, strict=True)]
    return layout.sharding(*fits)


def count(params: Any) -> int:
    """How many parameters there are."""
    return sum(x.size for x in jax.tree.leaves(params))


def flops_per_token(model: Model, params: Any, length: int) -> float:
    """Floating-point operations of a training step for each token: 6 for each weight of a product, and attention's.

    The convention of PaLM (Chowdhery et al., 2022, arXiv 2204.02311, appendix B), but for a causal mask: a query sees
    half of the keys, or its window. What is computed twice to save memory does not count, nor do embeddings, nor the
    states of linear-time layers.
    """
    weights = count(params) - model.vocab * model.width
    softmax = sum(model.mixer[i % len(model.mixer)] == "softmax" for i in range(model.layers))
    window = length if model.window is None else min(model.window + 1, length)
    seen = window - window * (window - 1) / (2 * length)  # keys of a query, on average
    return 6 * weights + 12 * softmax * model.heads * model.head_dim * seen
