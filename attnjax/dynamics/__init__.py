"""Toy models that learn, as init/step and as gradient flow, and the closed forms that they are held against.

`linear_attention` trains every parameter of one linear self-attention layer on sampled prompts;
`linear_attention_theory` has the two-block gradient flow that it follows on average, its minimum, its time course and
its risk at any prompt length.
"""

from attnjax.dynamics import linear_attention as linear_attention
from attnjax.dynamics import linear_attention_theory as linear_attention_theory
