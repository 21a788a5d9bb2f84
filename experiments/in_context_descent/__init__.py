"""One layer of linear attention is one step of gradient descent in context; trained layers find it.

von Oswald, Niklasson, Randazzo, Sacramento, Mordvintsev, Zhmoginov, Vladymyrov, 2023, arXiv 2212.07677. Checked here:

    construction   weights made by hand take exactly the steps that gradient descent takes, in float64
    rate           the best rate of one step, and its risk, from the inputs' second and fourth moments
    trained        Adam on all weights ends at that step: same risk, same predictions, same sensitivity
    deeper         two layers reach what two steps can that also move the inputs (GD++)
    wider inputs   the trained layer fails on inputs of another variance as that one step does
"""

from experiments.in_context_descent.figures import plot as plot
from experiments.in_context_descent.study import Config as Config
from experiments.in_context_descent.study import run as run
from experiments.in_context_descent.verdicts import claims as claims
