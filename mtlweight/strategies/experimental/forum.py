"""The held-out losses lowered by the network itself, near the minimum of the training loss."""

from __future__ import annotations

from functools import partial
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlweight.look_ahead import Surroundings
from mtlweight.options import Count, GradientOptions, Positive, Tasks
from mtlweight.running import Adam, updated
from mtlweight.solvers import min_norm_point
from mtlweight.solvers.active_set import level, minimize
from mtlweight.solvers.unit_rows import Vector
from mtlweight.strategies.experimental.bilevel import Bilevel, Closure, Found, products


class FORUM(Bilevel):
    r"""First-order multi-objective bilevel optimisation (experimental), by a value function.

    With $\sigma = \operatorname{softmax}(a)$ and $f(a, \theta) = \sum_i \sigma_i L_i(\theta)$, the
    held-out losses are to fall while f stays near what K gradient steps from here can make of it:
    $q = f(a, \theta) - f(a, \hat\theta)$ has to fall too.

    $$u_i = \nabla L_i^{val} / \lVert \nabla L_i^{val} \rVert, \qquad
    d = \sum_i \bar\lambda_i u_i + \nu \nabla_\theta q, \qquad
    \nu = \max\Big(0, \sum_i \bar\lambda_i \pi_i\Big), \qquad
    \pi_i = \varphi - \frac{\langle u_i, \nabla_\theta q \rangle}{\lVert \nabla q \rVert^2}$$

    $$\bar\lambda \leftarrow \bar\lambda + (e+1)^{-3/4} (\lambda - \bar\lambda), \qquad
    \lambda = \arg\min_{\lambda \ge 0,\ \sum \lambda = 1} \min_{\nu \ge 0}\
    \tfrac12 \Big\lVert \sum_i \lambda_i u_i + \nu \nabla q \Big\rVert^2
    - \nu \varphi \lVert \nabla q \rVert^2$$

    in epoch e, with $\nabla_\theta q = \nabla_\theta f$ and
    $\nabla_a q = \nabla_a f(a, \theta) - \nabla_a f(a, \hat\theta)$. The gradient of the network is
    d, and $a$ follows $\nu \nabla_a q$ by Adam. This $\nu$ is the least with which a step lowers q
    at the rate $\varphi \lVert \nabla q \rVert^2$. The weight reported for a task is what stands
    before its gradients on both batches together,
    $\bar\lambda_i / \lVert \nabla L_i^{val} \rVert + \nu \sigma_i$.

    Ours: the problem for $\lambda$ is solved exactly, and is the dual that this $\nu$ belongs to
    (the authors' code leaves out the ½); $\hat\theta$ is the last point before f rises, so that q
    is not negative; a task whose held-out loss has no gradient is left out of the problem.

    Use it when the network should fit the held-out batches as well, as when these are what counts
    in the end. Not when they must stay unseen: the network is trained on them. Takes two passes of
    each task, and K - 1 more.

    Args:
        tasks: The names of the tasks, or their number.
        validation: Computes the losses of the next held-out batch; see `Bilevel`. Must return those
            of all tasks that are present in the training batch.
        training: Computes the losses of the present training batch anew, in the same way.
        learning_rate: That of the K inner steps.
        inner_steps: K.
        rate: $\varphi$.
        meta_learning_rate: That of $a$.
        **options: See `GradientOptions`.

    Attributes:
        logits: $a$, `[T]`.
        shares: $\bar\lambda$, `[T]`; among the tasks present it is used in proportion.

    Raises:
        ValueError: A held-out loss is missing, not finite, or can't be used; see `Bilevel`.

    Source: Ye, Lin, Cao, Zhang & Tsang, *A first-order multi-gradient algorithm for multi-objective
    bi-level optimization*, ECAI 2024, arXiv 2401.09257, with the constants of the authors' code.
    """

    logits: Tensor
    shares: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        validation: Closure,
        training: Closure,
        learning_rate: Positive = 0.1,
        inner_steps: Count = 5,
        rate: Positive = 0.1,
        meta_learning_rate: Positive = 1e-3,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(tasks, validation=validation, learning_rate=learning_rate, **options)
        self.replay = partial(training)
        self.inner_steps = inner_steps
        self.rate = rate
        self.register_buffer("logits", torch.zeros(self.num_tasks))
        self.register_buffer("shares", self.uniform())
        self.adam = Adam(self.num_tasks, meta_learning_rate)

    def combine(
        self, gradients: Tensor, losses: Tensor, around: Surroundings
    ) -> tuple[Tensor, Tensor]:
        sigma = self.logits[self.present].softmax(0).cpu().double()
        upper = self._held_out_gradients(around)
        norms = torch.linalg.vector_norm(upper, dim=1)
        units = upper / torch.where(norms > 0, norms, 1.0)[:, None]
        f = sigma.to(gradients) @ gradients
        before = losses.cpu().double()
        fall = before - self._reachable(f, before, sigma, around)
        slopes_a = sigma * (fall - sigma @ fall)  # the gradient of q in a
        square = slopes_a.square().sum() + torch.linalg.vector_norm(f).cpu().double().square()
        overlaps = products(units, f)
        chosen = shares(
            (units @ units.T).cpu().double(), overlaps, square, self.rate, (norms > 0).cpu()
        )
        mine = self._averaged(chosen)
        nu = torch.zeros(())
        if square > 0:
            nu = (mine @ (self.rate - overlaps / square)).clamp_min(0)
        step = (nu * slopes_a).clamp(-10, 10).to(self.logits)
        self.logits = self.adam.step(self.logits, self.present, step)
        held_out = torch.where(norms > 0, mine.to(norms) / norms, 0.0)
        weights = held_out + (nu * sigma).to(norms)
        vectors = mine.to(units)[:, None] * units + (nu * sigma).to(gradients)[:, None] * gradients
        whole = torch.where(weights > 0, weights, 1.0)
        return weights.to(losses), vectors / whole[:, None]

    def _held_out_gradients(self, around: Surroundings) -> Tensor:
        """Returns the gradients of the held-out losses here, `[n, P]`."""
        with self.losses_at(around, None, self.validation, "validation") as found:
            self.refuse_infinite_losses(found, None)
            return around.gradients(self._of_present(found, "validation"), "validation")

    def _reachable(
        self, gradient: Tensor, before: Tensor, sigma: Tensor, around: Surroundings
    ) -> Tensor:
        """Returns the training losses after the inner steps, `[n]`, float64, host."""
        by, best = torch.zeros_like(gradient), before
        for k in range(self.inner_steps):
            by = by - self.learning_rate * gradient
            with self.losses_at(around, by, self.replay, "training") as found:
                values = self._of_present(found, "training")
                places = [found.index.index(i) for i in self.index]
                now = found.seen[places].cpu().double()
                if not sigma @ now < sigma @ best:
                    break
                best = now
                if k + 1 < self.inner_steps:
                    total = (sigma.to(gradient) * torch.stack(values).to(gradient)).sum()
                    (gradient,) = around.gradients([total], "training")
        return best

    def _averaged(self, chosen: Tensor) -> Tensor:
        """Takes the shares `[n]` of a step into the average, and returns it, summing to one."""
        old = self.shares[self.present].cpu().double()
        total = old.sum()
        new = old + (self.epoch + 1) ** -0.75 * (total * chosen - old)
        self.shares = updated(self.shares, self.present, new.to(self.shares))
        return new / total if total > 0 else chosen

    def _of_present(self, found: Found, option: str) -> list[Tensor]:
        """Returns the losses of the tasks present, attached."""
        missing = [self.tasks[i] for i in self.index if i not in found.index]
        if missing:
            raise ValueError(
                f"`{option}` returns no loss of task {missing[0]!r}, which is in the training "
                "batch: let it return those of all tasks that are."
            )
        return [found.values[found.index.index(i)] for i in self.index]


def shares(gram: Tensor, overlaps: Tensor, square: Tensor, rate: float, moves: Tensor) -> Tensor:
    r"""Returns the $\lambda$ of `FORUM`, `[n]`, float64.

    Without the constraint it is that of the shortest vector in the hull. If this would not lower q
    fast enough, $\nu$ is above zero, and the least over $\nu$ leaves

    $$\tfrac12 \lambda^\top \Big(G - \frac{b b^\top}{\lVert \nabla q \rVert^2}\Big) \lambda
    + \varphi\, b^\top \lambda, \qquad b_i = \langle u_i, \nabla_\theta q \rangle$$

    Args:
        gram: The inner products G of the unit vectors $u_i$, `[n, n]`.
        overlaps: b, `[n]`.
        square: $\lVert \nabla q \rVert^2$.
        rate: $\varphi$.
        moves: Which of the tasks have a gradient, `[n]`.
    """
    found = torch.zeros_like(overlaps)
    if not moves.any():
        return found + 1 / len(found)
    gram, overlaps = gram[moves][:, moves], overlaps[moves]
    best = min_norm_point(gram)
    if square > 0 and best @ (rate * square - overlaps) > 0:
        q = overlaps / square.sqrt()
        best = minimum_on_simplex(gram - q[:, None] * q, rate * square.sqrt() * q)
    found[moves] = best
    return found


def minimum_on_simplex(hessian: Tensor, slope: Tensor) -> Tensor:
    r"""Returns the w at which a convex quadratic function is lowest on the simplex, `[n]`.

    $$\arg\min_{w \ge 0,\ \sum_i w_i = 1} \tfrac12 w^\top H w + c^\top w$$

    with $10^{-12}$ of the largest entry added to the diagonal, so that there is one such point.

    Args:
        hessian: H, `[n, n]`, float64, positive semi-definite.
        slope: c, `[n]`, float64.

    Raises:
        RuntimeError: The solution was not reached.
    """
    n = len(slope)
    c = (slope - slope.mean()).numpy()  # less what is constant on the simplex
    scale = max(float(hessian.abs().max()), float(np.abs(c).max()))
    if scale == 0:
        return torch.full_like(slope, 1 / n)
    c = c / scale
    h = hessian.numpy() / scale + 1e-12 * np.eye(n)
    prices = np.ones(n)

    def slopes(x: Vector) -> tuple[Vector, float]:
        y = h @ x + c
        return y - level(x, y, prices), 1.0

    def goal(index: NDArray[np.intp]) -> Vector:
        system = np.zeros((len(index) + 1, len(index) + 1))
        system[:-1, :-1] = h[index[:, None], index]
        system[-1, :-1] = system[:-1, -1] = 1.0
        point: Vector = np.linalg.solve(system, np.append(-c[index], 1.0))[:-1]
        return point

    start = np.zeros(n)
    start[(h.diagonal() / 2 + c).argmin()] = 1.0
    w = minimize(start, slopes, goal, "The lowest point on the simplex")
    return torch.from_numpy(w / w.sum())
