"""Pallas kernels: functions of arrays, block maps and traceable block functions. Imports jax only."""

from pallas_kernels._target import Target as Target
from pallas_kernels._target import compile_for as compile_for
from pallas_kernels._target import current as current
