"""Linear attention shows how Transformers train: preconditioned steps, and Adam ahead of SGD, more so on heavy tails.

Ahn, Cheng, Daneshmand, Sra, 2023, arXiv 2306.00297, and Ahn, Cheng, Song, Yun, Sra, Jadbabaie, 2023, arXiv 2310.01082.
Checked here:

    depth           1, 2, 3 layers reach the least risk of as many steps of gradient descent that also move the inputs
    preconditioner  on inputs with unequal variances one layer finds the matrix that preconditions the step
    optimizers      Adam is ahead of SGD with momentum, and its path is better conditioned
    heavy tails     inputs of heavy-tailed norm make the gradient's noise heavy-tailed, and Adam's lead larger
"""

from experiments.linear_transformer.figures import plot as plot
from experiments.linear_transformer.study import Config as Config
from experiments.linear_transformer.study import run as run
from experiments.linear_transformer.verdicts import claims as claims
