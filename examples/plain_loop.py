"""Any strategy on tasks of three kinds: python examples/plain_loop.py dwa gls pcgrad.

One network reads a handwritten digit and says which it is (cross-entropy), whether it is odd
(binary cross-entropy), and how much ink it has (squared error).
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import mtlweight
from mtlweight.options import options_of
from mtlweight.registry import find

TASKS = ("digit", "odd", "ink")
# What networks for one task each reach, and fixed weights, for the strategies that ask for them.
OPTIONS = {"references": [0.98, 0.98, 0.95], "weights": [0.2, 0.3, 0.5]}


def main(name: str, epochs: int = 10) -> None:
    """Trains with the strategy of a name, and prints metrics and weights per epoch."""
    needed = options_of(find(name)).model_fields
    strategy = mtlweight.build(name, TASKS, **{k: v for k, v in OPTIONS.items() if k in needed})
    torch.manual_seed(0)
    pixels, digit = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    image, odd = pixels.float() / 16, (digit % 2).float()
    ink = (image.sum(1) - image.sum(1).mean()) / image.sum(1).std()
    train, val = torch.split(torch.randperm(len(image)), [1400, 397])
    layers = nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 12)
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    print(f"\n{name:<17}" + "".join(f"{task:>9}{'weight':>9}" for task in TASKS))
    for epoch in range(1, epochs + 1):
        for rows in train[torch.randperm(len(train))].split(32):
            logits, is_odd, amount = model(image[rows]).split([10, 1, 1], dim=1)
            losses = {
                "digit": F.cross_entropy(logits, digit[rows]),
                "odd": F.binary_cross_entropy_with_logits(is_odd[:, 0], odd[rows]),
                "ink": F.mse_loss(amount[:, 0], ink[rows]),
            }
            loss = strategy(losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            logits, is_odd, amount = model(image[val]).split([10, 1, 1], dim=1)
        accuracies = (logits.argmax(1) == digit[val], (is_odd[:, 0] > 0) == (odd[val] > 0))
        explained = 1 - F.mse_loss(amount[:, 0], ink[val]) / ink[val].var()  # of the variance
        metrics = [*(right.float().mean() for right in accuracies), explained.clamp(0, 1)]
        strategy.end_epoch(metrics)
        cells = zip(metrics, strategy.weights.tolist(), strict=True)
        print(f"epoch {epoch:<11}" + "".join(f"{m:9.3f} {w:8.3g}" for m, w in cells))


if __name__ == "__main__":
    for strategy_name in sys.argv[1:] or ["equal"]:
        main(strategy_name)
