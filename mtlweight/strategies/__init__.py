"""The strategies by name. To add one, write its class and put it into this table."""

from mtlweight.strategies.achievement import DTP, Achievement, FocalAchievement
from mtlweight.strategies.dwa import DWA
from mtlweight.strategies.fixed import Equal, Fixed
from mtlweight.strategies.geometric import GLS
from mtlweight.strategies.mgda import MGDA
from mtlweight.strategies.norms import DBMTL, AvgNorm
from mtlweight.strategies.pcgrad import PCGrad
from mtlweight.strategies.random import RLW
from mtlweight.strategies.uncertainty import IMTLL, UW
from mtlweight.strategy import Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    "achievement": Achievement,
    "avg_norm": AvgNorm,
    "db_mtl": DBMTL,
    "dtp": DTP,
    "dwa": DWA,
    "equal": Equal,
    "fixed": Fixed,
    "focal_achievement": FocalAchievement,
    "gls": GLS,
    "imtl_l": IMTLL,
    "mgda": MGDA,
    "pcgrad": PCGrad,
    "rlw": RLW,
    "uw": UW,
}
