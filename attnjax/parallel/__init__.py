"""Attention over many devices."""

from attnjax.parallel._attend import all_to_all_attend as all_to_all_attend
from attnjax.parallel._attend import ring_attend as ring_attend
from attnjax.parallel._attend import visited_tiles as visited_tiles
from attnjax.parallel._layout import Layout as Layout
from attnjax.parallel._layout import layout as layout
from attnjax.parallel._placement import Placement as Placement
from attnjax.parallel._placement import contiguous as contiguous
from attnjax.parallel._placement import zigzag as zigzag
from attnjax.parallel._states import state_passing as state_passing
