"""Settings of `in_context_regression`, and the run."""

import dataclasses
import math
from typing import Literal

import jax
import numpy as np

from experiments.framework.context import Context, UsageError
from experiments.in_context_regression.settings import (
    ANISOTROPIC,
    SETTINGS,
    Result,
    batch_size,
    problem,
    schedule,
    shifts,
    solve,
)
from experiments.in_context_regression.sgd import Ensemble, train


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the claims hold at others than the defaults too."""

    dimension: int = 5
    """Dimension of the inputs, D."""
    length: int = 20
    """Labeled examples in a training prompt, N."""
    condition_number: float = 4.0
    """Largest over smallest eigenvalue of the anisotropic covariance, whose spectrum is geometric with mean one."""
    spectrum: tuple[float, ...] | None = None
    """Eigenvalues of the anisotropic covariance, D of them; replaces the geometric spectrum."""
    noise: float = 1.0
    """Standard deviation of the label noise in the noisy setting."""
    init_scale: float = 0.15
    """Norm of each of the two blocks at the start."""
    theta: Literal["random", "identity"] = "random"
    """Shape of the start in the rotated settings; a random one does not commute with the covariance."""
    learning_rate: float | None = None
    """Of SGD's first step; it falls linearly to zero. Default: what gets the flow to within 0.5% of the least risk."""
    stiffness: float = 0.1
    """Largest default learning rate times the largest curvature; small is close to gradient flow."""
    steps: int | None = None
    """Steps of SGD, rounded up to a multiple of `checkpoints`. Default: as many as the default learning rate needs."""
    max_steps: int = 4000
    """Bound on the default number of steps; ill-conditioned settings then end before they reach the least risk."""
    batch: int | None = None
    """Fresh prompts per step and seed. Default: enough to keep a step's noise near a hundredth of its drift."""
    seeds: int = 16
    """Independent SGD runs of each setting; at least 2, and all of them in one vmap."""
    test_lengths: tuple[int, ...] = (5, 10, 40, 100)
    """Prompt lengths at which the trained layer is tested, besides its own."""
    checkpoints: int = 24
    """Points in time at which the test risk is measured."""
    test_prompts: int = 65536
    """Fresh prompts per seed and final risk, rounded up to a multiple of 1024; the curve over time uses an eighth."""
    seed: int = 0
    """Root of all randomness."""

    @classmethod
    def quick(cls) -> "Config":
        """Small sizes for continuous integration: the same claims in under a minute on two cores."""
        return cls(
            condition_number=2.0,
            stiffness=0.07,
            max_steps=1000,
            seeds=8,
            checkpoints=12,
            test_prompts=32768,
            test_lengths=(5, 40),
        )

    def check(self) -> None:
        """Refuse impossible settings.

        Raises:
            UsageError: Naming the flag, what it was and what it must be.
        """
        least = {
            "dimension": 1,
            "length": 1,
            "seeds": 2,
            "batch": 1,
            "checkpoints": 2,
            "test_prompts": 1,
            "steps": 1,
            "max_steps": 1,
        }
        for name, bound in least.items():
            if getattr(self, name) is not None and getattr(self, name) < bound:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {bound}, got {getattr(self, name)}.")
        for name in ("init_scale", "learning_rate", "stiffness", "noise"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}.")
        if not 1 <= self.condition_number < math.inf:
            raise UsageError(f"--condition-number must be at least 1 (the identity), got {self.condition_number}.")
        if not self.test_lengths or min(self.test_lengths) < 1:
            raise UsageError(f"--test-lengths must be one or more positive lengths, got {self.test_lengths}.")
        if self.spectrum is not None and (len(self.spectrum) != self.dimension or not min(self.spectrum) > 0):
            raise UsageError(
                f"--spectrum must be {self.dimension} (--dimension) positive numbers, got {self.spectrum}."
            )


def run(config: Config, context: Context) -> Result:
    """Integrate the flows in float64, then train all settings and seeds in one vmap.

    Args:
        config: Settings.
        context: Surroundings.

    Returns:
        The result.

    Raises:
        UsageError: An impossible setting.
    """
    config.check()
    config = dataclasses.replace(config, batch=config.batch or batch_size(config))
    setting_key, train_key = jax.random.split(context.key)
    with jax.enable_x64(True):
        problems = [problem(name, config, setting_key) for name in SETTINGS]
        steps, rates = schedule(config, problems)
        pairs = list(zip(problems, rates, strict=True))
        settings = tuple(solve(*pair, config, steps) for pair in context.track(pairs, "gradient flow"))
        others = shifts(settings[ANISOTROPIC].task.covariance)
    ensemble = Ensemble(
        covariances=np.stack([setting.task.covariance for setting in settings]),
        noises=np.stack([setting.task.noise for setting in settings]),
        thetas=np.stack([setting.theta for setting in settings]),
        learning_rates=np.asarray(rates),
    )
    return Result(config, settings, train(ensemble, config, steps, train_key, context, others, ANISOTROPIC))
