"""Softmax attention learns regression in context: pairs of heads take one debiased gradient step, one head cannot.

One layer of multi-head softmax attention is trained with Adam on prompts of noisy linear regression (He, Pan, Chen,
Yang, 2025, arXiv 2503.12734). Checked here, for several numbers of heads:

    loss       against the least risk at this dimension and length, not only the large-dimension formula
    circuits   KQ becomes a multiple of the identity, OV reads the label, the heads' readings sum to zero
    lengths    risk on shorter and longer prompts than those of training, against the trained strengths' own prediction
    anisotropic inputs   two heads reach the best preconditioned step
    two tasks  H heads take any rates of rank H - 1: with two a compromise, with three each task's own, one head shared
"""

from experiments.softmax_regression.figures import plot as plot
from experiments.softmax_regression.study import Config as Config
from experiments.softmax_regression.study import run as run
from experiments.softmax_regression.verdicts import claims as claims
