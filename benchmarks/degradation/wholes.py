"""The whole degradation of a batch, and the training steps that it feeds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.degradation.images import rows_of, stratified
from benchmarks.degradation.measure import Call
from benchmarks.degradation.reference import Reference, per_batch_choices
from benchmarks.degradation.units import Unit
from mtlweight_sr.degradation import degrade, usm_sharpen
from mtlweight_sr.degradation.pipeline import Compat

CROP = 256
"""What training sees of each HR image, on both sides."""
CONTEXT = 32


def pipeline(context: int | None = None, compat: Compat | None = None) -> Callable[[Unit], Call]:
    """Ours: every sample with choices of its own, from the table of parameters on.

    Args:
        context: The crop is taken first, with so many pixels more than training sees; None
            degrades the whole image.
        compat: As in `degrade`.
    """

    def build(unit: Unit) -> Call:
        hr = unit.images()
        cubes = stratified(unit.rounds, unit.batch)
        if context is not None:
            hr = hr[..., : CROP + context, : CROP + context].contiguous()

        def call(turn: int) -> Tensor:
            gt = usm_sharpen(hr) if unit.sharpened else hr
            return degrade(gt, rows_of(cubes[turn % unit.rounds], turn), compat=compat)

        return call

    return build


def pipeline_basicsr(rounds: int | None = None) -> Callable[[Unit], Call]:
    """Real-ESRGAN's: what it chooses per batch is the same in all rows.

    Over the rounds both kinds of choices are spread evenly over the distribution.

    Args:
        rounds: How many there are, if not the unit's.
    """

    def build(unit: Unit) -> Call:
        hr = unit.images()
        count = unit.rounds if rounds is None or unit.on_gpu else rounds
        alone = stratified(count, unit.batch)
        shared = stratified(count, unit.batch, seed=1, per_batch=True)
        cubes = per_batch_choices(alone, shared)
        reference = Reference(unit.device)

        def call(turn: int) -> Tensor:
            gt = reference.sharpen(hr) if unit.sharpened else hr
            lr = reference.degrade(gt, rows_of(cubes[turn % count]))
            if unit.sharpened:  # once more, of what comes out of its pool
                reference.sharpen(hr[..., :CROP, :CROP].contiguous())
            return lr

        return call

    return build


def training_step(network: Callable[[], nn.Module]) -> Callable[[Unit], Call]:
    """A step of the network that the batch is for, in bfloat16: forward, backward, Adam."""

    def build(unit: Unit) -> Call:
        hr = unit.images()
        lr = F.interpolate(hr, scale_factor=0.25, mode="area")
        model = network().to(unit.device)
        optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=unit.on_gpu)

        @torch.enable_grad()
        def call(turn: int) -> None:
            with torch.autocast(hr.device.type, dtype=torch.bfloat16):
                loss = F.l1_loss(model(lr).float(), hr)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return call

    return build
