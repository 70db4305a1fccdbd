"""The networks and batches that a step is taken on."""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

OUTPUTS = 8


@dataclass(frozen=True)
class Size:
    """How large the problems are; the tests take small ones."""

    widths: tuple[int, ...] = (128, 512, 1024, 400)
    batch: int = 256
    images: int = 32
    pixels: int = 64
    channels: int = 24
    crops: int = 4
    crop: int = 32


FULL = Size()


class Problem(ABC):
    """A network that T tasks share, and what a step on it computes.

    Attributes:
        name: What it is called in the tables.
        tasks: The names of the tasks.
        encoder: What the tasks share.
        heads: What only one task uses, by task.
        samples: The number of different batches.
    """

    samples = 3

    def __init__(self, name: str, encoder: nn.Module, heads: dict[str, nn.Module]) -> None:
        self.name = name
        self.tasks = tuple(heads)
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)
        self._parameters = [*encoder.parameters(), *self.heads.parameters()]

    @property
    def shared_size(self) -> int:
        """The number P of shared parameters."""
        return sum(parameter.numel() for parameter in self.encoder.parameters())

    def clear(self) -> None:
        """Forgets the gradients, as an optimizer does before each step."""
        for parameter in self._parameters:
            parameter.grad = None

    @functools.cached_property
    def twin(self) -> Problem:
        """A copy, for those who put hooks on the network."""
        return copy.deepcopy(self)

    @abstractmethod
    def forward(
        self, batch: int = 0, run: Callable[..., dict[str, Tensor]] | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Returns the features that the tasks share, if there are any, and the losses.

        Args:
            batch: Which batch.
            run: What to run in place of the network: inputs to outputs, by task.
        """

    def whole(self) -> Tensor:
        """Returns the summed loss of one batch, as plain training computes it."""
        return torch.stack(list(self.forward()[1].values())).sum()


class OneBatch(Problem):
    """Each sample has a target for every task: a trunk, and a linear head for each task."""

    def __init__(self, name: str, encoder: nn.Module, inputs: Tensor, tasks: int) -> None:
        with torch.no_grad():
            width = encoder(inputs[:2]).shape[1]
        names = [f"task{i}" for i in range(tasks)]
        super().__init__(name, encoder, {task: nn.Linear(width, OUTPUTS) for task in names})
        self.inputs = [inputs, *(torch.randn_like(inputs) for _ in range(self.samples - 1))]
        self.targets = [
            {task: torch.randn(len(inputs), OUTPUTS) for task in names} for _ in range(self.samples)
        ]

    def forward(
        self, batch: int = 0, run: Callable[..., dict[str, Tensor]] | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        features = None
        if run is None:
            features = self.encoder(self.inputs[batch])
            outputs = {task: head(features) for task, head in self.heads.items()}
        else:
            outputs = run(self.inputs[batch])
        targets = self.targets[batch]
        return features, {task: F.mse_loss(out, targets[task]) for task, out in outputs.items()}


class SubBatches(Problem):
    """Each task has samples of its own, and one network serves them all, task by task."""

    def __init__(self, name: str, network: nn.Module, inputs: dict[str, Tensor]) -> None:
        super().__init__(name, network, {task: nn.Identity() for task in inputs})
        self.inputs = [
            {task: x if i == 0 else torch.randn_like(x) for task, x in inputs.items()}
            for i in range(self.samples)
        ]
        self.targets = [
            {task: torch.randn_like(x) for task, x in inputs.items()} for _ in range(self.samples)
        ]

    def forward(
        self, batch: int = 0, run: Callable[..., dict[str, Tensor]] | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        losses = {}
        for task, x in self.inputs[batch].items():
            output = self.encoder(x) if run is None else run(x, task)[task]
            losses[task] = F.l1_loss(output, self.targets[batch][task])
        return None, losses

    def whole(self) -> Tensor:
        """Returns the loss of all tasks' samples in one batch."""
        x = torch.cat(list(self.inputs[0].values()))
        return F.l1_loss(self.encoder(x), torch.cat(list(self.targets[0].values())))


def mlp(tasks: int, size: Size = FULL) -> Problem:
    """A perceptron, at full size of a million parameters."""
    layers: list[nn.Module] = []
    for before, after in zip(size.widths, size.widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    inputs = torch.randn(size.batch, size.widths[0])
    return OneBatch("mlp", nn.Sequential(*layers), inputs, tasks)


def resnet18(tasks: int, size: Size = FULL) -> Problem:
    """ResNet-18, at full size on images of 64 x 64."""
    from torchvision.models import resnet18 as build

    encoder: Any = build()
    encoder.fc = nn.Identity()
    inputs = torch.randn(size.images, 3, size.pixels, size.pixels)
    return OneBatch("resnet18", encoder, inputs, tasks)


def conv(tasks: int, size: Size = FULL) -> Problem:
    """A network from images to images; each task has its own samples."""
    c = size.channels
    body = [m for _ in range(4) for m in (nn.Conv2d(c, c, 3, padding=1), nn.ReLU())]
    network = nn.Sequential(
        nn.Conv2d(3, c, 3, padding=1), nn.ReLU(), *body, nn.Conv2d(c, 3, 3, padding=1)
    )
    inputs = {f"task{i}": torch.randn(size.crops, 3, size.crop, size.crop) for i in range(tasks)}
    return SubBatches("conv", network, inputs)


PROBLEMS = {"mlp": mlp, "resnet18": resnet18, "conv": conv}


@functools.lru_cache(maxsize=1)
def build_problem(name: str, tasks: int, size: Size = FULL) -> Problem:
    """Returns a problem; the same one as long as no other is asked for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PROBLEMS[name](tasks, size)
