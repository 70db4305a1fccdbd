"""Weights and gradients worked out by hand or by exact solvers, to six digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtlweight import (
    DBMTL,
    DTP,
    DWA,
    GLS,
    IMTLL,
    MGDA,
    UW,
    Achievement,
    AvgNorm,
    CAGrad,
    ConFIG,
    DualProj,
    Equal,
    FairGrad,
    Fixed,
    FocalAchievement,
    GradVac,
    LogLosses,
    NashMTL,
    PCGrad,
    Strategy,
    UPGrad,
)
from tests.contract.strategies import plane, solve

J3 = torch.tensor([[3, 1, 0, 0], [-1, 2, 1, 0], [0, -1, 2, 2]], dtype=torch.float64)
J2 = torch.tensor([[1, 0], [-1, 1]], dtype=torch.float64)
LOSSES = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)
NAMES = ("a", "b", "c")


def close(got: Tensor, wanted: Any) -> None:
    torch.testing.assert_close(
        got.double(), torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1.5e-6
    )


class _Descending(PCGrad):
    """Visits the other tasks from the last to the first."""

    def weigh(self, gram: Tensor, losses: Tensor) -> Tensor:
        return super().weigh(gram.flip(0, 1), losses.flip(0)).flip(0)


@pytest.mark.parametrize(
    ("build", "weights", "gradient"),
    [
        (lambda: MGDA(3), (0.294872, 0.423077, 0.282051), None),
        (lambda: PCGrad(3, shuffle=False), (1.2, 1.183333, 1.122222), None),
        (lambda: _Descending(3, shuffle=False), (1.2, 1.166667, 1.111111), None),
        (lambda: GradVac(3, shuffle=False), (1.2, 1.183333, 1.122222), None),
        (lambda: NashMTL(3, max_norm=None), (0.358356, 0.439202, 0.353836), None),
        (
            lambda: NashMTL(3),
            tuple(w / 3**0.5 for w in (0.358356, 0.439202, 0.353836)),
            None,
        ),
        (
            lambda: FairGrad(3, alpha=0.5, max_norm=None),
            (0.503089, 0.579738, 0.500124),
            None,
        ),
        (lambda: FairGrad(3, max_norm=None), (0.255914, 0.331935, 0.250455), None),
        (
            lambda: FairGrad(3, alpha=5.0, max_norm=None),
            (0.183193, 0.250383, 0.177382),
            None,
        ),
        (lambda: CAGrad(3, c=0.5, division="none"), (0.433179, 0.621518, 0.414345), None),
        (
            lambda: CAGrad(3, c=0.5),
            tuple(w / 1.25 for w in (0.433179, 0.621518, 0.414345)),
            None,
        ),
        (lambda: CAGrad(3, division="none"), (0.399707, 0.573493, 0.382328), None),
        (lambda: UPGrad(3), (0.400940, 0.394539, 0.374116), None),
        (lambda: DualProj(3), (1 / 3, 1 / 3, 1 / 3), None),
        (lambda: AvgNorm(3), (1.449138, 1.870829, 1.527525), None),
        (lambda: AvgNorm(3, scale="mean_norm"), (0.483046, 0.623610, 0.509175), None),
        (lambda: DBMTL(3, beta=0), (1, 1.290994, 1.054093), None),
        (
            lambda: DBMTL(3, beta=0.9, beta_sigma=0),
            None,
            (0.170901, 0.252790, 0.339918, 0.210819),
        ),
        (lambda: Equal(3, rescale="tasks"), (1, 1, 1), (2, 2, 3, 2)),
        (lambda: Fixed(3, [0.2, 0.3, 0.5]), (0.2, 0.3, 0.5), (0.3, 0.3, 1.3, 1.0)),
    ],
)
def test_weights_on_three_tasks(
    build: Callable[[], Strategy], weights: tuple[float, ...] | None, gradient: Any
) -> None:
    d, w = solve(build(), J3)
    if weights is not None:
        close(w, weights)
        close(d, (torch.tensor(weights, dtype=torch.float64) @ J3).tolist())
    if gradient is not None:
        close(d, gradient)


def test_what_characterises_them() -> None:
    d, _ = solve(MGDA(3), J3)
    close(J3 @ d, [2.243590] * 3)
    d, w = solve(AvgNorm(3), J3)
    close(w * J3.norm(dim=1), [J3.sum(0).norm().item()] * 3)
    _, w = solve(DBMTL(3, beta=0), J3)
    close(w * J3.norm(dim=1), [10**0.5] * 3)
    d, _ = solve(ConFIG(3), J3)
    close(J3 @ d / (J3.norm(dim=1) * d.norm()), [0.529437] * 3)
    close(d.norm(), 4.559392)
    d, w = solve(NashMTL(3, max_norm=None), J3)
    close(w * (J3 @ d), [1.0] * 3)
    close(d @ d, 3.0)
    for alpha in (0.5, 2.0, 5.0):
        d, w = solve(FairGrad(3, alpha=alpha, max_norm=None), J3)
        close((J3 @ d) * w ** (1 / alpha), [1.0] * 3)
    for c in (0.4, 0.5):
        d, _ = solve(CAGrad(3, c=c, division="none"), J3)
        close((d - J3.mean(0)).norm(), c * J3.mean(0).norm().item())
    for build in (UPGrad, DualProj):
        d, _ = solve(build(3), J3)
        assert (J3 @ d >= 0).all()


@pytest.mark.parametrize("shuffle", [True, False])
def test_two_tasks(shuffle: bool) -> None:
    d, w = solve(MGDA(2), J2)
    close(w, (0.6, 0.4))
    close(d, (0.2, 0.4))
    for strategy in (PCGrad(2, shuffle=shuffle), UPGrad(2, preference=[1, 1])):
        d, _ = solve(strategy, J2)
        close(d, (0.5, 1.5))
    _, w = solve(NashMTL(2, max_norm=None), J2)
    close(w, (1.847759, 1.306563))


def test_dwa() -> None:
    for temperature, rescale, wanted in [
        (2.0, "tasks", (0.913513, 0.913513, 1.172974)),
        (2.0, "none", tuple(w / 3 for w in (0.913513, 0.913513, 1.172974))),
    ]:
        strategy = DWA(3, temperature=temperature, rescale=rescale)
        for losses in ((4, 1, 1), (2, 0.5, 1)):
            for factor in (0.5, 1.5):  # the mean of the epoch counts
                _, w = solve(strategy, J3, factor * torch.tensor(losses, dtype=torch.float64))
                close(w, [1.0] * 3 if rescale == "tasks" else [1 / 3] * 3)
            strategy.end_epoch()
        if rescale == "none":
            close(strategy.weights, wanted)  # what the next epoch is to be spent by
        d, w = solve(strategy, J3, LOSSES)
        close(w, wanted)
        close(d, (torch.tensor(wanted, dtype=torch.float64) @ J3).tolist())


def test_gls() -> None:
    theta, losses = plane(J3, LOSSES)
    strategy = GLS(3)
    total = strategy(losses)
    total.backward()
    close(total.detach(), 1.0)
    close(strategy.weights, (1 / 6, 2 / 3, 1 / 3))
    assert theta.grad is not None
    close(theta.grad, (torch.tensor((1 / 6, 2 / 3, 1 / 3), dtype=torch.float64) @ J3).tolist())


def test_learned_weights_at_the_start() -> None:
    _theta, losses = plane(J3, LOSSES)
    strategy: Strategy = UW(3)
    assert strategy(losses).item() == pytest.approx(1.75)
    close(strategy.weights, (0.5, 0.5, 0.5))
    strategy = IMTLL(3)
    assert strategy(losses).item() == pytest.approx(3.5)
    close(strategy.weights, (1, 1, 1))


def test_logarithms_take_the_scales_out() -> None:
    _, w = solve(LogLosses(Equal(3, rescale="tasks"), epsilon=0), J3, LOSSES)
    close(w, (0.5, 2, 1))
    _d, w = solve(LogLosses(MGDA(3)), J3 * LOSSES[:, None], LOSSES)
    close(w * LOSSES, (0.294872, 0.423077, 0.282051))


METRICS = (0.5, 0.8, 0.9)
POTENTIAL = (0.6, 0.8, 1.0)


@pytest.mark.parametrize("form", ["mapping", "list", "tensor", "numpy"])
def test_metrics(form: str) -> None:
    def given(numbers: tuple[float, ...]) -> Any:
        if form == "mapping":
            return dict(reversed(list(zip(NAMES, numbers, strict=True))))
        if form == "numpy":
            return dict(zip(NAMES, torch.tensor(numbers, dtype=torch.float64).numpy(), strict=True))
        return list(numbers) if form == "list" else torch.tensor(numbers, dtype=torch.float64)

    cases: list[tuple[Strategy, tuple[float, ...]]] = [
        (Achievement(NAMES, given(POTENTIAL)), (0.340303, 0.326857, 0.332840)),
        (
            Achievement(NAMES, given(POTENTIAL), normalization="sum", total="arithmetic"),
            (0.652510, 0.034749, 0.312741),
        ),
        (DTP(NAMES), (0.346574, 0.044629, 0.010536)),
        (DTP(NAMES, gamma=0.5), (0.490129, 0.099793, 0.033318)),
    ]
    for strategy, wanted in cases:
        strategy.end_epoch(given(METRICS))
        close(strategy.weights, wanted)
        _, w = solve(strategy, J3)  # with losses of one, geometric and arithmetic agree
        close(w, wanted)


@pytest.mark.parametrize(
    ("gamma", "wanted"),
    [
        (1.0, (0.313153, 0.256388, 0.214153, 0.216306)),
        (2.0, (0.382394, 0.256327, 0.178833, 0.182446)),
        (5.0, (0.597127, 0.219671, 0.089311, 0.093891)),
    ],
)
def test_gaps_in_decibels(gamma: float, wanted: tuple[float, ...]) -> None:
    gaps = torch.tensor((0.30, 0.10, -0.08, -0.07), dtype=torch.float64)
    metrics = torch.tensor((28.0, 26.5, 24.0, 23.4), dtype=torch.float64)
    strategy = FocalAchievement(4, metrics + gaps, gamma=gamma)
    strategy.end_epoch(metrics)
    close(strategy.weights, wanted)
    less_is_better = FocalAchievement(4, metrics - gaps, gamma=gamma, higher_is_better=False)
    less_is_better.end_epoch(metrics)
    close(less_is_better.weights, wanted)


@pytest.mark.parametrize("build", [MGDA, AvgNorm, lambda t: PCGrad(t, shuffle=False), GLS, UW])
def test_a_mapping_a_list_and_a_tensor_are_the_same(build: Callable[[Any], Strategy]) -> None:
    gradients = []
    for form in ("list", "tuple", "mapping", "backwards", "stack", "vector"):
        theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        losses = [row @ theta + value for row, value in zip(J3, LOSSES, strict=True)]
        named = dict(zip(NAMES, losses, strict=True))
        given: Any = {
            "list": losses,
            "tuple": tuple(losses),
            "mapping": named,
            "backwards": dict(reversed(named.items())),
            "stack": torch.stack(losses),
            "vector": J3 @ theta + LOSSES,
        }[form]
        strategy = build(NAMES)
        strategy(given).backward()
        assert theta.grad is not None
        gradients.append(theta.grad)
        assert set(strategy.named_weights) == set(NAMES)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-12, atol=1e-12)
