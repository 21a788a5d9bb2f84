"""A context is worth a rank-one update of the perceptron: the same predictions without it.

Dherin, Munn, Mazzawi, Wunder, Gonzalvo, 2025, arXiv 2507.16003. A block with softmax attention learns linear regression
in context; then the context is taken away and the update put in its place. Checked here:

    identity    predictions are equal, before and after training, and so is the loss on fresh prompts
    rank        the update has rank one
    descent     token by token it is gradient descent, whose steps become smaller as the context grows
"""

from experiments.implicit_update.figures import plot as plot
from experiments.implicit_update.study import Config as Config
from experiments.implicit_update.study import run as run
from experiments.implicit_update.verdicts import claims as claims
