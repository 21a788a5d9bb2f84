# %% [markdown]
# # Softmax attention learns regression in context
#
# **Claim** (He, Pan, Chen, Yang, 2025, [arXiv 2503.12734](https://arxiv.org/abs/2503.12734)): on noisy linear
# regression, heads of softmax attention end as pairs of opposite strength, and a pair takes one step of gradient
# descent on centered examples; a single head cannot. attnjax holds this against the least loss at finite dimension
# and length.
#
# **Time**: about four minutes on two cores; `QUICK=1` in the environment makes it one.

# %%
# Installs attnjax where it is not there yet, as on Colab; in a clone with its environment this does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("experiments") is None:
    subprocess.run(["git", "clone", "--depth", "1", "https://github.com/attnjax/attnjax"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "attnjax[experiments]"], check=True)
    sys.path.insert(0, "attnjax")

# %%
import dataclasses
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from attnjax.dynamics import softmax_attention_theory as theory
from experiments import softmax_regression as experiment
from experiments.framework import inline

config = experiment.Config.quick()
if "QUICK" in os.environ:
    config = dataclasses.replace(config, heads=(1, 4), steps=400, seeds=2, test_lengths=(20,), test_prompts=4096)
print(config)

# %% [markdown]
# ## Train
# One and several heads with Adam, all seeds in one `vmap`, beside the least loss that heads can reach.

# %%
result = inline.run(experiment, config)
inline.table(experiment.claims(result), "softmax-regression")

# %% [markdown]
# ## Look
# The circuits as the paper draws them; the loss as training goes on; the loss on longer and shorter prompts.

# %%
figures = experiment.plot(result)
figures["figure_1_circuits"]

# %%
figures["loss_over_time"]

# %%
figures["loss_by_length"]

# %% [markdown]
# ## Ask
# How far is the paper's large-dimension formula from the finite one? The loss of one head over its strength.

# %%
at = {"dimension": config.dimension, "length": config.length, "noise": config.noise_variance**0.5}
strengths = jnp.linspace(0.1, 1.0, 19)


@jax.jit
@jax.vmap
def losses(omega):
    finite = theory.moments(jax.random.key(0), omega[None], samples=4096, **at)
    large = theory.approximate_moments(omega[None], **at)
    return jnp.stack([theory.risk(theory.best_mu(of), of) for of in (finite, large)]) + config.noise_variance


figure, axes = plt.subplots()
axes.plot(strengths, losses(strengths), label=["this dimension", "large dimension"])
axes.plot(abs(result.isotropic[1].omega), result.isotropic[1].risks_by_length[:, :1] + config.noise_variance, "o")
axes.set(xlabel="strength of one head", ylabel="loss")
axes.legend()
