"""Toy models that learn, as init/step and as gradient flow, and the closed forms that they are held against.

`linear_attention` trains every parameter of one linear self-attention layer on sampled prompts;
`linear_attention_theory` has the two-block gradient flow that it follows on average, its minimum, its time course and
its risk at any prompt length. `scan_and_snap` trains one layer of softmax attention over classes of tokens;
`scan_and_snap_theory` says how its decoder and its attention move. `autoregressive_attention` predicts the next state
of a sequence by causal linear attention; `autoregressive_attention_theory` has the flow of its two diagonals and where
they end. `softmax_attention` trains several softmax heads on the prompts of linear regression;
`softmax_attention_theory` has what such heads can reach at finite size.
"""

from attnjax.dynamics import autoregressive_attention as autoregressive_attention
from attnjax.dynamics import autoregressive_attention_theory as autoregressive_attention_theory
from attnjax.dynamics import linear_attention as linear_attention
from attnjax.dynamics import linear_attention_theory as linear_attention_theory
from attnjax.dynamics import scan_and_snap as scan_and_snap
from attnjax.dynamics import scan_and_snap_theory as scan_and_snap_theory
from attnjax.dynamics import softmax_attention as softmax_attention
from attnjax.dynamics import softmax_attention_theory as softmax_attention_theory
