"""Named mechanisms: short functions of arrays and parameters, composed of attention, linear attention, convolutions."""

from attnjax.mechanisms._chela import Chela as Chela
from attnjax.mechanisms._chela import chela as chela
from attnjax.mechanisms._chela import short_long_kernel as short_long_kernel
from attnjax.mechanisms._folded_context import FoldedContext as FoldedContext
from attnjax.mechanisms._folded_context import Memory as Memory
from attnjax.mechanisms._folded_context import folded_context as folded_context
from attnjax.mechanisms._gated_attention import GatedAttention as GatedAttention
from attnjax.mechanisms._gated_attention import gated_attention as gated_attention
from attnjax.mechanisms._mega import Mega as Mega
from attnjax.mechanisms._mega import mega as mega
from attnjax.mechanisms._product_keys import product_key_memory as product_key_memory
from attnjax.mechanisms._product_keys import top_products as top_products
from attnjax.mechanisms._routing import Routing as Routing
from attnjax.mechanisms._routing import chunk_experts as chunk_experts
from attnjax.mechanisms._routing import route_chunks as route_chunks
