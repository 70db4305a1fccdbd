"""What is true of each strategy, for the table of strategies and the choice between them.

Every claim is checked on random problems by `tests/contract/test_property_table.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Needs = Literal[
    "nothing",
    "weights",
    "a main task",
    "metrics",
    "metrics, references",
    "references",
    "a held-out batch",
    "two more batches",
]


@dataclass(frozen=True)
class Properties:
    """The properties of a strategy with its default options.

    Attributes:
        scale_invariant: What one task's loss times a constant does to the gradient of what is
            shared: nothing ("yes"), change its length alone ("direction"), or turn it ("no").
        never_hurts: Whether a short step along that gradient raises no loss: always, never sure
            (False), with up to "two tasks", or while the task gradients are linearly "independent".
        needs: What it is given beside the losses.
        when: When to take it.
        settled: The number of first steps before `scale_invariant` is true.
    """

    scale_invariant: Literal["yes", "direction", "no"]
    never_hurts: bool | Literal["two tasks", "independent"]
    needs: Needs
    when: str
    settled: int = 0


PROPERTIES = {
    "achievement": Properties(
        "direction",
        False,
        "metrics, references",
        "tasks should come as far as their single-task networks, by metrics of different units",
    ),
    "aligned_mtl": Properties(
        "no", False, "nothing", "long or conflicting gradients make training unstable"
    ),
    "auto_lambda": Properties(
        "no",
        False,
        "a held-out batch",
        "some tasks are there to help others, and time is no matter",
    ),
    "avg_norm": Properties(
        "direction",
        "two tasks",
        "nothing",
        "gradients differ in length, and each task should count",
    ),
    "bmtl": Properties("no", False, "nothing", "losses of one scale, the larger a little more"),
    "cagrad": Properties(
        "no", False, "nothing", "the mean loss is the aim, and the worst-off task should gain too"
    ),
    "config": Properties(
        "direction", "independent", "nothing", "losses differ in kind, and no step may raise one"
    ),
    "cosmos": Properties("no", False, "nothing", "one network, told the preferences, serves many"),
    "cov": Properties("no", False, "nothing", "tasks that have settled should yield to the others"),
    "db_mtl": Properties(
        "yes", False, "nothing", "losses and gradients differ in scale, and memory is there"
    ),
    "doremi": Properties(
        "no", False, "references", "data should go to tasks above the loss of a reference network"
    ),
    "dtp": Properties("no", False, "metrics", "hard tasks first, by metrics from 0 to 1"),
    "dual_proj": Properties(
        "no", True, "nothing", "the mean loss is the aim, and no step may raise one"
    ),
    "dwa": Properties(
        "no", False, "nothing", "tasks that learn fast should make room, by the epoch"
    ),
    "encodec": Properties(
        "yes",
        False,
        "nothing",
        "losses of different kinds judge one output, at shares that you set",
    ),
    "equal": Properties("no", False, "nothing", "a baseline, and the first thing to try"),
    "excess_mtl": Properties("no", False, "nothing", "labels of some tasks are noisy"),
    "fairgrad": Properties(
        "no", True, "nothing", "no task may be left behind; fairness is to tune"
    ),
    "famo": Properties(
        "direction",
        False,
        "nothing",
        "all losses should improve alike, at the cost of one backward",
    ),
    "fixed": Properties("no", False, "weights", "a search has found the weights: the arm to beat"),
    "fmtl": Properties("no", False, "metrics", "hard tasks first, by metrics from 0 to 1, sum one"),
    "focal_achievement": Properties(
        "no",
        False,
        "metrics, references",
        "tasks behind their single-task networks should get the data, by metrics of one unit",
    ),
    "forum": Properties(
        "no", False, "a held-out batch", "the held-out batches should be fitted too"
    ),
    "gls": Properties(
        "direction", False, "nothing", "losses differ in unit; nothing is to be tuned"
    ),
    "go4align": Properties("no", False, "nothing", "many tasks of few kinds, weighed by the kind"),
    "graddrop": Properties("no", False, "nothing", "conflict in few entries, and noise is welcome"),
    "gradnorm": Properties(
        "no", False, "nothing", "tasks should learn at one speed, from initial losses that count"
    ),
    "gradvac": Properties("no", False, "nothing", "related tasks should be drawn together"),
    "group_dro": Properties("no", False, "nothing", "the worst task counts, over many steps"),
    "igb_v1": Properties(
        "yes", False, "nothing", "losses differ in scale; the laggards should lead"
    ),
    "igb_v2": Properties("yes", False, "nothing", "a study of long runs asks for it"),
    "imtl": Properties(
        "direction", "independent", "nothing", "equal progress for all, and heads balanced as well"
    ),
    "imtl_g": Properties(
        "direction", "independent", "nothing", "equal progress for all, whatever the scales"
    ),
    "imtl_l": Properties("no", False, "nothing", "losses differ in scale; the sum is a good start"),
    "krum": Properties("no", False, "nothing", "many views of one goal, some of them nonsense"),
    "lbtw": Properties(
        "no", False, "nothing", "tasks that learn fast should make room, by the step"
    ),
    "ldc_mtl": Properties("direction", False, "nothing", "all losses should fall in step"),
    "lra": Properties(
        "no", False, "a main task", "stiff equations drown the boundary conditions beside them"
    ),
    "m_config": Properties(
        "no", False, "nothing", "many tasks, and one backward pass of a task a step must do"
    ),
    "mgda": Properties("no", True, "nothing", "no step may raise a loss, however short it gets"),
    "moco": Properties("no", False, "nothing", "batches are small, and gradients noisy"),
    "modo": Properties(
        "no", False, "two more batches", "batches are small, and the bias of MGDA hurts"
    ),
    "moml": Properties("no", False, "a held-out batch", "every task counts on held-out data"),
    "nash_mtl": Properties("yes", True, "nothing", "tasks differ in scale, and none may be hurt"),
    "online_mixing": Properties(
        "no", False, "nothing", "data should go to large losses of one unit; nothing else is known"
    ),
    "pbi": Properties("no", False, "nothing", "the losses should come to a given ratio"),
    "pcgrad": Properties("no", "two tasks", "nothing", "tasks conflict; nothing is to be tuned"),
    "pike": Properties(
        "no", False, "nothing", "tasks hardly conflict; data where a step gains most"
    ),
    "relobralo": Properties("no", False, "nothing", "losses fall by decades, each at its own pace"),
    "revised_uw": Properties(
        "no", False, "nothing", "like `uw`, with a total that is never negative"
    ),
    "rlw": Properties("no", False, "nothing", "a baseline that any balancing has to beat"),
    "scale_invariant": Properties(
        "yes", False, "nothing", "losses differ in unit: the plain baseline, the sum of logarithms"
    ),
    "sdmgrad": Properties(
        "no", False, "two more batches", "between MGDA and the mean, without the bias of one batch"
    ),
    "slaw": Properties(
        "direction", False, "nothing", "gradients differ in length; one backward must do", settled=1
    ),
    "slgrad": Properties(
        "no", False, "a held-out batch", "one main task, and samples of others that may not help it"
    ),
    "softadapt": Properties("no", False, "nothing", "losses of one unit fall at different speeds"),
    "stch": Properties("yes", False, "nothing", "the task that has improved least should lead"),
    "tchebycheff": Properties(
        "no", False, "nothing", "comparable losses, and only the worst counts"
    ),
    "trimmed_mean": Properties("no", False, "nothing", "many tasks of one kind, some out of scale"),
    "upgrad": Properties(
        "no", True, "nothing", "no step may raise a loss, and each task keeps its own influence"
    ),
    "uw": Properties("no", False, "nothing", "losses differ in scale, and training is long"),
    "uw_o": Properties("yes", False, "nothing", "the weights that `uw` would learn, at once"),
    "uw_so": Properties(
        "no", False, "nothing", "small losses should lead; the temperature is tuned"
    ),
    "variance_aware": Properties(
        "no", False, "nothing", "the aim is settled, and data should go where noise is"
    ),
    "vqgan": Properties(
        "direction", "two tasks", "a main task", "one loss is the goal, and others shape it"
    ),
}
