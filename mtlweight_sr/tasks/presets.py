"""Ready-made tasks by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from types import MappingProxyType

from mtlweight_sr.degradation.boxes import Box, boxes_where, intersections, merged
from mtlweight_sr.degradation.mixture import Component, Mixture
from mtlweight_sr.degradation.presets import DASR_SEVERE, DASR_SHARES, DASR_STANDARD, DASR_WEAK
from mtlweight_sr.degradation.space import REALESRGAN_X2, REALESRGAN_X4, DegradationSpace
from mtlweight_sr.degradation.subspaces import Task
from mtlweight_sr.tasks.partitions import components, product
from mtlweight_sr.tasks.scores import ScoreTaskSpace
from mtlweight_sr.tasks.space import TaskSpace

__all__ = ["PRESETS", "paper", "preset", "two_stage4"]

_STRONG_BLUR = 15
_NONE, _HALF, _HIGH, _FULL = (Fraction(i, 4) for i in (0, 2, 3, 4))

# The tasks of a preset: name -> parts (weak or strong blur, noise level from, noise level to).
_Parts = Mapping[str, Sequence[tuple[str, Fraction, Fraction]]]
_PAPER: Mapping[int, _Parts] = {
    2: {
        "low_noise": [("weak", _NONE, _HALF), ("strong", _NONE, _HALF)],
        "high_noise": [("weak", _HALF, _FULL), ("strong", _HALF, _FULL)],
    },
    3: {
        "mild": [("weak", _NONE, _HALF)],
        "blur_or_noise": [("weak", _HALF, _FULL), ("strong", _NONE, _HALF)],
        "severe": [("strong", _HALF, _FULL)],
    },
    4: {
        "mild": [("weak", _NONE, _HALF)],
        "blur": [("strong", _NONE, _HALF)],
        "noise": [("weak", _HALF, _FULL)],
        "severe": [("strong", _HALF, _FULL)],
    },
    5: {
        "mild": [("weak", _NONE, _HALF)],
        "blur": [("strong", _NONE, _HALF)],
        "noise": [("weak", _HALF, _FULL)],
        "severe": [("strong", _HALF, _HIGH)],
        "extreme": [("strong", _HIGH, _FULL)],
    },
}


def paper(space: DegradationSpace, n: int = 4) -> TaskSpace:
    """Two to five tasks by the first kernel size (from 15) and the first noise level (from 1/2).

    With four: mild, blur, noise, severe; with two the noise alone; with three the middle two in
    one; with five severe cut again at level 3/4.

    Raises:
        ValueError: Another number of tasks, or a space whose kernels are all small or all large.
    """
    if n not in _PAPER:
        raise ValueError(
            f"expected `n` among {tuple(_PAPER)}, got {n}; write tree(space, {n}, ...)"
        )
    sizes = space.first.blur.kernel_sizes
    halves = {
        "weak": [size for size in sizes if size < _STRONG_BLUR],
        "strong": [size for size in sizes if size >= _STRONG_BLUR],
    }
    if not all(halves.values()):
        raise ValueError(
            f"expected a space with first kernel sizes on both sides of {_STRONG_BLUR}, got "
            f"{sizes}; write grid(space, ...) with cuts of your own"
        )
    tasks = []
    for task, parts in _PAPER[n].items():
        boxes = [product(space, halves[blur], low, high) for blur, low, high in parts]
        tasks.append(Task(task, merged(itertools.chain.from_iterable(boxes))))
    return TaskSpace(space, tasks)


def two_stage4(space: DegradationSpace) -> TaskSpace:
    """Four tasks by both kernel sizes together (from 28) and the second noise level (from 1/2)."""
    threshold = 28
    strong: list[Box] = []
    weak: list[Box] = list(boxes_where(space, "blur_2", False))
    for size in space.first.blur.kernel_sizes:
        for other in space.second.blur.kernel_sizes:
            box = intersections(
                intersections(
                    boxes_where(space, "kernel_size_1", size),
                    boxes_where(space, "kernel_size_2", other),
                ),
                boxes_where(space, "blur_2", True),
            )
            (strong if size + other >= threshold else weak).extend(box)
    blur = f"kernel_size_1 + kernel_size_2 (0 where blur_2 is off) {{}} {threshold}"
    noise = "noise_level_2 {} 1/2"
    tasks = []
    for name, boxes, sign, low in (
        ("mild", weak, "<", Fraction(0)),
        ("blur", strong, ">=", Fraction(0)),
        ("noise", weak, "<", _HALF),
        ("severe", strong, ">=", _HALF),
    ):
        level = Box({"noise_level_2": (low, low + _HALF)})
        words = f"{blur.format(sign)} and {noise.format('>=' if low else '<')}"
        tasks.append(Task(name, intersections(merged(boxes), (level,)), words))
    return TaskSpace(space, tasks)


_DASR = tuple(
    zip(
        ("weak", "standard", "severe"),
        DASR_SHARES,
        (DASR_WEAK, DASR_STANDARD, DASR_SEVERE),
        strict=True,
    )
)


def _realesrgan(scale: int) -> DegradationSpace:
    return REALESRGAN_X2 if scale == 2 else REALESRGAN_X4


def _paper(n: int, scale: int) -> TaskSpace:
    return paper(_realesrgan(scale), n)


def _dasr3(scale: int) -> TaskSpace:
    parts = [
        Component(name=name, share=share, space=space.model_copy(update={"scale": scale}))
        for name, share, space in _DASR
    ]
    return components(Mixture(components=tuple(parts)))


PRESETS: Mapping[str, Callable[[int], TaskSpace | ScoreTaskSpace]] = MappingProxyType(
    {
        **{f"paper{n}": partial(_paper, n) for n in _PAPER},
        "two_stage4": lambda scale: two_stage4(_realesrgan(scale)),
        "physical4": lambda scale: ScoreTaskSpace(_realesrgan(scale)),
        "dasr3": _dasr3,
    }
)
"""Ready-made tasks by name, each a function of the scale.

Masses on Real-ESRGAN's space: `paper2` 1/2 each (noise); `paper3` 1/4, 1/2, 1/4; `paper4` 1/4 each,
first kernel size from 15 and first noise level from 1/2; `paper5` the same with severe cut once
more at level 3/4; `two_stage4` 11/40, 9/40, 11/40, 9/40, both kernel sizes and the second noise
level; `physical4` medians of effective blur and noise. `dasr3` is a space of its own: the three
levels of DASR, 3/10, 3/10 and 2/5.
"""


def preset(name: str, scale: int = 4) -> TaskSpace | ScoreTaskSpace:
    """Ready-made tasks, on Real-ESRGAN's space unless the name says otherwise.

    Args:
        name: A key of `PRESETS`.
        scale: 2 or 4.

    Raises:
        ValueError: An unknown name or scale.
    """
    if name not in PRESETS:
        raise ValueError(
            f"expected `name` among {tuple(PRESETS)}, got {name!r}; write preset('paper4')"
        )
    if scale not in (2, 4):
        raise ValueError(f"expected `scale` among (2, 4), got {scale!r}; write scale=4")
    return PRESETS[name](scale)
