"""Every experiment by the name it has on the command line: the one place to add a new one."""

from typing import Any, Protocol

from experiments import (
    associative_recall,
    implicit_update,
    in_context_descent,
    in_context_regression,
    joint_dynamics,
    language_model,
    linear_transformer,
    loss_plateau,
    memory_capacity,
    mesa_optimization,
    scan_and_snap,
    softmax_regression,
)
from experiments.framework.claim import Claim
from experiments.framework.context import Context


class Experiment(Protocol):
    """What a module must expose; see `experiments/__init__.py`."""

    __doc__: str | None
    Config: Any

    def run(self, config: Any, context: Context) -> Any: ...
    def claims(self, result: Any) -> list[Claim]: ...
    def plot(self, result: Any) -> dict[str, Any]: ...


EXPERIMENTS: dict[str, Experiment] = {
    "in-context-regression": in_context_regression,
    "softmax-regression": softmax_regression,
    "in-context-descent": in_context_descent,
    "mesa-optimization": mesa_optimization,
    "implicit-update": implicit_update,
    "scan-and-snap": scan_and_snap,
    "joint-dynamics": joint_dynamics,
    "linear-transformer": linear_transformer,
    "loss-plateau": loss_plateau,
    "memory-capacity": memory_capacity,
    "associative-recall": associative_recall,
    "language-model": language_model,
}
