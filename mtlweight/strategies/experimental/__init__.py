"""Experimental: strategies that train on more than the losses of a step, at a cost.

Their interface may still change: closures for other batches, and what is kept of the past.
"""

from mtlweight.strategies.experimental.auto_lambda import AutoLambda
from mtlweight.strategies.experimental.forum import FORUM
from mtlweight.strategies.experimental.igb_v2 import IGBv2
from mtlweight.strategies.experimental.moml import MOML

__all__ = ["FORUM", "MOML", "AutoLambda", "IGBv2"]
