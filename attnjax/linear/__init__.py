"""Linear-time attention: a state of fixed size instead of all keys, on one recurrence algebra."""

from attnjax.linear._attend import Form as Form
from attnjax.linear._attend import State as State
from attnjax.linear._attend import attend as attend
from attnjax.linear._decays import aaren as aaren
from attnjax.linear._decays import gated_linear_attention as gated_linear_attention
from attnjax.linear._decays import latte as latte
from attnjax.linear._decays import light_net as light_net
from attnjax.linear._decays import lightning_decay as lightning_decay
from attnjax.linear._decays import retention as retention
from attnjax.linear._decays import retention_decay as retention_decay
from attnjax.linear._decays import state_space as state_space
from attnjax.linear._decays import wkv as wkv
from attnjax.linear._delta import delta_rule as delta_rule
from attnjax.linear._delta import titans as titans
from attnjax.linear._feature_maps import elu_plus_one as elu_plus_one
from attnjax.linear._feature_maps import fastmax as fastmax
from attnjax.linear._feature_maps import linear_attention as linear_attention
from attnjax.linear._feature_maps import log_normal as log_normal
from attnjax.linear._feature_maps import log_normal_scales as log_normal_scales
from attnjax.linear._feature_maps import taylor_features as taylor_features
from attnjax.linear._feature_maps import weights as weights
