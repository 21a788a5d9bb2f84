"""Toy models that learn, as init/step and as gradient flow, and the closed forms that they are held against.

`linear_attention` trains every parameter of one linear self-attention layer on sampled prompts;
`linear_attention_theory` has the two-block gradient flow that it follows on average, its minimum, its time course and
its risk at any prompt length. `scan_and_snap` trains one layer of softmax attention over classes of tokens;
`scan_and_snap_theory` says how its decoder and its attention move.
"""

from attnjax.dynamics import linear_attention as linear_attention
from attnjax.dynamics import linear_attention_theory as linear_attention_theory
from attnjax.dynamics import scan_and_snap as scan_and_snap
from attnjax.dynamics import scan_and_snap_theory as scan_and_snap_theory
