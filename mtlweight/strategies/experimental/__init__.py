"""Experimental strategies: their interface may still change.

`Bilevel` ones call closures for the losses of other batches; `IGBv2` trains an agent beside.
"""

from mtlweight.strategies.experimental.auto_lambda import AutoLambda
from mtlweight.strategies.experimental.bilevel import Bilevel
from mtlweight.strategies.experimental.forum import FORUM
from mtlweight.strategies.experimental.igb_v2 import IGBv2
from mtlweight.strategies.experimental.moml import MOML

__all__ = ["FORUM", "MOML", "AutoLambda", "Bilevel", "IGBv2"]
