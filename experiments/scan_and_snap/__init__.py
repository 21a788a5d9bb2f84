"""Scan and Snap: one layer of attention learns which tokens tell the next one, then freezes its choice.

One layer of softmax attention and a linear decoder predict the token that follows a class of sequences (Tian, Wang,
Chen, Du, 2023, arXiv 2305.16380). Attention scans for tokens of the class alone and drops those that classes share,
until the decoder has said what it knows and attention snaps. Checked here:

    theorems     the decoder's and the attention's motion, integrated in float64, against the closed forms
    loss trace   SGD on sampled sequences against the authors' own log
    Figure 6     how sparse attention ends, over learning rates and numbers of classes, against the authors' own table
"""

from experiments.scan_and_snap.figures import plot as plot
from experiments.scan_and_snap.study import Config as Config
from experiments.scan_and_snap.study import run as run
from experiments.scan_and_snap.verdicts import claims as claims
