"""Folds on Hopper GPUs."""

from pallas_kernels.attention.gpu._call import run as run
