"""The T x T problems inside strategies: float64 on the host, exact, and free of scale.

Each checks what it found, and raises `RuntimeError` if it is not the solution. NumPy and not
PyTorch, whose operations take ten times as long on matrices of this size.
"""

from mtlweight.solvers.alpha_fairness import alpha_fair_weights
from mtlweight.solvers.conflict_averse import conflict_averse_weights
from mtlweight.solvers.dual_cone import dual_cone_weights
from mtlweight.solvers.min_norm import directed_min_norm_point, min_norm_point
from mtlweight.solvers.simplex import simplex_projection

__all__ = [
    "alpha_fair_weights",
    "conflict_averse_weights",
    "directed_min_norm_point",
    "dual_cone_weights",
    "min_norm_point",
    "simplex_projection",
]
