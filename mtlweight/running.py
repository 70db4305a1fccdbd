"""What strategies remember between steps: running means and the optimizer of learned weights.

State is rebound, never written in place: a step that is refused leaves it as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mtlweight.state import Rebound

Index = slice | Tensor


def sent(host: Tensor, like: Tensor) -> Tensor:
    """Returns a tensor of the host on the device of another, which nothing waits for."""
    return host.to(like.device, non_blocking=True)


def updated(old: Tensor, present: Index, new: Tensor) -> Tensor:
    """Returns `old` `[T]` with the entries of the present tasks replaced by `new` `[n]`."""
    if isinstance(present, slice):
        return new.to(old.dtype)
    return old.index_copy(0, present, new.to(old.dtype))


def filled(num_tasks: int, present: Index, values: Tensor) -> Tensor:
    """Returns the values `[n, ...]` of the present tasks among zeros for the absent ones."""
    if isinstance(present, slice):
        return values
    return values.new_zeros(num_tasks, *values.shape[1:]).index_copy_(0, present, values)


def widened(memory: Tensor, gradients: Tensor) -> Tensor:
    """Returns remembered gradients `[..., P]`, with zeros for what was found to be shared since.

    Raises:
        ValueError: What is shared has become less.
    """
    missing = gradients.shape[-1] - memory.shape[-1]
    if missing < 0:
        raise ValueError(
            f"What the tasks share has {gradients.shape[-1]} numbers in this step, and had "
            f"{memory.shape[-1]}: give `shared=encoder.parameters()`, the same in each step."
        )
    memory = memory.to(gradients)
    return F.pad(memory, (0, missing)) if missing else memory


class RunningMean(Rebound):
    """The mean of T numbers since the latest reset, each over the steps in which it was there.

    The sums carry what rounding took from them (Kahan), or they would drift over a long run.
    """

    sums: Tensor
    lost: Tensor
    counts: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        for name in ("sums", "lost", "counts"):
            self.register_buffer(name, torch.zeros(num_tasks))

    def add(self, present: Index, values: Tensor) -> None:
        """Records the values `[n]` of the present tasks."""
        old = self.sums[present]
        added = values.to(old) - self.lost[present]
        new = old + added
        self.sums = updated(self.sums, present, new)
        self.lost = updated(self.lost, present, (new - old) - added)
        self.counts = updated(self.counts, present, self.counts[present] + 1)

    def mean(self, default: Tensor) -> Tensor:
        """Returns the means `[T]`, and those of `default` where nothing was recorded."""
        return torch.where(self.counts > 0, self.sums / self.counts.clamp_min(1), default)

    def reset(self) -> None:
        """Forgets what was recorded."""
        for name in ("sums", "lost", "counts"):
            setattr(self, name, torch.zeros_like(getattr(self, name)))


class Adam(Rebound):
    r"""Adam on one number per task, with the gradient given, within [-10, 10].

    Absent tasks stand still.

    $$m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
    x \leftarrow x - \eta\, \hat m / (\sqrt{\hat v} + \epsilon)$$

    Source: Kingma & Ba, *Adam*, ICLR 2015, algorithm 1.
    """

    first: Tensor
    second: Tensor
    counts: Tensor

    def __init__(self, num_tasks: int, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.betas = (0.9, 0.999)
        self.epsilon = 1e-8
        self.register_buffer("first", torch.zeros(num_tasks))
        self.register_buffer("second", torch.zeros(num_tasks))
        self.register_buffer("counts", torch.zeros(num_tasks))

    def step(self, x: Tensor, present: Index, gradient: Tensor) -> Tensor:
        """Returns `x` `[T]` after one step along the gradient `[n]` of the present tasks."""
        beta1, beta2 = self.betas
        # One spike must not fill the second moment for good. Its scale does not matter to Adam.
        gradient = gradient.to(x.dtype).clamp(-10, 10)
        count = self.counts[present] + 1
        first = torch.lerp(gradient, self.first[present], beta1)
        second = torch.lerp(gradient.square(), self.second[present], beta2)
        unbiased = first / (1 - beta1**count)
        scale = (second / (1 - beta2**count)).sqrt() + self.epsilon
        self.first = updated(self.first, present, first)
        self.second = updated(self.second, present, second)
        self.counts = updated(self.counts, present, count)
        return updated(x, present, x[present] - self.learning_rate * unbiased / scale)
