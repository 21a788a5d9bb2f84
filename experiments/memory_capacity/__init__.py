"""What a memory of fixed size holds: laws of noise and capacity, and of memories that are trained while they are read.

Linear attention is an associative memory (Qiao, 2025, arXiv 2508.08289); other writes correct it, decay, or descend on
a loss (Titans, Behrouz et al., 2025, arXiv 2501.00663; Miras, arXiv 2504.13173). Nothing is trained in advance. Here:

    storing     read noise, how many pairs fit, heads, layers, and writes by Hebb, delta, decay, covariance and Oja,
                each beside a closed form
    recall      words found again by softmax, Taylor, linear, delta and elu + 1, beside the noise of their kernels
    learning    learning curves through a change of task, outliers under two losses, and chunks of gradients
"""

from experiments.memory_capacity.figures import plot as plot
from experiments.memory_capacity.study import Config as Config
from experiments.memory_capacity.study import run as run
from experiments.memory_capacity.verdicts import claims as claims
