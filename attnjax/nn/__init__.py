"""Flax NNX layers: they own parameters and call a primitive. The only room that imports flax."""

from ._attention import Attention as Attention
from ._plug import as_attention_fn as as_attention_fn
from ._transformer import Block as Block
from ._transformer import TransformerLM as TransformerLM
