"""Toy models that learn, as init/step and as gradient flow, and the closed forms that they are held against.

`linear_attention` trains every parameter of one linear self-attention layer on sampled prompts;
`linear_attention_theory` has the two-block gradient flow that it follows on average, its minimum, its time course and
its risk at any prompt length. `linear_transformer` has several such layers; `linear_transformer_theory` has the least
risk of as many steps of gradient descent. `softmax_attention` trains several softmax heads on the same prompts;
`softmax_attention_theory` has what such heads can reach at finite size. `implicit_update` puts a rank-one change of a
block's perceptron in the place of its context.

`scan_and_snap` trains one layer of softmax attention over classes of tokens; `scan_and_snap_theory` says how its
decoder and its attention move. `joint_mlp_attention` trains attention and the perceptron above it together;
`joint_mlp_attention_theory` has what is conserved. `autoregressive_attention` predicts the next state of a sequence by
causal linear attention; `autoregressive_attention_theory` has the flow of its two diagonals and where they end.
`abrupt_learning` writes sums over a moving window; `abrupt_learning_theory` has the loss at which it rests before.
"""

from attnjax.dynamics import abrupt_learning as abrupt_learning
from attnjax.dynamics import abrupt_learning_theory as abrupt_learning_theory
from attnjax.dynamics import autoregressive_attention as autoregressive_attention
from attnjax.dynamics import autoregressive_attention_theory as autoregressive_attention_theory
from attnjax.dynamics import implicit_update as implicit_update
from attnjax.dynamics import joint_mlp_attention as joint_mlp_attention
from attnjax.dynamics import joint_mlp_attention_theory as joint_mlp_attention_theory
from attnjax.dynamics import linear_attention as linear_attention
from attnjax.dynamics import linear_attention_theory as linear_attention_theory
from attnjax.dynamics import linear_transformer as linear_transformer
from attnjax.dynamics import linear_transformer_theory as linear_transformer_theory
from attnjax.dynamics import scan_and_snap as scan_and_snap
from attnjax.dynamics import scan_and_snap_theory as scan_and_snap_theory
from attnjax.dynamics import softmax_attention as softmax_attention
from attnjax.dynamics import softmax_attention_theory as softmax_attention_theory
