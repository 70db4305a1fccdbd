"""Any strategy on tasks of three kinds: python examples/plain_loop.py dwa gls pcgrad.

One network reads a handwritten digit and says which it is (cross-entropy), whether it is odd
(binary cross-entropy), and how much ink it has (squared error).
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import mtlweight

TASKS = ("digit", "odd", "ink")
# What networks for one task each reach, and fixed weights, for the strategies that ask for them.
OPTIONS = {"references": [0.98, 0.98, 0.95], "weights": [0.2, 0.3, 0.5]}


def losses_of(outputs: Tensor, digit: Tensor, ink: Tensor) -> dict[str, Tensor]:
    """The losses, by task."""
    odd = F.binary_cross_entropy_with_logits(outputs[:, 10], (digit % 2).float())
    return {
        "digit": F.cross_entropy(outputs[:, :10], digit),
        "odd": odd,
        "ink": F.mse_loss(outputs[:, 11], ink),
    }


def metrics_of(outputs: Tensor, digit: Tensor, ink: Tensor) -> dict[str, float]:
    """Two accuracies and the share of variance explained: at most 1, and larger is better."""
    digits, odd = outputs[:, :10].argmax(1) == digit, (outputs[:, 10] > 0) == (digit % 2 == 1)
    explained = (1 - F.mse_loss(outputs[:, 11], ink) / ink.var(correction=0)).clamp(0, 1)
    return {
        "digit": float(digits.float().mean()),
        "odd": float(odd.float().mean()),
        "ink": float(explained),
    }


def main(name: str, epochs: int = 10) -> None:
    """Trains with the strategy of a name, and prints metrics and weights per epoch."""
    torch.manual_seed(0)
    pixels, digit = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    image = pixels.float() / 16
    ink = (image.sum(1) - image.sum(1).mean()) / image.sum(1).std()
    train, val = torch.randperm(len(image)).split([1400, 397])
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 12)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    needed = mtlweight.options.options_of(mtlweight.available()[name]).model_fields
    strategy = mtlweight.build(name, TASKS, **{k: v for k, v in OPTIONS.items() if k in needed})
    print(f"\n{name:<8}" + "".join(f"{task:>9}{'weight':>9}" for task in TASKS))
    for epoch in range(epochs):
        for rows in train[torch.randperm(len(train))].split(32):
            loss = strategy(losses_of(model(image[rows]), digit[rows], ink[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            metrics = metrics_of(model(image[val]), digit[val], ink[val])
        strategy.end_epoch(metrics)
        print(
            f"epoch {epoch + 1:<2}"
            + "".join(f"{metrics[t]:9.3f}{strategy.named_weights[t]:9.3f}" for t in TASKS)
        )


if __name__ == "__main__":
    for strategy_name in sys.argv[1:] or ["equal"]:
        main(strategy_name)
