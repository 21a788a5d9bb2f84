"""Linear self-attention learns regression in context: gradient flow and SGD against the closed forms.

One linear self-attention layer with all its parameters is trained on prompts (x_1, y_1, ..., x_N, y_N, x_q) whose task
changes from prompt to prompt. Theory (Zhang, Frei, Bartlett, 2024, arXiv 2306.09927) says where it ends, how long it
takes, and how it predicts from prompts of another length. Three settings train side by side, each over many seeds:

    isotropic     identity covariance: the whole time course has a closed form
    anisotropic   the covariance of the flags, randomly rotated
    noisy         the same with label noise, which the theorem does not have
"""

from experiments.in_context_regression.figures import plot as plot
from experiments.in_context_regression.study import Config as Config
from experiments.in_context_regression.study import run as run
from experiments.in_context_regression.verdicts import claims as claims
