from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtlweight.task_means import task_means


def test_means_by_task_absent_tasks_left_out() -> None:
    losses = task_means(torch.tensor([1.0, 2.0, 3.0, 6.0]), [2, 0, 2, 0], ["a", "b", "c"])
    assert list(losses) == ["a", "c"]
    assert {name: float(loss) for name, loss in losses.items()} == {"a": 4, "c": 2}


def test_keys_are_ids_without_names() -> None:
    assert list(task_means(torch.ones(3), torch.tensor([10, 2, 2]))) == ["2", "10"]


def test_loss_maps_are_averaged_first() -> None:
    maps = torch.arange(24.0).reshape(2, 3, 2, 2)
    losses = task_means(maps, [1, 0])
    assert float(losses["1"]) == 5.5
    assert float(losses["0"]) == 17.5


@pytest.mark.parametrize(
    "tasks", [[0, 1, 0], (0, 1, 0), torch.tensor([0, 1, 0], dtype=torch.int32), np.array([0, 1, 0])]
)
def test_kinds_of_ids(tasks: object) -> None:
    losses = task_means(torch.tensor([1.0, 5.0, 3.0]), tasks)  # type: ignore[arg-type]
    assert [float(loss) for loss in losses.values()] == [2, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_shape_are_kept(dtype: torch.dtype) -> None:
    losses = task_means(torch.ones(4, dtype=dtype), [0, 1, 1, 1])
    assert all(loss.dtype == dtype and loss.shape == () for loss in losses.values())


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(0, 2**31), st.booleans())
def test_values_and_gradients_equal_masked_means(tasks: list[int], seed: int, maps: bool) -> None:
    shape = (len(tasks), 3) if maps else (len(tasks),)
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    losses = task_means(samples, tasks)
    ids = torch.tensor(tasks)
    assert set(losses) == {str(i) for i in tasks}
    for task, loss in losses.items():
        expected = samples[ids == int(task)].mean()
        torch.testing.assert_close(loss, expected)
        (got,) = torch.autograd.grad(loss, samples, retain_graph=True)
        (want,) = torch.autograd.grad(expected, samples, retain_graph=True)
        torch.testing.assert_close(got, want)


def test_share_weighted_means_give_the_batch_mean() -> None:
    samples = torch.tensor([1.0, 4.0, 2.0, 8.0, 5.0])
    losses = task_means(samples, [0, 1, 0, 1, 1])
    torch.testing.assert_close(0.4 * losses["0"] + 0.6 * losses["1"], samples.mean())


@pytest.mark.parametrize(
    ("losses", "tasks", "names", "error", "message"),
    [
        (torch.ones(3), [0, 1], None, ValueError, r"shape \[3\], `tasks` has shape \[2\]"),
        (torch.ones(2), [[0, 1]], None, ValueError, r"`tasks` has shape \[1, 2\]"),
        (torch.ones(2), [0, -1], None, ValueError, "got id -1"),
        (torch.ones(2), [0, 2], ["a", "b"], ValueError, "below 2, the number of names: got id 2"),
        (torch.ones(2), [0.0, 1.0], None, TypeError, "integer task ids, got torch.float32"),
        (torch.ones(2), [True, False], None, TypeError, "got torch.bool"),
        (torch.ones(0), [], None, ValueError, "at least one sample"),
        (torch.ones(()), [0], None, ValueError, "reduction='none'"),
        (torch.ones(2, dtype=torch.int64), [0, 1], None, TypeError, "floating-point"),
        ([1.0, 2.0], [0, 1], None, TypeError, "list"),
    ],
)
def test_refuses(
    losses: torch.Tensor,
    tasks: list[int],
    names: list[str] | None,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        task_means(losses, tasks, names)
