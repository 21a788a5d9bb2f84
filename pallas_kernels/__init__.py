"""Pallas kernels: functions of arrays, block maps and traceable block functions. Imports jax only."""
