"""Weights for single samples: what would help the main task on a held-out batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Unpack

import torch
from torch import Tensor, nn

from mtlweight.distributed import length_over_ranks, sum_over_ranks, world_size
from mtlweight.inputs import Losses, Step
from mtlweight.look_ahead import Surroundings, held_out_gradient
from mtlweight.options import NonNegative, Options, Tasks
from mtlweight.sample_losses import mean_loss, read_samples
from mtlweight.slopes import BackwardSlopes, ForwardSlopes, trainable, unit
from mtlweight.strategy import Strategy, Weighed
from mtlweight.task_gradients import Shared, products_of
from mtlweight.task_gradients.passes import backward_pass
from mtlweight.task_gradients.shared_leaves import walk


class SLGrad(Strategy):
    r"""Sample-level weighting: favours the samples of any task whose gradient helps the main task.

    $$\theta' = \theta - \alpha \nabla \bar\ell, \qquad v = \nabla_{\theta'} L_{main}^{val}, \qquad
    w_{ik} = \frac{\max(0, \langle \nabla \ell_{ik}, v \rangle)}
    {\sum_{jl} \max(0, \langle \nabla \ell_{jl}, v \rangle)}, \qquad
    \mathcal{L} = \sum_{ik} w_{ik}\, \ell_{ik}$$

    for sample k of task i, and $\bar\ell$ the mean over tasks of the mean over samples. If no
    sample helps, all weights are zero and the step moves nothing. Give it losses of samples, best
    computed in the block of `directed`, where the forward pass carries all inner products along:

        with strategy.directed(network):
            outputs = network(x)
            losses = {
                task: F.mse_loss(outputs[task], y, reduction="none").flatten(1).mean(1)  # [B]
                for task, y in targets.items()
            }
            loss = strategy(losses)
        loss.backward()

    Called without it, it differentiates the backward pass of $\theta'$ once more: slower, and not
    through fused attention or compiled models. Both ways are exact, and take no pass for each
    sample; tasks may have different numbers of them. Given one loss for each task, it weighs tasks
    by the same rule. In a network with batch statistics the gradient of a sample includes what it
    does to the others. The authors' code makes the trial step for real, and then a second one; here
    the parameters are put back (ours).

    Use it when some tasks or samples are there to help one main task, with noisy or irrelevant ones
    among them, and a clean held-out batch of the main task at hand. Not when all tasks matter: a
    task whose gradients oppose those of the main task gets nothing.

    Args:
        tasks: The names of the tasks, or their number.
        validation: Computes the main task's loss on the next held-out batch: takes no arguments,
            uses the network with the parameters it has, and returns a scalar, attached. Put the
            network into `eval()` in it if batch statistics are to stay, repeat the training loop's
            `torch.autocast`, and with several ranks call the module itself, not its wrapper.
        learning_rate: $\alpha$, that of the optimizer; 0 takes v where the network is (ours), which
            is off by the order of $\alpha$, and is all that `directed` can do at no extra cost.
        **options: See `Options`.

    Attributes:
        sample_weights: $w$ of the latest call by task, `[B]` each; those of this rank. Empty before
            the first call. Not part of the state.
        weights: $\sum_k w_{ik}$, what stands before the mean loss of each task in the mean, `[T]`.

    Raises:
        TypeError: The held-out loss is not a tensor.
        ValueError: The held-out loss is not a finite scalar, is detached, or does not depend on the
            parameters behind the losses; or some losses are of samples and others of tasks.
        RuntimeError: A layer can't be differentiated twice, or has no forward mode.

    Source: Grégoire, Chaudhary & Verboven, *Sample-level weighting for multi-task learning with
    auxiliary tasks*, Applied Intelligence 2024, arXiv 2306.04519, from the authors' code.
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
        validation: Callable[[], Tensor],
        learning_rate: NonNegative,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        self.validation = partial(validation)  # a bare module would become a part of this one
        self.learning_rate = learning_rate
        self.sample_weights: dict[str, Tensor] = {}
        self._samples: list[Tensor] | None = None
        self._carried: ForwardSlopes | None = None
        self._agreed = False  # whether a block was checked
        self._missed = False  # whether the last block was left without a call

    @property
    def waits(self) -> bool:
        """Each step waits: the held-out loss is looked at."""
        return True

    def forward(
        self,
        losses: Losses,
        shared: Shared | None = None,
        *,
        counts: Mapping[str, int] | None = None,
        independent: Sequence[Losses] = (),
    ) -> Tensor:
        """Returns the scalar whose gradient is the strategy's; see `Strategy`.

        Args:
            losses: Of the samples, `[B]` for each task, or of the tasks.
            shared: See `Strategy`; read by `rescale="equal-norm"` alone.
            counts: The number of samples behind each loss, where ranks hold unequal numbers; for
                losses of samples it is known.
            independent: Not read.
        """
        losses, counts, self._samples = read_samples(self.tasks, losses, counts)
        try:
            return super().forward(losses, shared, counts=counts, independent=independent)
        finally:
            self._samples = None

    @contextmanager
    def directed(
        self, *networks: nn.Module, trial: Callable[[], Losses] | None = None
    ) -> Iterator[None]:
        r"""Has the forward passes in its block carry $v$ along: no second derivative is taken.

            with strategy.directed(network):
                loss = strategy({task: loss_of(out, y) for task, out in network(x).items()})
            loss.backward()

        On entering, $v$ is taken, and the parameters of the networks become dual numbers with
        tangent $v$: each loss then carries $\langle \nabla \ell_{ik}, v \rangle$, exactly, beside
        the graph that `backward` walks. The parameters themselves, their gradients and the
        optimizer stay as they are; on leaving the modules have them back. Several calls may share a
        block, and its $v$, as for gradients that are accumulated. In `eval()` it does nothing.

        The losses of this batch are not there yet for the trial step. With `learning_rate=0` there
        is none. Otherwise `trial` computes them once before, one more pass forward and back: batch
        statistics are then updated twice, and dropout draws twice; without either, the weights are
        those of a call without `directed`.

        Tangents pass through `torch.no_grad()`: detach what is no part of the gradient, such as
        targets that a network makes for itself. One more backward pass checks the first block.
        Fused attention gives way to the plain one in the block; checkpointed and some other layers
        (weight norm, LSTM in single precision on CPU) have no forward mode. Tangents have graphs
        too, which take memory until the block is left.

        Args:
            networks: The modules behind the losses and `validation`.
            trial: Computes the losses of this step, in the form in which the strategy gets them.

        Raises:
            TypeError: One of `networks` is not a module.
            ValueError: They train nothing, there is a learning rate and no `trial`, or a
                `rescale="equal-norm"`, which takes gradients; also as for `validation`, or losses.
            RuntimeError: A layer has no forward mode, or a wrong one.
        """
        if not self.training:
            yield
            return
        around = Surroundings(*trainable(networks))
        self._missed = False
        self._carried = ForwardSlopes(around, unit(self._trial_end(around, trial)))
        try:
            with self._carried.carried(networks):
                yield
            if not self._agreed:
                self._carried.check()
                self._agreed = self._carried.used
            self._missed = not self._carried.used
        finally:
            self._carried = None

    def weigh_step(self, step: Step, shared: Shared | None) -> Weighed:
        """Returns what the samples of each task get together, spent by what each of them gets."""
        n, ranks = len(step.index), world_size()
        if len(step.roots) < n:
            names = ", ".join(self.tasks[i] for i in step.index)
            raise ValueError(
                f"SLGrad reads gradients, and one of the tasks {names} is absent from this rank "
                "but present on another: give every rank each of them."
            )
        sizes = [1] * n if self._samples is None else [len(group) for group in self._samples]
        every = step.values
        if self._samples is not None:
            every = torch.cat([group.to(every) for group in self._samples])

        def spread(numbers: Tensor) -> Tensor:
            """Returns the number of each task for each of its samples here, `[N]`."""
            return torch.cat([x.expand(k) for x, k in zip(numbers, sizes, strict=True)])

        def gathered(numbers: Tensor) -> Tensor:
            """Returns the sums over the samples of each task on all ranks, `[n]`."""
            return sum_over_ranks(torch.stack([x.sum() for x in torch.split(numbers, sizes)]))

        # What stands before a sample in the mean of its task over all ranks.
        parts = 1.0 if step.factors is None else spread(step.factors.to(every)) / ranks
        parts = parts / spread(every.new_tensor(sizes))
        scores = self._scores(every, parts / n, step)
        if self._samples is None:  # a task's loss has a part on each rank, and one weight
            scores = sum_over_ranks(parts * scores)
        helps = scores.clamp_min(0)
        total = gathered(helps).sum() if self._samples is not None else helps.sum()
        w = torch.where(total > 0, helps / total, 0.0)
        before = w if self._samples is not None else w * parts
        weights = gathered(before)
        value = gathered(before * every.detach()).sum()
        self.sample_weights = {
            self.tasks[i]: x for i, x in zip(step.index, torch.split(w, sizes), strict=True)
        }

        def spend(value: Tensor, changed: Tensor) -> Tensor:
            follow = spread(torch.where(weights > 0, changed / weights, 0.0)) * before
            alike = torch.where(spread(weights) > 0, 0.0, spread(changed) * parts)
            return value + ranks * ((follow + alike) * (every - every.detach())).sum()

        if self.rescale == "none":
            return Weighed(weights, value, spend)
        ratio = self._ratio(step, shared, weights, every, before)
        return Weighed(weights * ratio, value * ratio, spend)

    def _scores(self, every: Tensor, start: Tensor, step: Step) -> Tensor:
        """Returns the inner products of the gradients of the losses `[N]` with v, `[N]`.

        Up to a common factor, which the weights don't depend on.

        Args:
            every: The losses.
            start: What stands before them in the loss of the trial step, `[N]`.
            step: For messages.
        """
        if self._carried is not None:
            scores = self._carried.read(every, start)
        elif self._missed:
            self._missed = False
            raise ValueError(
                "The block of `directed` was left before SLGrad was called, and with it went what "
                "the losses carried: call strategy(losses) inside the block."
            )
        else:
            leaves = [leaf for leaf, _ in walk([every]).leaves]
            around = Surroundings(leaves, every.detach())
            slopes = BackwardSlopes(every, start, around)
            v = self._held_out(around, sum_over_ranks(slopes.rate), self._by_name(step))
            scores = slopes.along(unit(v))
        if sum_over_ranks((~scores.isfinite()).sum()):
            raise ValueError(
                f"The gradient of one of the losses {self._by_name(step)} is not finite: skip this "
                "batch; torch.autograd.set_detect_anomaly(True) shows where it comes from."
            )
        return scores

    def _held_out(self, around: Surroundings, rate: Tensor | None, losses: object) -> Tensor:
        """Returns v after a trial step along a gradient `[P]`, `[P]`; losses are for messages."""
        if rate is None or not self.learning_rate:
            return held_out_gradient(self.validation, around, None, "training")
        trial = f"a trial step with learning rate {self.learning_rate} along the losses {losses}"
        return held_out_gradient(self.validation, around, -self.learning_rate * rate, trial)

    def _trial_end(self, around: Surroundings, trial: Callable[[], Losses] | None) -> Tensor:
        """Returns v before the losses of the step are there, `[P]`."""
        if self.rescale == "equal-norm":
            raise ValueError(
                "`rescale='equal-norm'` takes the gradient of each task, which does not go with "
                "forward mode: choose another `rescale`, or call the strategy without `directed`."
            )
        if not self.learning_rate:
            return self._held_out(around, None, None)
        if trial is None:
            raise ValueError(
                f"SLGrad with `learning_rate` {self.learning_rate} takes a trial step along losses "
                "that are not there yet: give `directed` a `trial=` that computes them, or build "
                "SLGrad with `learning_rate=0`, which takes v where the network is."
            )
        with torch.enable_grad():
            value, losses = mean_loss(self.tasks, trial())
            rate = around.gradients([value], "trial")[0]
        return self._held_out(around, rate, losses)

    def _by_name(self, step: Step) -> dict[str, float]:
        return {self.tasks[i]: x for i, x in zip(step.index, step.seen.tolist(), strict=True)}

    def _ratio(
        self, step: Step, shared: Shared | None, weights: Tensor, every: Tensor, before: Tensor
    ) -> Tensor:
        """Returns what `rescale` multiplies the weights with."""
        if self.rescale != "equal-norm":
            return self._stretch(weights, None, None)
        sought = self._seek(step, shared, weighted_heads=True)
        gram = self._gram(products_of(sought, self.workspace))
        places = Surroundings([x for x in sought.shared if x.requires_grad], every.detach())
        total = world_size() * (before * every).sum()
        mine = places.joined(backward_pass([total], [torch.ones_like(total)], places.leaves))
        if not sought.of_features:
            mine = sum_over_ranks(mine) / world_size()
        return self._stretch(weights, gram, length_over_ranks(mine, sought.of_features))
