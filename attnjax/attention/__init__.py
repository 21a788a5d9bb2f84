"""Attention as a fold over keys: one function, composed of a mask, a score and a normalizer."""

from attnjax.attention import masks as masks
from attnjax.attention import normalizers as normalizers
from attnjax.attention import scores as scores
from attnjax.attention import statistics as statistics
from attnjax.attention._attend import attend as attend
from attnjax.attention._attend import attention_weights as attention_weights
from attnjax.attention._attend import explain as explain
from attnjax.attention._plan import BlockSizes as BlockSizes
from attnjax.attention._plan import Explanation as Explanation
