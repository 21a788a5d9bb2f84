# %% [markdown]
# # Mesa-optimization
#
# **Claim** (Zheng, Huang, Wang, Wu, Zhu, Li, 2024, [arXiv 2405.16845](https://arxiv.org/abs/2405.16845)): linear
# attention trained to predict the next state of x_{t+1} = W x_t learns to take one step of gradient descent on the
# sequence itself. Whether that step recovers W depends on the law of the first state.
#
# **Time**: about three minutes on two cores; `QUICK=1` in the environment makes it one.

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
import matplotlib.pyplot as plt
import numpy as np

from attnjax.dynamics import autoregressive_attention_theory as theory
from experiments import mesa_optimization as experiment
from experiments.framework import inline

config = experiment.Config.quick()
if "QUICK" in os.environ:
    config = dataclasses.replace(config, length=10, seeds=2, batch=64, test_sequences=2048)
print(config)

# %% [markdown]
# ## Run
# Four laws of sequences: two that the theorem is about, and two that break its assumptions.

# %%
result = inline.run(experiment, config)
inline.table(experiment.claims(result), "mesa-optimization")

# %%
figures = experiment.plot(result)
figures["product_over_time"]

# %%
figures["figure_3_blocks"]

# %% [markdown]
# ## Ask
# How fast does the finite-length limit approach the one that the paper plots, 1 / 5 for Gaussian first states?

# %%
lengths = np.array([5, 10, 20, 50, 100, 200, 500])
figure, axes = plt.subplots()
with jax.enable_x64(True):
    for dimension in (2, 5, 10):
        moments = theory.moments("gaussian", dimension=dimension, scale=1.0)
        limits = [float(theory.limit(moments, int(length))) for length in lengths]
        axes.semilogx(lengths, limits, "o-", label=f"D = {dimension}")
axes.axhline(0.2, color="gray", linestyle=":", label="T to infinity")
axes.set(xlabel="T, states of a sequence", ylabel="limit of a b")
axes.legend()
