r"""Weights spent on data: how many samples of each task an interval holds.

Drawing $N_i = w_i N$ samples of task $i$ and weighting every sample alike gives the same expected
gradient as a weight $w_i$ on the mean loss of the task. `quotas` makes the integers, `QuotaCarry`
keeps them fair from interval to interval, and `split` says what is left for the losses when the
samples are drawn by other shares than the weights.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

# Remainders are read to this precision, so that rounding noise neither breaks a tie nor makes a
# share of three whole samples look like a little less than three.
_TOLERANCE = 1e-9


class QuotaCarry:
    r"""The rounding error of past quotas, which the next ones make up for.

    Hand the same carry to `quotas` at every interval. The cumulated count of a task then stays
    less than one sample from its cumulated share, whatever the number of intervals, if

    - the weights and the total stay the same, or
    - every share is at least `minimum` + 1, which intervals of useful length see to, or
    - there are at most three tasks.

    Outside these cases (four tasks or more, one of them with less than one sample to share, and
    weights that jump) no rule that doesn't know the future weights can promise it: weights
    (1,1,1,1), (0,1,1,1), (0,0,1,1) at one sample an interval defeat each one. The quotas then
    miss by as little as they can, and the carry makes up for it later.

    Args:
        num_tasks: The number of tasks $T$, at least 1.

    Attributes:
        owed: Cumulated share minus cumulated count of each task, `[T]` floats.
    """

    def __init__(self, num_tasks: int) -> None:
        self.owed = [0.0] * whole("num_tasks", num_tasks, least=1)

    def copy(self) -> QuotaCarry:
        """Returns a carry of its own with the same values, to try quotas out."""
        carry = QuotaCarry(len(self.owed))
        carry.owed = list(self.owed)
        return carry


def quotas(
    weights: Tensor | Sequence[float],
    total: int,
    minimum: int = 0,
    carry: QuotaCarry | None = None,
) -> Tensor:
    r"""Splits `total` samples between the tasks in proportion to their weights.

    The share of task $i$ is $s_i = w_i N / \sum_j w_j$. A task whose share is below the minimum is
    pinned to the minimum and the others share the rest in proportion, until none is below it.
    Without a carry the quotas are the shares rounded by largest remainder, ties by index: they sum
    to $N$ exactly and $|N_i - s_i| < 1$.

    With a carry, it is the *cumulated* share that is rounded, and the carry is charged. Among the
    tasks that may be rounded up, those go first whose next sample falls due first if the weights
    stay as they are, then those of the largest remainder. (Each sample has an interval from which
    it may and one by which it must be drawn; serving the earliest deadline meets them all
    whenever that can be done.)

    Args:
        weights: Weights `[T]`, non-negative, finite, not all zero, of any scale.
        total: $N$, the number of samples to split, at least `minimum` for every task.
        minimum: The least number of samples of a task, at least 0.
        carry: The rounding error so far, updated in place.

    Returns:
        The quotas, int64 `[T]`, on the CPU.

    Raises:
        ValueError: If a weight is negative or not finite, all are zero, or `total` is too small.

    Source:
        Eq. 12 of arXiv 2506.05607 for $N_i = w_i N$; the rounding is ours.
    """
    exact = [Fraction(weight) for weight in checked_weights(weights).tolist()]
    total = whole("total", total, least=0)
    minimum = whole("minimum", minimum, least=0)
    if total < minimum * len(exact):
        raise ValueError(
            f"`total` must hold `minimum` samples of every task: {len(exact)} tasks of {minimum} "
            f"need {minimum * len(exact)}, got {total}; raise `total` or lower `minimum`."
        )
    if carry is not None and len(carry.owed) != len(exact):
        raise ValueError(
            f"`carry` must be of as many tasks as there are weights: {len(carry.owed)} and "
            f"{len(exact)}; make a new one with QuotaCarry({len(exact)})."
        )
    shares = _shares(exact, total, minimum)
    floors = [math.floor(share) for share in shares]
    # Whole samples are kept apart from their fractions: a float holds the latter to 1e-16.
    due = [float(share - floor) for share, floor in zip(shares, floors, strict=True)]
    if carry is not None:
        due = [fraction + owed for fraction, owed in zip(due, carry.owed, strict=True)]
    rates = [float(share - minimum) for share in shares] if carry is not None else None
    counts = _round(floors, due, rates, total, minimum)
    if carry is not None:
        carry.owed = [d - (c - f) for d, c, f in zip(due, counts, floors, strict=True)]
    return torch.tensor(counts, dtype=torch.int64)


def split(weights: Tensor | Sequence[float], q: Tensor | Sequence[float] | str) -> Tensor:
    r"""Splits task weights into sampling shares `q` and the loss weights that remain.

    With $w$ and $q$ both scaled to sum one, $r_i = w_i / q_i$. Multiply the loss of each sample of
    task $i$ by $r_i$ and take the plain mean over a batch whose samples are of task $i$ with share
    $q_i$: for every $q > 0$ the expected gradient is

    $$\sum_i q_i \, r_i \, g_i = \sum_i w_i \, g_i,$$

    so `q` moves noise, never the target. Sampling by the weights *and* weighting the losses by
    them would give $w_i^2$; this function is the way to do both. The variance is least at $q_i
    \propto w_i v_i$, with $v_i$ the standard deviation of the gradient of one sample. At equal
    $v_i$ that is $q = w$, and uniform sampling has $T \sum_i w_i^2 \geq 1$ times its variance.

    Args:
        weights: Weights `[T]`, non-negative, finite, not all zero, of any scale.
        q: Sampling shares `[T]` of any scale (such as a sampler's quotas), `"weights"` (pure
            rebalancing: every $r_i$ is one), or `"uniform"` (pure loss weighting: $r_i = T w_i$).

    Returns:
        The residual loss weights $r$, `[T]`, in the dtype and on the device of `weights`; zero
        where the weight is zero.

    Raises:
        ValueError: If a weight or share is invalid, or a task with a weight is never sampled.

    Source:
        Ours.
    """
    w = checked_weights(weights)
    if isinstance(q, str):
        if q not in ("weights", "uniform"):
            raise ValueError(f"`q` must be 'weights', 'uniform' or shares [T], got {q!r}.")
        shares = w if q == "weights" else torch.ones_like(w)
    else:
        shares = checked_weights(q, argument="q")
    if len(shares) != len(w):
        raise ValueError(
            f"`q` must hold one share per task: {len(w)} weights, {len(shares)} shares."
        )
    for task, (weight, share) in enumerate(zip(w.tolist(), shares.tolist(), strict=True)):
        if weight > 0 and share == 0:
            raise ValueError(
                f"`q` must be positive where the weight is: task {task} has weight {weight:g} and "
                "share 0, so it would never be seen; give it a share."
            )
    residual = torch.where(w > 0, _sum_to_one(w) / _sum_to_one(shares), 0.0)
    if isinstance(weights, Tensor):
        dtype = weights.dtype if weights.is_floating_point() else torch.get_default_dtype()
        return residual.to(weights.device, dtype)
    return residual.to(torch.get_default_dtype())


def checked_weights(
    weights: Tensor | Sequence[float],
    names: Sequence[str] | None = None,
    argument: str = "weights",
) -> Tensor:
    """Returns weights as float64 `[T]` on the CPU, or says which task's is at fault.

    Args:
        weights: Any sequence of numbers, `[T]`.
        names: The names of the tasks, for the message; by default their indices.
        argument: What the caller calls them.

    Returns:
        The weights, float64 `[T]`.

    Raises:
        TypeError: If they aren't numbers.
        ValueError: If they are not one-dimensional, negative, not finite or all zero.
    """
    if isinstance(weights, str | Mapping):
        raise TypeError(
            f"`{argument}` must be a tensor or sequence [T], got {type(weights).__name__}."
        )
    values = torch.as_tensor(weights, dtype=torch.float64).detach().cpu()
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(
            f"`{argument}` must be of shape [T] with T >= 1, got shape {list(values.shape)}."
        )
    for task, value in enumerate(values.tolist()):
        if not (math.isfinite(value) and value >= 0):
            name = task if names is None else repr(names[task]) if task < len(names) else task
            raise ValueError(
                f"`{argument}` must be finite and non-negative: that of task {name} is {value}."
            )
    if not bool(values.any()):
        raise ValueError(f"`{argument}` must not all be zero, got {values.tolist()}.")
    return values


def whole(argument: str, value: int, least: int) -> int:
    """Returns `value` as an int if it is a whole number of at least `least`, else says so.

    Args:
        argument: The name of the argument, for the message.
        value: The value.
        least: Its lower bound.

    Returns:
        The value as a plain int.

    Raises:
        TypeError: If it isn't an integer.
        ValueError: If it is below `least`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"`{argument}` must be an integer, got {value!r}.")
    number = operator.index(value)
    if number < least:
        raise ValueError(f"`{argument}` must be at least {least}, got {number}.")
    return number


def _sum_to_one(values: Tensor) -> Tensor:
    values = values / values.max()  # so that huge ones don't add up to infinity
    return values / values.sum()


def _shares(weights: list[Fraction], total: int, minimum: int) -> list[Fraction]:
    """Shares of `total` in proportion to `weights`, none below `minimum`, in exact arithmetic."""
    free = set(range(len(weights)))
    while True:
        rest = total - minimum * (len(weights) - len(free))
        scale = rest / sum((weights[i] for i in free), Fraction())
        below = {i for i in free if weights[i] * scale < minimum}
        if not below:
            break
        free -= below
    return [w * scale if i in free else Fraction(minimum) for i, w in enumerate(weights)]


def _round(
    floors: list[int], due: list[float], rates: list[float] | None, total: int, minimum: int
) -> list[int]:
    """Counts next to `floors + due` that sum to `total`, none below `minimum`."""
    tasks = range(len(due))
    counts = [max(minimum, floors[i] + math.floor(due[i] + _TOLERANCE)) for i in tasks]
    ceilings = [floors[i] + math.ceil(due[i] - _TOLERANCE) for i in tasks]
    missing = [floors[i] + due[i] - counts[i] for i in tasks]

    def urgency(i: int) -> tuple[float, float]:
        if rates is None:
            intervals = 0.0
        elif rates[i] <= _TOLERANCE:
            intervals = math.inf
        else:
            intervals = math.ceil((1 - missing[i]) / rates[i] - _TOLERANCE)
        return intervals, -round(missing[i] / _TOLERANCE)

    spare = total - sum(counts)
    for i in sorted((i for i in tasks if counts[i] < ceilings[i]), key=urgency)[: max(spare, 0)]:
        counts[i] += 1
    # The minima of the others leave too little: take from whoever misses it least.
    for _ in range(spare, 0):
        above = [i for i in tasks if counts[i] > minimum]
        counts[min(above, key=lambda i: floors[i] + due[i] - counts[i])] -= 1
    return counts
