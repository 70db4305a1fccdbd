"""Weights chosen by an agent that is rewarded when the slowest task improves."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from mtlweight.inputs import Metrics
from mtlweight.loss_strategy import LossStrategy
from mtlweight.options import Count, Natural, Options, Past, Positive, Share, Tasks
from mtlweight.running import RunningMean, sent, updated
from mtlweight.strategies.experimental.actor_critic import SoftActorCritic
from mtlweight.strategies.geometric import safe_log
from mtlweight.strategies.loss_trends import relative


class IGBv2(LossStrategy):
    r"""Improvable gap balancing by reinforcement learning (experimental).

    $$\mathcal{L} = \sum_i v_i \log L_i, \qquad v = T \operatorname{softmax}(u), \qquad
    u \sim \mathcal{N}(\mu(s), \sigma^2(s)), \qquad
    s_i = L_i / B_i, \qquad r = c \min_i (s_i - s'_i), \qquad w_i = v_i / L_i$$

    with $\mu, \sigma$ from the actor of a soft actor-critic, $B_i$ the mean loss of task i in an
    early epoch, and s' what comes after s. In the first epochs u is a standard normal draw.
    Transitions are kept from the end of the base epoch on; after `update_after` epochs, every
    `update_every` steps, the agent learns `update_every` $\cdot\, k/2$ times from
    `batch_size` $\cdot\, k/2$ of them, with k one plus the part of the memory that is filled. The
    weights reported are those of the losses, $w$, whose sum is not fixed.

    Ours: the agent reads s within [0, 10], where the authors' reads L, so that neither the scale of
    a loss nor a spike blinds it; the density of an action is that of a softmax (the authors' code
    corrects for a tanh, which it does not use); a step with absent tasks is no transition, and $v$
    sums to the number of those present; a loss below $10^{-8}$ of the largest has no say in the
    step. The authors scale the reward by the first learning rate over the present one: set the
    attribute `reward_scale` as yours falls.

    Use it when a study asks for it, in runs of tens of thousands of steps; else `IGBv1` gives much
    of it at no cost. Not when `end_epoch` is never called: the weights stay random then.

    Args:
        tasks: The names of the tasks, or their number.
        base_epoch: The epoch whose mean losses are $B$, from 0.
        random_epochs: The number of first epochs with random weights.
        update_after: The number of first epochs without learning.
        update_every: The number of steps between two rounds of learning.
        learning_rate: That of the agent.
        discount: $\gamma$ of the agent.
        batch_size: The transitions of an update, once the memory is full.
        memory: The number of transitions kept.
        hidden: The width of both hidden layers of the agent's networks.
        polyak: The share of the critics that their slow copies take in at each update.
        target_entropy: The entropy that the actor aims at; by default -T.
        reward_scale: c.
        seed: Seeds the agent and its draws.
        **options: See `Options`.

    Attributes:
        bases: $B$, `[T]`; zero until it is known.
        latest_losses: The latest losses, `[T]`.
        latest_action: The latest $v$ of all tasks, `[T]`.
        transitions: s, the action, the reward and s', `[M, 3T + 1]`.
        count: The number of transitions so far, `[1]`.

    Raises:
        ValueError: A loss is negative.

    Source: Dai, Fei & Lu, *Improvable gap balancing for multi-task learning*, UAI 2023, arXiv
    2307.15429, IGBv2, with the constants of the authors' code.
    """

    carried: ClassVar[tuple[str, ...]] = (*LossStrategy.carried, "recorded", "chained")
    bases: Tensor
    latest_losses: Tensor
    latest_action: Tensor
    transitions: Tensor
    count: Tensor

    def __init__(
        self,
        tasks: Tasks,
        *,
        base_epoch: Natural = 1,
        random_epochs: Natural = 5,
        update_after: Natural = 3,
        update_every: Count = 50,
        learning_rate: Positive = 3e-4,
        discount: Past = 0.99,
        batch_size: Count = 256,
        memory: Count = 10_000,
        hidden: Count = 128,
        polyak: Share = 0.005,
        target_entropy: float | None = None,
        reward_scale: Positive = 1.0,
        seed: Natural = 0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(tasks, **options)
        self.base_epoch = base_epoch
        self.random_epochs = random_epochs
        self.update_after = update_after
        self.update_every = update_every
        self.batch_size = batch_size
        self.reward_scale = reward_scale
        self.seed = seed
        self.recorded = 0  # an upper bound of `count` that no device has to be asked for
        self.chained = False
        size = self.num_tasks
        self.agent = SoftActorCritic(
            size,
            hidden=(hidden, hidden),
            learning_rate=learning_rate,
            discount=discount,
            polyak=polyak,
            target_entropy=-float(size) if target_entropy is None else target_entropy,
            seed=seed,
        )
        self.epoch_losses = RunningMean(size)
        self.register_buffer("bases", torch.zeros(size))
        self.register_buffer("latest_losses", torch.zeros(size))
        self.register_buffer("latest_action", torch.ones(size))
        self.register_buffer("transitions", torch.zeros(memory, 3 * size + 1))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))

    @property
    def nonnegative_losses(self) -> bool:
        """A negative loss has no logarithm."""
        return True

    def scalarize(self, losses: Tensor) -> Tensor:
        generator = self.generator()
        whole = isinstance(self.present, slice)
        seen = losses.detach()
        self.epoch_losses.add(self.present, seen)
        before = self.latest_losses
        self.latest_losses = updated(before, self.present, seen)
        if whole and self.chained and self.epoch > self.base_epoch:
            self._record(before)
        if self.recorded and self.epoch >= self.update_after and not self.step % self.update_every:
            self._learn(generator)
        if self.epoch < self.random_epochs:
            drawn = torch.randn(self.num_tasks, generator=generator).softmax(0)
            action = self.num_tasks * sent(drawn, seen)
        else:
            action = self.agent.act(relative(self.latest_losses, self.bases), generator)
        action = action.to(self.latest_action)
        self.chained = whole
        if whole:
            self.latest_action = action
        v = action[self.present]
        return (len(v) * (v / v.sum()).to(losses) * safe_log(losses)).sum()

    def _record(self, before: Tensor) -> None:
        """Remembers what came of the latest action."""
        state, following = relative(before, self.bases), relative(self.latest_losses, self.bases)
        reward = self.reward_scale * (state - following).min().reshape(1)
        row = torch.cat([state, self.latest_action, reward, following])
        place = self.count % len(self.transitions)
        self.transitions = self.transitions.index_copy(0, place, row[None])
        self.count = self.count + 1
        self.recorded += 1

    def _learn(self, generator: torch.Generator) -> None:
        """Makes a round of updates of the agent."""
        memory, size = len(self.transitions), self.num_tasks
        k = 1 + min(self.recorded, memory) / memory
        filled = self.count.clamp(1, memory)
        for _ in range(max(1, int(self.update_every * k / 2))):
            draws = torch.rand(max(1, int(self.batch_size * k / 2)), generator=generator)
            places = (sent(draws, self.transitions) * filled).long().clamp_max(filled - 1)
            rows = self.transitions[places]
            state, action, reward, following = torch.split(rows, [size, size, 1, size], dim=1)
            self.agent.learn((state, action, reward[:, 0], following), generator)

    def close_epoch(self, metrics: Metrics | None) -> None:
        """Keeps the mean losses of the base epoch."""
        if self.epoch >= self.base_epoch:
            means = self.epoch_losses.mean(default=self.bases)
            self.bases = torch.where(self.bases > 0, self.bases, means)
        self.epoch_losses.reset()
