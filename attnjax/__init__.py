"""attnjax: attention as pure functions on one algebra, and what theory says of how it trains."""

from attnjax import attention as attention
from attnjax.attention import BlockSizes as BlockSizes
from attnjax.attention import Explanation as Explanation
from attnjax.attention import attend as attend
from attnjax.attention import attention_weights as attention_weights
from attnjax.attention import explain as explain
from attnjax.attention import masks as masks
from attnjax.attention import normalizers as normalizers
from attnjax.attention import scores as scores
from attnjax.attention import statistics as statistics
