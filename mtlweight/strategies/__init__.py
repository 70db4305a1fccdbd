"""The strategies by name. To add one, write its class and put it into this table."""

from mtlweight.strategies.achievement import DTP, FMTL, Achievement, FocalAchievement
from mtlweight.strategies.adaptive import VQGAN
from mtlweight.strategies.aligned import AlignedMTL
from mtlweight.strategies.annealing import LRA
from mtlweight.strategies.cagrad import CAGrad
from mtlweight.strategies.config import ConFIG
from mtlweight.strategies.double_sampling import MoDo, SDMGrad
from mtlweight.strategies.dual_cone import DualProj, UPGrad
from mtlweight.strategies.dwa import DWA
from mtlweight.strategies.excess_risk import ExcessMTL
from mtlweight.strategies.experimental import FORUM, MOML, AutoLambda, IGBv2
from mtlweight.strategies.famo import FAMO
from mtlweight.strategies.fixed import Equal, Fixed
from mtlweight.strategies.geometric import GLS, ScaleInvariant
from mtlweight.strategies.gradient_mixing import PiKE, VarianceAware
from mtlweight.strategies.gradnorm import GradNorm
from mtlweight.strategies.gradvac import GradVac
from mtlweight.strategies.grouping import LDCMTL, GO4Align
from mtlweight.strategies.improvable_gap import IGBv1
from mtlweight.strategies.imtl import IMTL, IMTLG
from mtlweight.strategies.krum import Krum
from mtlweight.strategies.loss_statistics import LBTW, SLAW, CoV
from mtlweight.strategies.loss_trends import ReLoBRaLo, SoftAdapt
from mtlweight.strategies.masks import GradDrop, TrimmedMean
from mtlweight.strategies.mgda import MGDA
from mtlweight.strategies.mixing import DoReMi, OnlineMixing
from mtlweight.strategies.nash import FairGrad, NashMTL
from mtlweight.strategies.norms import DBMTL, AvgNorm
from mtlweight.strategies.output_balance import EnCodec
from mtlweight.strategies.pcgrad import PCGrad
from mtlweight.strategies.preference_scalarizations import COSMOS, PBI
from mtlweight.strategies.random import RLW
from mtlweight.strategies.samples import SLGrad
from mtlweight.strategies.tracking import MConFIG, MoCo
from mtlweight.strategies.uncertainty import IMTLL, UW, UWO, UWSO, RevisedUW
from mtlweight.strategies.worst_case import BMTL, STCH, GroupDRO, Tchebycheff
from mtlweight.strategy import Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    "achievement": Achievement,
    "aligned_mtl": AlignedMTL,
    "auto_lambda": AutoLambda,
    "avg_norm": AvgNorm,
    "bmtl": BMTL,
    "cagrad": CAGrad,
    "config": ConFIG,
    "cosmos": COSMOS,
    "cov": CoV,
    "db_mtl": DBMTL,
    "doremi": DoReMi,
    "dtp": DTP,
    "dual_proj": DualProj,
    "dwa": DWA,
    "encodec": EnCodec,
    "equal": Equal,
    "excess_mtl": ExcessMTL,
    "fairgrad": FairGrad,
    "famo": FAMO,
    "fixed": Fixed,
    "fmtl": FMTL,
    "focal_achievement": FocalAchievement,
    "forum": FORUM,
    "gls": GLS,
    "go4align": GO4Align,
    "graddrop": GradDrop,
    "gradnorm": GradNorm,
    "gradvac": GradVac,
    "group_dro": GroupDRO,
    "igb_v1": IGBv1,
    "igb_v2": IGBv2,
    "imtl": IMTL,
    "imtl_g": IMTLG,
    "imtl_l": IMTLL,
    "krum": Krum,
    "lbtw": LBTW,
    "ldc_mtl": LDCMTL,
    "lra": LRA,
    "m_config": MConFIG,
    "mgda": MGDA,
    "moco": MoCo,
    "modo": MoDo,
    "moml": MOML,
    "nash_mtl": NashMTL,
    "online_mixing": OnlineMixing,
    "pbi": PBI,
    "pcgrad": PCGrad,
    "pike": PiKE,
    "relobralo": ReLoBRaLo,
    "revised_uw": RevisedUW,
    "rlw": RLW,
    "scale_invariant": ScaleInvariant,
    "sdmgrad": SDMGrad,
    "slaw": SLAW,
    "slgrad": SLGrad,
    "softadapt": SoftAdapt,
    "stch": STCH,
    "tchebycheff": Tchebycheff,
    "trimmed_mean": TrimmedMean,
    "upgrad": UPGrad,
    "uw": UW,
    "uw_o": UWO,
    "uw_so": UWSO,
    "variance_aware": VarianceAware,
    "vqgan": VQGAN,
}
