"""Synthetic data as pure functions of a key."""

from attnjax.tasks._linear_regression import Prompts as Prompts
from attnjax.tasks._linear_regression import geometric_spectrum as geometric_spectrum
from attnjax.tasks._linear_regression import linear_regression as linear_regression
from attnjax.tasks._linear_regression import prompt_tokens as prompt_tokens
from attnjax.tasks._linear_regression import random_rotation as random_rotation
from attnjax.tasks._linear_regression import rotated as rotated
from attnjax.tasks._linear_regression import several_regressions as several_regressions
from attnjax.tasks._linear_sequences import InitialLaw as InitialLaw
from attnjax.tasks._linear_sequences import initial_states as initial_states
from attnjax.tasks._linear_sequences import linear_sequences as linear_sequences
from attnjax.tasks._recall import IGNORED as IGNORED
from attnjax.tasks._recall import Recall as Recall
from attnjax.tasks._recall import copying as copying
from attnjax.tasks._recall import flip_flop as flip_flop
from attnjax.tasks._recall import multi_query_recall as multi_query_recall
from attnjax.tasks._recall import slot_probabilities as slot_probabilities
from attnjax.tasks._separation import Separation as Separation
from attnjax.tasks._separation import separation as separation
from attnjax.tasks._separation import separation_readout as separation_readout
from attnjax.tasks._token_classes import Sequences as Sequences
from attnjax.tasks._token_classes import TokenClasses as TokenClasses
from attnjax.tasks._token_classes import sequences as sequences
from attnjax.tasks._token_classes import token_classes as token_classes
from attnjax.tasks._window_sums import window_sums as window_sums
