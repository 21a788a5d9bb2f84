"""Every kind of linear attention: what its decays, writes and divisors are."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Case:
    """One kind.

    Attributes:
        log_decay: "token" or "feature": what has a decay of its own.
        log_write: likewise for the scales of writes.
        beta: whether writes correct the state.
        normalize: as for ``linear.attend``.
        exclusive: likewise.
    """

    log_decay: str = ""
    log_write: str = ""
    beta: bool = False
    normalize: str | None = None
    exclusive: bool = False

    def __str__(self) -> str:
        parts = [
            f"decay by {self.log_decay}" if self.log_decay else "", f"write by {self.log_write}" if self.log_write else "",
            "delta" if self.beta else "", f"normalized by {self.normalize}" if self.normalize else "",
            "exclusive" if self.exclusive else "",
        ]  # fmt: skip
        return ", ".join(filter(None, parts)) or "plain"

    def draw(self, length: int, seed: int = 0, batch: int = 2, heads: int = 4, kv_heads: int = 2) -> dict:
        """Arrays of float64: unit keys for the delta rule, positive features where something is divided by them."""
        rng = np.random.default_rng(seed)
        features, width = 5, 3
        draw = lambda *shape: rng.standard_normal((batch, length, *shape))
        q, k = draw(heads, features), draw(kv_heads, features)
        q, k = (np.abs(q), np.abs(k)) if self.normalize else (q, k)
        arrays = {"q": q, "k": k, "v": draw(kv_heads, width)}
        shapes = {"token": (kv_heads,), "feature": (kv_heads, features)}
        if self.log_decay:
            arrays["log_decay"] = -np.abs(draw(*shapes[self.log_decay]))
        if self.log_write:
            arrays["log_write"] = 3 * draw(*shapes[self.log_write])
        if self.beta:
            arrays["k"] = k / np.linalg.norm(k, axis=-1, keepdims=True)
            arrays["beta"] = rng.uniform(0, 2, (batch, length, kv_heads))
        return arrays

    @property
    def knobs(self) -> dict:
        return {"normalize": self.normalize, "exclusive": self.exclusive}


CASES = [
    Case(), Case("token"), Case("feature"), Case("", "token"), Case("feature", "feature"), Case("token", "feature"),
    Case("", "feature", normalize="feature"), Case("feature", "token", normalize="row"),
    Case("token", normalize="row"), Case("feature", normalize="feature"),
    Case(beta=True), Case("token", beta=True), Case("feature", beta=True),
    Case("feature", exclusive=True), Case("token", beta=True, exclusive=True),
    Case("", "feature", normalize="row", exclusive=True), Case("token", "feature", normalize="feature", exclusive=True),
]  # fmt: skip
