"""A byte-level Transformer learns real text, with any attention: bits per byte, and how its attention evolves.

Trains a small pre-norm Transformer on text split by file (by default Python's own standard library) and compares its
bits per byte on the held-out files with a unigram, a bigram and gzip. While it trains, the entropy of the attention,
the attention on the first position (the sink) and the attention that each key receives are measured for every layer
and head, streamed beside the output. A second model, which differs in its attention only, is trained for comparison.

    --text FILE ...   other text     --attention NAME   other weights, or linear time     --window, --sinks, --positions
    --resume          go on after Ctrl-C, a kill or a power cut: the result is the same to the last bit
"""

from experiments.language_model.figures import plot as plot
from experiments.language_model.study import Config as Config
from experiments.language_model.study import run as run
from experiments.language_model.verdicts import claims as claims
