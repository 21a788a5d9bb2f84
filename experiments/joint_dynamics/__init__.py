"""A perceptron and the attention below it move together: what is conserved, and why attention narrows and then widens.

JoMA (Tian, Wang, Zhang, Chen, Du, 2024, arXiv 2310.00535) eliminates attention from the training of a Transformer
block. Checked here:

    invariants   linear and exp attention are a function of the perceptron's first matrix, at any depth above it and for
                 any activation, exactly; softmax attention is nearly so, by the paper's Figure 2
    nonlinear    a unit with a nonlinear activation learns its largest weights first; attention's entropy falls, rises
    linear       a unit without one gives all to the winner, in a finite time that has a closed form
"""

from experiments.joint_dynamics.figures import plot as plot
from experiments.joint_dynamics.study import Config as Config
from experiments.joint_dynamics.study import run as run
from experiments.joint_dynamics.verdicts import claims as claims
