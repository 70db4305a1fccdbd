from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlweight.solvers import (
    alpha_fair_weights,
    conflict_averse_weights,
    directed_min_norm_point,
    dual_cone_weights,
    min_norm_point,
    simplex_projection,
)

scipy_optimize = pytest.importorskip("scipy.optimize")

FAMILIES = (
    "random",
    "conflicting",
    "near duplicate",
    "duplicate",
    "deficient",
    "opposed",
    "nearly opposed",
    "zero",
    "scaled",
    "scaled conflict",
    "scaled deficient",
)
TASKS = (2, 3, 5, 8, 16, 40, 100)


def jacobian(family: str, tasks: int, seed: int = 0) -> Tensor:
    """Returns T gradients of the family, `[T, 2 T + 4]` of float64."""
    generator = torch.Generator().manual_seed(1000 * FAMILIES.index(family) + 10 * tasks + seed)
    rows: Tensor = torch.randn(tasks, 2 * tasks + 4, generator=generator, dtype=torch.float64)
    if "conflict" in family:
        rows[1::2] = -rows[: len(rows[1::2])] + 0.3 * rows[1::2]
    if "deficient" in family:
        rank = max(1, tasks // 3)
        rows = torch.randn(tasks, rank, generator=generator, dtype=torch.float64) @ rows[:rank]
    if family == "near duplicate":
        rows[1] = rows[0] + 1e-6 * rows[1]
    elif family == "duplicate":
        rows[1] = rows[0]
    elif family == "opposed":
        rows[1] = -3 * rows[0]
    elif family == "nearly opposed":
        rows[1] = -3 * rows[0] + 1e-6 * rows[1]
    elif family == "zero":
        rows[tasks // 2] = 0.0
    if "scaled" in family:
        decades = torch.linspace(-4, 4, tasks, dtype=torch.float64)
        scales: Tensor = 10 ** decades[torch.randperm(tasks, generator=generator)]
        rows = scales[:, None] * rows
    return rows


def families(*names: str, tasks: tuple[int, ...] = TASKS) -> pytest.MarkDecorator:
    cases = [
        pytest.param(family, number, id=f"{family}-{number}")
        for family in names or FAMILIES
        for number in tasks
    ]
    return pytest.mark.parametrize(("family", "tasks"), cases)


def sizes(rows: Tensor, weights: Tensor) -> Tensor:
    """Returns what rounding is to be measured by: |g_i| times the sum of the |w_j g_j|, `[T]`."""
    norms: Tensor = rows.norm(dim=1)
    return norms * (weights.abs() @ norms)


def is_lowest(slopes: Tensor, weights: Tensor, size: Tensor, accuracy: float = 1e-10) -> bool:
    """Tells whether slopes are the same for weights above zero, and not smaller elsewhere."""
    held = weights > 0
    level = slopes[held][(size[held]).argmin()]
    off = slopes - level
    within = off >= -2 * accuracy * (size + size[held].min())
    equal = off.abs() <= 2 * accuracy * (size + size[held].min())
    return bool((within & (equal | ~held)).all())


# --- the shortest vector -------------------------------------------------------------------------


@families()
def test_min_norm_point(family: str, tasks: int) -> None:
    rows = jacobian(family, tasks)
    w = min_norm_point(rows @ rows.T)
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1, abs=1e-14)
    assert is_lowest(rows @ (w @ rows), w, sizes(rows, w))


def faces(tasks: int) -> list[tuple[int, ...]]:
    return [face for n in range(1, tasks + 1) for face in itertools.combinations(range(tasks), n)]


def lowest_by_faces(quadratic: Tensor, linear: Tensor) -> float:
    """Returns the least of w Q w / 2 + q w on the simplex, from the lowest points of all faces."""
    least = math.inf
    for face in faces(len(linear)):
        index = torch.tensor(face)
        block, n = quadratic[index][:, index], len(face)
        system = torch.ones(n + 1, n + 1, dtype=torch.float64)
        system[:n, :n], system[n, n] = block, 0.0
        right = torch.cat([-linear[index], torch.ones(1, dtype=torch.float64)])
        w = (torch.linalg.pinv(system, rtol=1e-13) @ right)[:n]
        if (w >= -1e-9).all() and abs(w.sum() - 1) < 1e-9:
            w = w.clamp_min(0)
            least = min(least, (0.5 * w @ block @ w + linear[index] @ w).item())
    return least


@pytest.mark.parametrize("family", [f for f in FAMILIES if "scaled" not in f])
@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_no_face_has_a_shorter_vector(family: str, tasks: int) -> None:
    for seed in range(3):
        rows = jacobian(family, tasks, seed)
        gram = rows @ rows.T
        w = min_norm_point(gram)
        least = lowest_by_faces(gram, torch.zeros(tasks, dtype=torch.float64))
        assert 0.5 * w @ gram @ w <= least + 1e-12 * gram.max()


def test_two_vectors() -> None:
    for a, b, wanted in [
        ([1.0, 0.0], [0.0, 1.0], 0.5),
        ([1.0, 0.0], [-1.0, 1.0], 0.6),
        ([1.0, 0.0], [3.0, 1.0], 1.0),
        ([1.0, 0.0], [0.0, 1e6], 1 - 1e-12),
    ]:
        rows = torch.tensor([a, b], dtype=torch.float64)
        assert min_norm_point(rows @ rows.T)[0].item() == pytest.approx(wanted, abs=1e-14)


def test_equal_vectors_have_equal_weights() -> None:
    rows = jacobian("random", 4)[[0, 1, 0, 2, 0, 3]]
    gram = rows @ rows.T
    for w in (
        min_norm_point(gram),
        directed_min_norm_point(gram, 0.1),
        conflict_averse_weights(gram, 0.7),
        dual_cone_weights(gram, torch.full((6,), 1 / 6, dtype=torch.float64)),
        alpha_fair_weights(gram, 1.0),
        alpha_fair_weights(gram, 3.0),
    ):
        assert w[[2, 4]].tolist() == pytest.approx([w[0].item()] * 2, rel=2e-2, abs=1e-9)


# --- the shortest vector along the mean -----------------------------------------------------------


@families()
@pytest.mark.parametrize("strength", [0.0, 0.3, 30.0])
def test_directed_min_norm_point(family: str, tasks: int, strength: float) -> None:
    rows = jacobian(family, tasks)
    w = directed_min_norm_point(rows @ rows.T, strength)
    assert (w >= 0).all()
    assert w.sum() == pytest.approx(1, abs=1e-14)
    v = w + strength / tasks
    assert is_lowest(rows @ (v @ rows), w, sizes(rows, v))


def test_directed_without_strength_and_with_all() -> None:
    rows = jacobian("conflicting", 6)
    gram = rows @ rows.T
    torch.testing.assert_close(directed_min_norm_point(gram, 0.0), min_norm_point(gram))
    w = directed_min_norm_point(gram, 1e9)
    combined = (w + 1e9 / 6) / (1 + 1e9)
    torch.testing.assert_close(combined, torch.full_like(w, 1 / 6))


def test_directed_on_two_batches() -> None:
    """Only the symmetric part counts, and of that the part without negative eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    for tasks in (2, 3, 5):
        negative = 0
        for _ in range(20):
            rows = jacobian("random", tasks)
            noise = torch.randn(2, *rows.shape, generator=generator, dtype=torch.float64)
            first, second = rows + 2 * noise[0], rows + 2 * noise[1]
            products = first @ second.T
            w = directed_min_norm_point(products, 0.3)
            torch.testing.assert_close(w, directed_min_norm_point(products.T, 0.3))
            values, vectors = torch.linalg.eigh((products + products.T) / 2)
            negative += int(values[0] < 0)
            convex = vectors * values.clamp_min(0) @ vectors.T
            linear = convex.sum(1) * (0.3 / tasks)
            found = (0.5 * w @ convex @ w + linear @ w).item()
            assert found <= lowest_by_faces(convex, linear) + 1e-9 * convex.max()
        assert negative > 0


def test_directed_without_gradients() -> None:
    zero = torch.zeros(3, 3, dtype=torch.float64)
    assert directed_min_norm_point(zero, 0.3).tolist() == pytest.approx([1 / 3] * 3)


# --- the dual cone --------------------------------------------------------------------------------


@families()
def test_dual_cone(family: str, tasks: int) -> None:
    rows = jacobian(family, tasks)
    generator = torch.Generator().manual_seed(tasks)
    u = torch.rand(tasks, generator=generator, dtype=torch.float64) / rows.norm(dim=1).clamp_min(
        1e-9
    )
    v = dual_cone_weights(rows @ rows.T, u)
    assert (v >= u).all()
    size = sizes(rows, v)
    slopes = rows @ (v @ rows)
    assert (slopes >= -1e-10 * size).all()
    assert (slopes[v > u] <= 1e-10 * size[v > u]).all()  # nothing is added without need


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if "scaled" not in f and f != "nearly opposed"]
)
def test_dual_cone_against_nonnegative_least_squares(family: str) -> None:
    """But for an angle of 1e-7, which the cosines in double precision can't tell from none."""
    for tasks in (2, 3, 5, 8, 16):
        rows = jacobian(family, tasks)
        u = torch.full((tasks,), 1 / tasks, dtype=torch.float64)
        d = dual_cone_weights(rows @ rows.T, u) @ rows
        added, _ = scipy_optimize.nnls(rows.T.numpy(), -(u @ rows).numpy())
        wanted = (u + torch.from_numpy(added)) @ rows
        torch.testing.assert_close(d, wanted, rtol=0, atol=1e-8 * rows.norm(dim=1).max().item())


def test_many_weights_at_once() -> None:
    rows = jacobian("conflicting", 5)
    gram = rows @ rows.T
    u = torch.diag(torch.linspace(0, 1, 5, dtype=torch.float64))
    together = dual_cone_weights(gram, u)
    assert together.shape == (5, 5)
    for one, wanted in zip(together, u, strict=True):
        torch.testing.assert_close(one, dual_cone_weights(gram, wanted))
    assert u[1, 1] == 0.25  # left as it was


def test_dual_cone_twice_is_once() -> None:
    rows = jacobian("conflicting", 7)
    gram = rows @ rows.T
    once = dual_cone_weights(gram, torch.full((7,), 1 / 7, dtype=torch.float64))
    torch.testing.assert_close(dual_cone_weights(gram, once), once, rtol=1e-9, atol=1e-12)


# --- the best direction for the worst -------------------------------------------------------------


@families()
@pytest.mark.parametrize("c", [0.1, 0.4, 1.0, 2.0])
def test_conflict_averse(family: str, tasks: int, c: float) -> None:
    """On the ball, and the tasks in g_w alike and worst off; or, where it vanishes, none hurt."""
    rows = jacobian(family, tasks)
    weights = conflict_averse_weights(rows @ rows.T, c)
    d, mean = weights @ rows, rows.mean(0)
    radius = c * mean.norm()
    size = sizes(rows, weights)
    distance = (d - mean).norm()
    assert distance <= radius * (1 + 1e-7)
    if distance < radius * (1 - 1e-7):
        assert (rows @ d >= -1e-6 * size).all()
        return
    moves = size > 0
    w = weights - 1 / tasks
    assert (w >= 0).all()
    assert is_lowest((rows @ d)[moves], w[moves], size[moves], 1e-9)


@pytest.mark.parametrize("c", [0.1, 0.4, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("family", [f for f in FAMILIES if "scaled" not in f])
def test_nothing_in_the_ball_is_better_for_the_worst(family: str, c: float) -> None:
    for tasks in (2, 3, 6):
        rows = jacobian(family, tasks)
        moving = rows[rows.norm(dim=1) > 0]
        mean = rows.mean(0)
        radius = c * mean.norm()
        d = conflict_averse_weights(rows @ rows.T, c) @ rows
        worst = (moving @ d).min()
        generator = torch.Generator().manual_seed(0)
        for scale in (1.0, 0.1, 0.01, 1e-3):
            others = d + scale * radius * torch.randn(
                200, rows.shape[1], generator=generator, dtype=torch.float64
            ) / math.sqrt(rows.shape[1])
            away = others - mean
            others = mean + away * (radius / away.norm(dim=1, keepdim=True)).clamp_max(1)
            assert (others @ moving.T).min(1).values.max() <= worst + 1e-6 * moving.norm() ** 2


def test_conflict_averse_at_the_origin() -> None:
    """Three gradients in a plane with the origin in their hull, and one across: only it can gain.

    With a ball that holds them, many directions do not hurt; the nearest to the mean is taken.
    """
    angles = torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64)
    rows = torch.zeros(4, 3, dtype=torch.float64)
    rows[:3, 0], rows[:3, 1], rows[3, 2] = angles.cos(), angles.sin(), 2.0
    gram = rows @ rows.T
    d = conflict_averse_weights(gram, 2.0) @ rows
    torch.testing.assert_close(d, torch.tensor([0, 0, 0.5], dtype=torch.float64))
    plane = rows[:3] @ rows[:3].T
    d = conflict_averse_weights(plane, 2.0) @ rows[:3]
    torch.testing.assert_close(d, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)


def test_conflict_averse_without_a_ball_or_a_mean() -> None:
    rows = jacobian("conflicting", 4)
    equal = torch.full((4,), 0.25, dtype=torch.float64)
    assert torch.equal(conflict_averse_weights(rows @ rows.T, 0.0), equal)
    assert torch.equal(conflict_averse_weights(torch.zeros(4, 4).double(), 0.4), equal)
    rows[1], rows[3] = -rows[0], -rows[2]
    assert torch.equal(conflict_averse_weights(rows @ rows.T, 0.4), equal)


# --- fair weights ---------------------------------------------------------------------------------

ALPHAS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)


def ridge_of(rows: Tensor, w: Tensor, alpha: float) -> Tensor:
    """Returns the rho_i with (G w)_i + rho_i |g_i|^2 w_i = w_i^(-1/alpha), `[T]`."""
    gram = rows @ rows.T
    return (w ** (-1 / alpha) - gram @ w) / (gram.diagonal() * w)


@families()
@pytest.mark.parametrize("alpha", ALPHAS)
def test_alpha_fair_weights(family: str, tasks: int, alpha: float) -> None:
    rows = jacobian(family, tasks)
    w = alpha_fair_weights(rows @ rows.T, alpha)
    moves = rows.norm(dim=1) > 0
    if not moves.all():
        assert w[~moves].tolist() == pytest.approx([w[moves].mean().item()])
        rows, w = rows[moves], w[moves]
    gram, norms = rows @ rows.T, rows.norm(dim=1)
    assert (w > 0).all()
    power = alpha / (1 + alpha)
    orthogonal = norms ** (-2 * power)
    bound = 1e6**power * (orthogonal * norms).norm()
    length = (w * norms).norm()
    size = gram.abs() @ w + w ** (-1 / alpha)
    rho = torch.zeros(())
    if length >= bound * (1 - 1e-3):
        assert length <= bound * (1 + 1e-4)
        every = ridge_of(rows, w, alpha)
        rho = every[(size / (gram.diagonal() * w)).argmin()]
        assert rho > -1e-12
    gap = gram @ w + rho * gram.diagonal() * w - w ** (-1 / alpha)
    assert (gap.abs() <= 1e-9 * size).all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_fair_to_orthogonal_vectors(alpha: float) -> None:
    norms = torch.tensor([1e-4, 0.3, 1.0, 7.0, 1e4], dtype=torch.float64)
    w = alpha_fair_weights(torch.diag(norms**2), alpha)
    torch.testing.assert_close(w, norms ** (-2 * alpha / (1 + alpha)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("cosine", [-0.9999, -0.9, -0.3, 0.0, 0.5, 0.99, 1.0])
def test_nash_for_two(cosine: float) -> None:
    """w_i = 1 / (|g_i| sqrt(1 + cos))."""
    norms = torch.tensor([3.0, 0.02], dtype=torch.float64)
    cosines = torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64)
    w = alpha_fair_weights(norms[:, None] * cosines * norms, 1.0)
    torch.testing.assert_close(w, 1 / (norms * math.sqrt(1 + cosine)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_the_bound_is_met_without_a_jump(alpha: float) -> None:
    """Two vectors of length one reach it where 1 + cos is 1e-6, and it holds beyond."""
    lengths = []
    for excess in (0.0, 1e-9, 0.98e-6, 1.02e-6, 1.1e-6, 1e-5):
        cosine = excess - 1
        gram = torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64)
        lengths.append(alpha_fair_weights(gram, alpha)[0].item())
    most = 1e6 ** (alpha / (1 + alpha))
    assert lengths[:3] == pytest.approx([most] * 3, rel=1e-4)
    assert lengths[3] == pytest.approx((1.02e-6) ** (-alpha / (1 + alpha)), rel=1e-6)
    assert lengths[3] > lengths[4] > lengths[5]


# --- all of them ----------------------------------------------------------------------------------

Solver = Callable[[Tensor], Tensor]


def solvers(tasks: int) -> dict[str, tuple[Solver, float]]:
    """Returns each solver, and the power of a common scale that its weights go with."""
    u = torch.full((tasks,), 1 / tasks, dtype=torch.float64)
    return {
        "min norm": (min_norm_point, 0.0),
        "directed": (lambda gram: directed_min_norm_point(gram, 0.3), 0.0),
        "conflict averse": (lambda gram: conflict_averse_weights(gram, 0.4), 0.0),
        "dual cone": (lambda gram: dual_cone_weights(gram, u), 0.0),
        "Nash": (lambda gram: alpha_fair_weights(gram, 1.0), -1.0),
        "fair": (lambda gram: alpha_fair_weights(gram, 2.0), -4 / 3),
    }


@pytest.mark.parametrize("scale", [1e-60, 1e-20, 1e-5, 1e20, 1e60])
@pytest.mark.parametrize("name", solvers(1))
def test_tiny_gradients_behave_like_large_ones(name: str, scale: float) -> None:
    for family in ("random", "conflicting", "scaled"):
        rows = jacobian(family, 4)
        solve, power = solvers(4)[name]
        w = solve(rows @ rows.T)
        scaled = solve((scale * rows) @ (scale * rows).T)
        torch.testing.assert_close(scaled, scale**power * w, rtol=1e-8, atol=1e-12 * scale**power)


@pytest.mark.parametrize("name", solvers(1))
def test_one_vector(name: str) -> None:
    solve, power = solvers(1)[name]
    wanted = 1.4 if name == "conflict averse" else 3.0**power
    assert solve(torch.tensor([[9.0]], dtype=torch.float64)).item() == pytest.approx(wanted)
    assert solve(torch.zeros(1, 1, dtype=torch.float64)).item() == 1


@pytest.mark.parametrize("name", solvers(1))
def test_the_order_does_not_matter(name: str) -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for family in ("random", "conflicting", "scaled", "zero", "opposed"):
        rows = jacobian(family, 6)
        solve, _ = solvers(6)[name]
        w = solve(rows @ rows.T)
        shuffled = solve(rows[order] @ rows[order].T)
        torch.testing.assert_close(shuffled, w[order], rtol=1e-5, atol=1e-7 * w.max().item())


@pytest.mark.parametrize("name", solvers(1))
def test_numbers_that_are_not_finite(name: str) -> None:
    gram = torch.eye(3, dtype=torch.float64)
    gram[1, 2] = gram[2, 1] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        solvers(3)[name][0](gram)


def test_what_is_no_solution_is_not_returned() -> None:
    """No vectors have these cosines, and the method has nothing to hold on to."""
    opposed = 2 * torch.eye(3, dtype=torch.float64) - 1
    with pytest.raises(RuntimeError, match="dual cone was not found"):
        dual_cone_weights(opposed, torch.full((3,), 1 / 3, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"2\.0-fair weights of 3 gradients were not found"):
        alpha_fair_weights(opposed, 2.0)
    twisted = torch.tensor([[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]], dtype=torch.float64)
    with pytest.raises(RuntimeError, match="shortest vector of the hull was not found"):
        min_norm_point(twisted)


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 9), st.integers(0, 12))
def test_random_problems_of_any_scale(seed: int, tasks: int, numbers: int, decades: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, numbers, generator=generator, dtype=torch.float64)
    spread = torch.randint(-decades, decades + 1, (tasks, 1), generator=generator)
    rows = rows * 10.0**spread
    for solve, _ in solvers(tasks).values():
        w = solve(rows @ rows.T)
        assert w.isfinite().all()
        assert (w >= 0).all()


# --- the simplex ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "wanted"),
    [
        ([0.5, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]),
        ([2.0, 0.0], [1.0, 0.0]),
        ([1.0, 0.5], [0.75, 0.25]),
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        ([-7.0], [1.0]),
        ([1.2, 1.2, -1.0], [0.5, 0.5, 0.0]),
        ([1e20, 0.0, -1e20], [1.0, 0.0, 0.0]),
    ],
)
def test_simplex(point: list[float], wanted: list[float]) -> None:
    assert simplex_projection(torch.tensor(point)).tolist() == pytest.approx(wanted, abs=1e-6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_simplex_is_nearest(point: list[float]) -> None:
    """All that is above zero was lowered by the same, and the rest by no more."""
    v = torch.tensor(point, dtype=torch.float64)
    w = simplex_projection(v)
    assert (w >= 0).all()
    assert w.sum().item() == pytest.approx(1, abs=1e-9)
    lowered = v - w
    assert lowered[w > 0].min().item() == pytest.approx(lowered.max().item(), abs=1e-9)
    torch.testing.assert_close(simplex_projection(w), w, rtol=0, atol=1e-9)


def test_simplex_keeps_the_type() -> None:
    assert simplex_projection(torch.ones(3, dtype=torch.float64)).dtype == torch.float64
    assert np.isclose(simplex_projection(torch.ones(3)).sum().item(), 1)
