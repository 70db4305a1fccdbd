"""Distributions that first pick one of several degradation spaces, as DASR's three levels."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mtlweight_sr.degradation.space import DegradationSpace, exact

__all__ = ["Component", "Mixture", "Space"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Component(_Settings):
    """One space of a mixture.

    Attributes:
        name: What it is called; also its value of the parameter `component`.
        share: Its probability.
        space: The distribution of its samples.
    """

    name: Annotated[str, Field(min_length=1)]
    share: Annotated[float, Field(gt=0, le=1)]
    space: DegradationSpace


class Mixture(_Settings):
    r"""Picks a component by its share, then a degradation from that component's space.

    Used wherever a `DegradationSpace` is. No further column of the cube is needed: the uniform $v$
    of the last column picks the component whose interval $[a,b)$ holds it, and
    $\frac{v-a}{b-a}$, which is uniform again, stands in for it there. So components are boxes of
    the cube, their masses are exact, and the same id has the same row in each of them.

    Attributes:
        components: At least one, with different names, spaces of one scale and shares that sum to
            1.

    Raises:
        pydantic.ValidationError: Names the field, the value and what was expected.

    Source: the levels and shares are those of Liang, Zeng and Zhang, DASR (ECCV 2022); the shared
        column is ours.
    """

    components: Annotated[tuple[Component, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [part.name for part in self.components]
        if len(set(names)) < len(names):
            raise ValueError(f"expected components with different names, got {names}; rename them")
        shares = [exact(part.share) for part in self.components]
        if abs(float(sum(shares)) - 1) > 1e-9:
            raise ValueError(
                f"expected shares that sum to 1, got {[float(share) for share in shares]} with sum "
                f"{float(sum(shares)):g}; divide each by that sum"
            )
        scales = {part.space.scale for part in self.components}
        if len(scales) > 1:
            raise ValueError(
                f"expected spaces of one scale, got {sorted(scales)}; write "
                "space.model_copy(update={'scale': 4})"
            )
        return self

    @property
    def scale(self) -> Literal[2, 4]:
        """HR size over LR size."""
        return self.components[0].space.scale

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the components."""
        return tuple(part.name for part in self.components)

    @property
    def intervals(self) -> tuple[tuple[Fraction, Fraction], ...]:
        """The interval of the last column that belongs to each component; its length is exact."""
        shares = [exact(part.share) for part in self.components]
        total = sum(shares, Fraction(0))
        return tuple(pairwise([Fraction(0), *accumulate(share / total for share in shares)]))


Space = DegradationSpace | Mixture
"""A distribution over degradations."""
