"""Folds on TPU."""

from pallas_kernels.attention.tpu._call import run as run
