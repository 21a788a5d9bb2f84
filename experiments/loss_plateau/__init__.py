"""A Transformer's loss stands still, then falls at once: what it is at, what moves meanwhile, and what ends it.

Gopalani and Hu, 2025, arXiv 2506.13688: one layer of linear attention learns sums over a moving window. Checked here:

    height        the plateau is the loss of knowing the copied sums, and of the others their distribution alone
    hidden        attention moves to where it is needed before accuracy does
    symptoms      on the plateau outputs repeat and hidden states are alike, afterwards neither
    intervention  attention made larger where it is needed shortens the plateau, smaller lengthens it
"""

from experiments.loss_plateau.figures import plot as plot
from experiments.loss_plateau.study import Config as Config
from experiments.loss_plateau.study import run as run
from experiments.loss_plateau.verdicts import claims as claims
