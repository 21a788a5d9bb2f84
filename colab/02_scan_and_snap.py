# %% [markdown]
# # Scan and snap
#
# **Claim** (Tian, Wang, Chen, Du, 2023, [arXiv 2305.16380](https://arxiv.org/abs/2305.16380)): one layer of attention
# first scans: tokens that tell the next one gain attention, tokens that all classes share lose it. Then it snaps: the
# decoder has learned, the gradient dies, and attention stays where it is.
#
# **Time**: about two minutes on two cores; `QUICK=1` in the environment makes it one.

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

from attnjax.dynamics import scan_and_snap_theory as theory
from experiments import scan_and_snap as experiment
from experiments.framework import inline

config = experiment.Config.quick()
if "QUICK" in os.environ:
    config = dataclasses.replace(config, table_rates=(1.0,), table_ratios=(1.0, 10.0), seeds=3)
print(config)

# %% [markdown]
# ## Run
# The theorems along their own flow in float64, and SGD on sampled sequences beside the authors' log and table.

# %%
result = inline.run(experiment, config)
inline.table(experiment.claims(result), "scan-and-snap")

# %%
figures = experiment.plot(result)
figures["figure_4_attention"]

# %%
figures["figure_3_snapping"]

# %%
figures["loss"]

# %% [markdown]
# ## Ask
# When does a larger vocabulary snap? The closed form of what a common token has lost, by vocabulary.

# %%
time = jnp.linspace(1.0, 400.0, 400)
knobs = {"classes": config.snap_classes, "rate_y": 1.0, "rate_z": config.snap_rate_z, "common": 1 / config.snap_classes}
figure, axes = plt.subplots()
with jax.enable_x64(True):
    for vocabulary in (30, 100, 1000):
        axes.plot(time, theory.scanned(time.astype(float), vocabulary=vocabulary, **knobs), label=f"M = {vocabulary}")
axes.set(xlabel="samples", ylabel="B, scanned")
axes.legend()
