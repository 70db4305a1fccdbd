r"""Tasks as parts of the degradation space: how to cut it.

A task is a union of axis-aligned boxes of the unit cube behind the degradations. Its natural
probability is the exact sum of the boxes' volumes; drawing inside it maps the uniforms of the cut
columns affinely into a box, which is the exact conditional law and rejects nothing. Hence

$$\sum_t p_t\,P(\cdot\mid A_t)=P,$$

the mixture of the tasks at their natural probabilities is the original distribution. The same id
draws the same row of the cube for every task, so that tasks can be compared sample by sample
(common random numbers).

Papers print no thresholds of their tasks: every preset below is ours, and `describe` says what it
is. `ScoreTaskSpace` cuts by scores instead of parameters, `FrozenTasks` takes single rows; all are
`TaskDraws` and used alike.
"""

from __future__ import annotations

from mtlweight_sr.degradation.boxes import Box
from mtlweight_sr.degradation.subspaces import Task, task_from_ranges
from mtlweight_sr.tasks.draws import TaskDraws
from mtlweight_sr.tasks.frozen import FrozenTasks
from mtlweight_sr.tasks.partitions import components, equal_mass, grid, tree
from mtlweight_sr.tasks.presets import PRESETS, paper, preset, two_stage4
from mtlweight_sr.tasks.scores import ScoreTaskSpace
from mtlweight_sr.tasks.space import TaskSpace

__all__ = [
    "PRESETS",
    "Box",
    "FrozenTasks",
    "ScoreTaskSpace",
    "Task",
    "TaskDraws",
    "TaskSpace",
    "components",
    "equal_mass",
    "grid",
    "paper",
    "preset",
    "task_from_ranges",
    "tree",
    "two_stage4",
]
