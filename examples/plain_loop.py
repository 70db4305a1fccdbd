"""Any strategy on a problem of three kinds of tasks: python examples/plain_loop.py dwa gls pcgrad.

One network reads a handwritten digit, and answers three questions about it: which digit it is
(cross-entropy over ten classes), whether it is odd (binary), and how much ink it has (regression).
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import mtlweight

TASKS = ("digit", "odd", "ink")
EPOCHS, BATCH = 8, 64


def losses_of(outputs: Tensor, digit: Tensor, ink: Tensor) -> dict[str, Tensor]:
    return {
        "digit": F.cross_entropy(outputs[:, :10], digit),
        "odd": F.binary_cross_entropy_with_logits(outputs[:, 10], (digit % 2).float()),
        "ink": F.mse_loss(outputs[:, 11], ink),
    }


def metrics_of(outputs: Tensor, digit: Tensor, ink: Tensor) -> dict[str, float]:
    """Two accuracies and the share of variance explained: all at most 1, and larger is better."""
    explained = 1 - F.mse_loss(outputs[:, 11], ink) / ink.var(correction=0)
    right = outputs[:, :10].argmax(1) == digit, (outputs[:, 10] > 0) == (digit % 2 == 1)
    values = [right[0].float().mean(), right[1].float().mean(), explained.clamp(0, 1)]
    return {task: float(value) for task, value in zip(TASKS, values, strict=True)}


def main(name: str) -> None:
    torch.manual_seed(0)
    pixels, digit = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    image = pixels.float() / 16
    ink = (image.sum(1) - image.sum(1).mean()) / image.sum(1).std()
    train, val = torch.randperm(len(image)).split([1400, 397])
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    references = {"digit": 0.98, "odd": 0.98, "ink": 0.99}  # of networks for one task each
    options = {"references": references} if "achievement" in name else {}
    options |= {"weights": [1.0, 1.0, 1.0]} if name == "fixed" else {}
    strategy = mtlweight.build(name, TASKS, **options)
    print(f"\n{name:<8}" + "".join(f"{task:>9}{'weight':>9}" for task in TASKS))
    for epoch in range(EPOCHS):
        for rows in train[torch.randperm(len(train))].split(BATCH):
            loss = strategy(losses_of(model(image[rows]), digit[rows], ink[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            metrics = metrics_of(model(image[val]), digit[val], ink[val])
        strategy.end_epoch(metrics)
        cells = "".join(f"{metrics[t]:9.3f}{strategy.named_weights[t]:9.3f}" for t in TASKS)
        print(f"epoch {epoch + 1:<2}{cells}")


if __name__ == "__main__":
    for strategy_name in sys.argv[1:] or ["equal"]:
        main(strategy_name)
