"""Measures of attention: how much of it sinks into one key, and how far low precision carries it from the truth."""

from attnjax.measures._deviation import Deviation as Deviation
from attnjax.measures._deviation import Setting as Setting
from attnjax.measures._deviation import compare as compare
from attnjax.measures._deviation import deviation as deviation
from attnjax.measures._deviation import emulate as emulate
from attnjax.measures._deviation import golden as golden
from attnjax.measures._deviation import sweep as sweep
from attnjax.measures._sinks import mean_received as mean_received
from attnjax.measures._sinks import received as received
from attnjax.measures._sinks import row_shares as row_shares
from attnjax.measures._sinks import sink_rate as sink_rate
