"""Soft actor-critic on a simplex: the agent of `IGBv2`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlweight.running import Adam, sent


class SoftActorCritic(nn.Module):
    r"""An agent that reads T numbers and answers with T positive ones that sum to T.

    The action is $a = T \operatorname{softmax}(u)$ with $u \sim \mathcal{N}(\mu, \sigma^2)$, and
    $\mu, \sigma$ from the actor. Two critics, each with a slow copy; a learned temperature $\tau$:

    $$y = r + \gamma \big(\min_j \bar Q_j(s', a') - \tau \log \pi(a' | s')\big), \qquad
    \min_Q \sum_j (Q_j(s, a) - y)^2, \qquad
    \min_\pi\ \tau \log \pi(a | s) - \min_j Q_j(s, a)$$

    and $\log \tau$ falls by $-(\log \pi + H)$ on average, with H the entropy aimed at. Networks are
    vectors of their parameters, in buffers. Draws nothing but from the generators it is given.

    Args:
        num_tasks: T.
        hidden: The widths of the hidden layers.
        learning_rate: That of the actor, the critics and $\log \tau$.
        discount: $\gamma$.
        polyak: The share of the critics that their slow copies take in at each update.
        target_entropy: H.
        seed: Seeds the networks.

    Attributes:
        actor: Its parameters, `[A]`.
        critics: Those of both, `[2C]`.
        targets: Those of their slow copies, `[2C]`.
        log_temperature: $\log \tau$, `[1]`.

    Source: Haarnoja et al., *Soft actor-critic algorithms and applications*, arXiv 1812.05905.
    """

    actor: Tensor
    critics: Tensor
    targets: Tensor
    log_temperature: Tensor

    def __init__(
        self,
        num_tasks: int,
        *,
        hidden: Sequence[int],
        learning_rate: float,
        discount: float,
        polyak: float,
        target_entropy: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.actor_sizes = (num_tasks, *hidden, 2 * num_tasks)
        self.critic_sizes = (2 * num_tasks, *hidden, 1)
        self.discount = discount
        self.polyak = polyak
        self.target_entropy = target_entropy
        generator = torch.Generator().manual_seed(seed)
        critics = [initial_parameters(self.critic_sizes, generator) for _ in range(2)]
        self.register_buffer("actor", initial_parameters(self.actor_sizes, generator))
        self.register_buffer("critics", torch.cat(critics))
        self.register_buffer("targets", self.critics.clone())
        self.register_buffer("log_temperature", torch.tensor([math.log(0.2)]))
        self.actor_adam = Adam(len(self.actor), learning_rate)
        self.critic_adam = Adam(len(self.critics), learning_rate)
        self.temperature_adam = Adam(1, learning_rate)

    @torch.no_grad()
    def act(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """Returns an action `[T]` for a state `[T]`."""
        action, _ = self._policy(self.actor, state[None].to(self.actor), generator)
        return action[0]

    @torch.enable_grad()
    def learn(self, batch: Sequence[Tensor], generator: torch.Generator) -> None:
        """Makes one update of each network.

        Args:
            batch: States `[B, T]`, actions `[B, T]`, rewards `[B]` and the states after `[B, T]`.
            generator: Of the actions that are tried.
        """
        state, action, reward, following = batch
        every = slice(None)
        tau = self.log_temperature.exp()
        next_action, next_log_prob = self._policy(self.actor, following, generator)
        next_value = self._values(self.targets, following, next_action).min(0).values
        goal = (reward + self.discount * (next_value - tau * next_log_prob)).detach()

        critics = self.critics.clone().requires_grad_()
        error = (self._values(critics, state, action) - goal).square().mean(1).sum()
        (slope,) = torch.autograd.grad(error, critics)
        self.critics = self.critic_adam.step(self.critics, every, slope)

        actor = self.actor.clone().requires_grad_()
        tried, log_prob = self._policy(actor, state, generator)
        value = self._values(self.critics, state, tried).min(0).values
        (slope,) = torch.autograd.grad((tau * log_prob - value).mean(), actor)
        self.actor = self.actor_adam.step(self.actor, every, slope)

        slope = -(log_prob.detach() + self.target_entropy).mean().reshape(1)
        self.log_temperature = self.temperature_adam.step(self.log_temperature, every, slope)
        self.targets = torch.lerp(self.targets, self.critics, self.polyak)

    def _policy(
        self, actor: Tensor, state: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns actions `[B, T]` for states, and the logarithms of their densities, `[B]`."""
        mean, log_std = perceptron(actor, self.actor_sizes, state).chunk(2, dim=1)
        log_std = log_std.clamp(-20, 2)
        noise = sent(torch.randn(mean.shape, generator=generator), mean)
        u = mean + log_std.exp() * noise
        return len(u[0]) * u.softmax(1), softmax_normal_log_prob(u, mean, log_std)

    def _values(self, critics: Tensor, state: Tensor, action: Tensor) -> Tensor:
        """Returns what both critics think of actions, `[2, B]`."""
        pair = torch.cat([state, action], dim=1)
        return torch.stack(
            [perceptron(critic, self.critic_sizes, pair)[:, 0] for critic in critics.chunk(2)]
        )


def initial_parameters(sizes: Sequence[int], generator: torch.Generator) -> Tensor:
    """Returns the parameters of a perceptron: uniform within one over the root of the inputs."""
    parts = [
        (2 * torch.rand((i + 1) * o, generator=generator) - 1) / i**0.5 for i, o in pairwise(sizes)
    ]
    return torch.cat(parts)


def perceptron(parameters: Tensor, sizes: Sequence[int], x: Tensor) -> Tensor:
    """Returns the outputs of a network of linear layers with rectifiers between them."""
    start = 0
    for layer, (i, o) in enumerate(pairwise(sizes)):
        weight = parameters[start : start + i * o].view(o, i)
        bias = parameters[start + i * o : start + (i + 1) * o]
        x = F.linear(x.relu() if layer else x, weight, bias)
        start += (i + 1) * o
    return x


def softmax_normal_log_prob(u: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    r"""Returns the logarithm of the density of $a = T \operatorname{softmax}(u)$, `[B]`.

    For u normal with independent entries. The softmax forgets a shift of u, so that the density, by
    the first T - 1 entries of a, is that of u with the shift c integrated out, over the volume that
    the softmax makes of the rest:

    $$\pi(a) = \frac{\int \prod_i \mathcal{N}(\log \tfrac{a_i}{T} + c;\ \mu_i, \sigma_i^2)\, dc}
    {T^{T-1} \prod_i a_i / T}$$

    Args:
        u: `[B, T]`.
        mean: $\mu$, `[B, T]`.
        log_std: $\log \sigma$, `[B, T]`.
    """
    num_tasks = u.shape[1]
    log_w = u.log_softmax(1)
    x = log_w - mean
    # By the most certain entry, as precisions may lie many decades apart.
    lowest = log_std.min(1, keepdim=True).values
    p = (-2 * (log_std - lowest)).exp()
    centred = x - (p * x).sum(1, keepdim=True) / p.sum(1, keepdim=True)
    spread = ((centred * (-log_std).exp()) ** 2).sum(1)
    log_integral = (
        -(num_tasks - 1) / 2 * math.log(2 * math.pi)
        - log_std.sum(1)
        + lowest[:, 0]
        - p.sum(1).log() / 2
        - spread / 2
    )
    return log_integral - log_w.sum(1) - (num_tasks - 1) * math.log(num_tasks)
