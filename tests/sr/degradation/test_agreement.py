"""Ours against BasicSR's own functions: stored results always, the functions where installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.degradation import agreement, distribution
from benchmarks.degradation.images import crops, rows_of, stratified
from benchmarks.degradation.peer import why_not
from benchmarks.degradation.reference import PER_BATCH, Reference, per_batch_choices
from mtlweight_sr.degradation import (
    COLUMNS,
    blur,
    degrade,
    jpeg,
    parameters_from_cube,
    poisson_noise,
    usm_sharpen,
)
from mtlweight_sr.degradation.kernels import stage_kernels

STORED = Path(__file__).parents[2] / "data" / "basicsr.npz"


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    """What BasicSR returned, with what it was given; see `benchmarks.degradation.vectors`."""
    with np.load(STORED) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


@pytest.fixture(scope="module")
def image(stored: dict[str, Tensor]) -> Tensor:
    return stored["image"][None].float() / 255


@pytest.fixture(scope="module")
def reference() -> Reference:
    if reason := why_not():
        pytest.skip(reason)
    return Reference()


# --- stored results ------------------------------------------------------------------------------


def test_kernels_are_the_stored_ones(stored: dict[str, Tensor]) -> None:
    rows = rows_of(stored["cube"])
    torch.testing.assert_close(
        stage_kernels(rows.first).float(), stored["kernels"], rtol=0, atol=2e-6
    )
    exact = stage_kernels(rows.first, dtype=torch.float64)
    torch.testing.assert_close(exact.float(), stored["kernels"], rtol=0, atol=1e-7)


def test_blur_is_the_stored_one(stored: dict[str, Tensor], image: Tensor) -> None:
    expected = stored["blurred"]
    images = image[..., :29, :35].expand(len(expected), -1, -1, -1).contiguous()
    torch.testing.assert_close(blur(images, stored["few"]), expected, rtol=0, atol=2e-6)


def test_codec_is_the_stored_one(stored: dict[str, Tensor], image: Tensor) -> None:
    expected = stored["compressed"]
    images = image[..., :29, :35].expand(len(expected), -1, -1, -1).contiguous()
    got = jpeg(images, stored["qualities"], "basicsr")
    # A coefficient at a tie may fall on either side, which moves one block.
    assert ((got - expected).abs() > 1e-5).float().mean() < 0.002
    assert (jpeg(images, stored["qualities"]) - expected).abs().mean() > 1 / 255


def test_sharpening_is_the_stored_one(stored: dict[str, Tensor], image: Tensor) -> None:
    got = usm_sharpen(image[..., :56, :64])[0]
    difference = (got - stored["sharpened"]).abs()
    assert difference.max() < 4e-4  # where a residual at the threshold falls on either side
    assert difference.mean() < 1e-6


def test_poisson_noise_counts_the_stored_levels(stored: dict[str, Tensor], image: Tensor) -> None:
    for step, expected in zip(stored["steps"].tolist(), stored["grains"].tolist(), strict=True):
        coarse = (image * 255 // step) * step / 255
        for gray, n in zip((False, True), expected, strict=True):
            field = poisson_noise(coarse, torch.ones(1), torch.tensor([gray]))
            assert agreement.grains(coarse[0], field[0], gray=gray) == n


def test_the_whole_is_the_stored_one(stored: dict[str, Tensor], image: Tensor) -> None:
    rows = rows_of(stored["cube"], space=agreement.NOISELESS)
    images = image.expand(len(rows), -1, -1, -1).contiguous()
    expected = stored["whole"].float()
    got = degrade(images, rows, compat="realesrgan") * 255
    assert_almost_equal_levels(got, expected)
    default = degrade(images, rows) * 255
    assert (default - expected).abs().mean() > 0.5


def assert_almost_equal_levels(got: Tensor, expected: Tensor) -> None:
    """A level or a coefficient at a tie may fall on either side: of few rows, few pixels."""
    difference = (got - expected).abs()
    assert (difference > 0.5).float().mean() < 0.002
    assert difference.mean() < 0.01


# --- the functions themselves --------------------------------------------------------------------


def test_every_operator_agrees(reference: Reference) -> None:
    found = {row.operator: row for row in agreement.operators(reference, size=96, rows=48)}
    assert len(found) == 17
    for name, row in found.items():
        if name == "blur" or name.startswith(("kernels", "resize")):
            assert row.largest < 2e-6, name
        elif name.startswith("JPEG"):
            assert row.mean < 1e-5, name
        elif name == "sharpening":
            assert row.largest < 4e-4
            assert row.mean < 1e-6
        else:
            assert row.same is not None
            assert row.same > 0.998
            assert row.mean < 0.01 / 255


def test_poisson_noise_counts_the_same_levels(reference: Reference) -> None:
    counts = agreement.level_counts(reference, crops(48, 3))
    assert {theirs for _, theirs in counts} == {2**k for k in range(9)}
    assert all(ours == theirs for ours, theirs in counts)


def test_the_distribution_is_theirs(reference: Reference) -> None:
    """Noise included: the tests let BasicSR's law pass and tell another codec from it."""
    ours, theirs = distribution.renderings(reference, 128, 96)
    same = distribution.compare(ours, theirs)
    assert same.p_energy > 0.01
    for row in same.statistics:
        assert row.p > 0.01, row
        assert row.p_paired > 0.001, row
        assert abs(row.shift) < 0.1, row
    cubes = stratified(1, 128)[0]
    other = degrade(crops(96, 128), rows_of(cubes))
    different = distribution.compare(other, theirs)
    assert different.p_energy < 0.005
    assert min(row.p_paired for row in different.statistics) < 1e-6


def test_a_batch_of_the_reference_shares_its_choices(reference: Reference) -> None:
    """Rows that share what a batch shares: the batch is its rows, noise apart."""
    cube = per_batch_choices(stratified(1, 3)[0], stratified(4, 3, per_batch=True)[1])
    shared = [COLUMNS.index(name) for name in PER_BATCH]
    assert (cube[:, shared] == cube[:1, shared]).all()
    seeds = torch.arange(3)
    rows = parameters_from_cube(agreement.NOISELESS, cube, seeds)
    images = crops(96, 3)
    together = reference.degrade(images, rows)
    alone = torch.cat([reference.degrade(images[i : i + 1], rows[i]) for i in range(3)])
    assert_almost_equal_levels(together * 255, alone * 255)
    assert_almost_equal_levels(degrade(images, rows, compat="realesrgan") * 255, together * 255)
