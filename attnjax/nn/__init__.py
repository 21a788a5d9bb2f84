"""Flax NNX layers: they own parameters and call a primitive. The only room that imports flax."""

from ._attention import Attention as Attention
from ._cache import Cache as Cache
from ._convolutions import BaseConv as BaseConv
from ._convolutions import LightConv as LightConv
from ._generate import generate as generate
from ._linear import MECHANISMS as MECHANISMS
from ._linear import LinearAttention as LinearAttention
from ._linear import LinearState as LinearState
from ._plug import as_attention_fn as as_attention_fn
from ._transformer import Block as Block
from ._transformer import TransformerLM as TransformerLM
