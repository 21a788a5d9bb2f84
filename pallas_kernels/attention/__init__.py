"""Folds over tiles as fused kernels."""

from pallas_kernels.attention._api import check as check
from pallas_kernels.attention._api import fold as fold
from pallas_kernels.attention._flat import TooLarge as TooLarge
from pallas_kernels.attention._flat import Unsupported as Unsupported
