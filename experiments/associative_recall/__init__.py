"""Recall by key: what attention does in two layers, and how much state others need for it.

Arora et al., 2023, Zoology, arXiv 2312.04927: pairs of a key and a value, then keys again, each to be answered with its
value. Checked here:

    by-hand    two layers of attention whose weights are written down answer every question, at any width
    learned    attention learns it where a gated convolution does not, in as many steps
    state      models with a fixed state recall the more the larger it is, and less than attention, whose state grows
    selected   attention of only those tokens that have occurred before is enough
    free       convolutions whose kernels do not compare tokens stay at chance
"""

from experiments.associative_recall.figures import plot as plot
from experiments.associative_recall.study import Config as Config
from experiments.associative_recall.study import run as run
from experiments.associative_recall.verdicts import claims as claims
