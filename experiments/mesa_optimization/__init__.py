"""Mesa-optimization: autoregressive training makes linear attention take one gradient step in context, sometimes.

Causal linear attention learns to predict the next state of x_{t+1} = W x_t (Zheng, Huang, Wang, Wu, Zhu, Li, 2024,
arXiv 2405.16845). Two diagonals move, and their product has a limit that depends on how the first state is drawn.
Checked here, on four laws of sequences:

    gaussian   the limit, its time course, and that only a part of the next state is predicted
    sparse     the limit that recovers W
    full-one   breaks the theorem's assumption: the weights are no multiples of the identity
    decaying   W is not unitary, which the paper excludes: another limit, own derivation
"""

from experiments.mesa_optimization.figures import plot as plot
from experiments.mesa_optimization.study import Config as Config
from experiments.mesa_optimization.study import run as run
from experiments.mesa_optimization.verdicts import claims as claims
