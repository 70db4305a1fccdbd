r"""The unit cube behind a degradation: 38 uniforms per sample, and what each becomes.

Every primitive choice of one sample is a fixed function of one uniform $v\in[0,1)$, piecewise
constant or affine. A parameter is a tuple of `Branch`es whose boxes are disjoint: this single
description drives the draws (`parameters_from_cube`), the translation of physical ranges into boxes
(`boxes_where`) and the words in reports.

Columns in the order of the cube; `_1` and `_2` are the stages, the second repeats the first:

| columns | name | meaning |
| --- | --- | --- |
| 0, 17 | `kernel_size_*` | one of the equally likely odd sizes |
| 1, 18 | `sinc_*` | sinc kernel if low; in stage 1, no blur if at or above `blur.on` |
| 2, 19 | `family_*` | one of the six families |
| 3, 20 | `sigma_x_*` | first standard deviation |
| 4, 21 | `sigma_y_*` | second standard deviation, read by anisotropic families |
| 5, 22 | `rotation_*` | rotation, read by anisotropic families |
| 6, 23 | `beta_side_*` | low or high branch of the exponent |
| 7, 24 | `beta_*` | the exponent within its branch |
| 8, 25 | `omega_*` | sinc cutoff; its range depends on the kernel size |
| 9, 26 | `resize_direction_*` | up, down or keep |
| 10, 27 | `resize_scale_*` | the factor within its direction |
| 11, 28 | `resize_mode_*` | area, bilinear or bicubic |
| 12, 29 | `noise_type_*` | Gaussian, Poisson, or none if at or above `noise.on` |
| 13, 30 | `noise_level_*` | the strength, as a fraction of the type's range |
| 14, 31 | `gray_noise_*` | one field for the three channels |
| 15, 32 | `jpeg_quality_*` | the quality; no compression if at or above `jpeg.on` |
| 16 | `blur_2` | whether the second blur is applied |
| 33 | `final_sinc` | whether the final sinc is applied |
| 34 | `final_kernel_size` | its size |
| 35 | `final_omega` | its cutoff |
| 36 | `final_sinc_before_jpeg` | order of (resize, sinc) and the second JPEG |
| 37 | `final_resize_mode` | interpolation of the last resize |

Source: the cube is ours; the maps are Real-ESRGAN's marginal laws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise

from mtlweight_sr.degradation.mixture import Mixture, Space
from mtlweight_sr.degradation.space import FAMILIES, MODES, FinalStage, Stage, exact

__all__ = [
    "COLUMNS",
    "NOISE_TYPES",
    "Branch",
    "Sides",
    "atom_edges",
    "branches",
    "component_sides",
    "value_names",
]

NOISE_TYPES = ("gaussian", "poisson", "none")
"""Types of noise; a type's number is its place here."""

Sides = Mapping[str, tuple[Fraction, Fraction]]
"""The sides of a box of the cube: column -> (low, high); a column left out spans [0, 1)."""

_BLUR = (
    "kernel_size",
    "sinc",
    "family",
    "sigma_x",
    "sigma_y",
    "rotation",
    "beta_side",
    "beta",
    "omega",
)
_REST = (
    "resize_direction",
    "resize_scale",
    "resize_mode",
    "noise_type",
    "noise_level",
    "gray_noise",
    "jpeg_quality",
)

COLUMNS: tuple[str, ...] = (
    *(f"{name}_1" for name in _BLUR + _REST),
    "blur_2",
    *(f"{name}_2" for name in _BLUR + _REST),
    "final_sinc",
    "final_kernel_size",
    "final_omega",
    "final_sinc_before_jpeg",
    "final_resize_mode",
)
"""The 38 columns of the cube, in order."""

_NAMES: Mapping[str, tuple[str, ...]] = {
    "family_1": FAMILIES,
    "family_2": FAMILIES,
    "resize_mode_1": MODES,
    "resize_mode_2": MODES,
    "final_resize_mode": MODES,
    "noise_type_1": NOISE_TYPES,
    "noise_type_2": NOISE_TYPES,
}


def value_names(space: Space, parameter: str) -> tuple[str, ...] | None:
    """The names that the numbers of a parameter stand for, by their places; None: numbers alone."""
    if parameter == "component" and isinstance(space, Mixture):
        return space.names
    return _NAMES.get(parameter)


@dataclass(frozen=True)
class Branch:
    r"""One piece of a parameter's map.

    Inside the box `where` the value is $\mathrm{low}+(\mathrm{high}-\mathrm{low})\frac{v-a}{b-a}$,
    with $v$ the uniform of `column` and $(a,b)$ the side of `where` on that column; without a
    `column` it is the constant `low`.

    Attributes:
        where: The box of the cube on which this piece holds.
        low: The value, or its infimum.
        high: Its supremum.
        column: The column that is read, None for a constant.
    """

    where: Sides
    low: float
    high: float
    column: str | None = None


_Branches = tuple[Branch, ...]


def _constant(where: Sides, value: float) -> Branch:
    return Branch(where, value, value)


def _affine(where: Sides, column: str, bounds: tuple[float, float]) -> Branch:
    if bounds[0] == bounds[1]:
        return _constant(where, bounds[0])
    return Branch({column: (Fraction(0), Fraction(1)), **where}, *bounds, column)


def _edges(probabilities: Sequence[Fraction]) -> list[Fraction]:
    total = sum(probabilities, Fraction(0))
    return [Fraction(0), *accumulate(p / total for p in probabilities)]


def _atoms(column: str, probabilities: Sequence[Fraction]) -> list[Sides]:
    edges = _edges(probabilities)
    return [{column: side} for side in pairwise(edges)]


def _switch(column: str, probability: float) -> tuple[Branch, ...]:
    on = exact(probability)
    yes, no = _atoms(column, [on, 1 - on])
    return _constant(yes, 1), _constant(no, 0)


def _choice(column: str, values: Sequence[float], probabilities: Sequence[Fraction]) -> _Branches:
    where = _atoms(column, probabilities)
    return tuple(_constant(w, value) for w, value in zip(where, values, strict=True))


def _equally(column: str, values: Sequence[float]) -> _Branches:
    return _choice(column, values, [Fraction(1, len(values))] * len(values))


def _modes(column: str, probabilities: Sequence[float]) -> _Branches:
    return _choice(column, range(len(MODES)), [exact(p) for p in probabilities])


def _stage(stage: Stage, s: int) -> dict[str, _Branches]:
    blur, resize, noise, jpeg = stage.blur, stage.resize, stage.noise, stage.jpeg
    family = _atoms(f"family_{s}", [exact(p) for p in blur.families])
    isotropic, anisotropic = family[0::2], family[1::2]
    sides = _atoms(f"beta_side_{s}", [exact(blur.beta_low), 1 - exact(blur.beta_low)])
    direction = _atoms(
        f"resize_direction_{s}", [exact(p) for p in (resize.up, resize.down, resize.keep)]
    )
    noise_on, gaussian = exact(noise.on), exact(noise.gaussian)
    types = _atoms(
        f"noise_type_{s}", [noise_on * gaussian, noise_on * (1 - gaussian), 1 - noise_on]
    )
    jpeg_on = exact(jpeg.on)
    compressed, uncompressed = _atoms(f"jpeg_quality_{s}", [jpeg_on, 1 - jpeg_on])
    count = len(blur.kernel_sizes)
    first_large = Fraction(sum(size < blur.large_from for size in blur.kernel_sizes), count)
    size_column = f"kernel_size_{s}"
    blur_on, sinc = exact(blur.on), exact(blur.sinc)
    if s == 1:
        kinds = _atoms("sinc_1", [blur_on * sinc, blur_on * (1 - sinc), 1 - blur_on])
        blurred = tuple(_constant(kind, on) for kind, on in zip(kinds, (1, 1, 0), strict=True))
        sinc_kernel = tuple(_constant(kind, on) for kind, on in zip(kinds, (1, 0, 0), strict=True))
    else:
        blurred, sinc_kernel = _switch("blur_2", blur.on), _switch("sinc_2", blur.sinc)
    betas = (
        (blur.beta_generalised_low, blur.beta_generalised_high),
        (blur.beta_plateau_low, blur.beta_plateau_high),
    )
    named = {
        "blur": blurred,
        "kernel_size": _equally(size_column, blur.kernel_sizes),
        "sinc": sinc_kernel,
        "family": tuple(_constant(where, i) for i, where in enumerate(family)),
        "sigma_x": (_affine({}, f"sigma_x_{s}", blur.sigma_x),),
        "sigma_y": (
            *(_affine(where, f"sigma_x_{s}", blur.sigma_x) for where in isotropic),
            *(_affine(where, f"sigma_y_{s}", blur.sigma_y) for where in anisotropic),
        ),
        "rotation": (
            *(_constant(where, 0) for where in isotropic),
            *(_affine(where, f"rotation_{s}", blur.rotation) for where in anisotropic),
        ),
        "beta": (
            *(_constant(where, 1) for where in family[:2]),
            *(
                _affine({**family[2 + 2 * shape + axes], **side}, f"beta_{s}", bounds)
                for shape in (0, 1)
                for axes in (0, 1)
                for side, bounds in zip(sides, betas[shape], strict=True)
            ),
        ),
        "omega": (
            _affine({size_column: (Fraction(0), first_large)}, f"omega_{s}", blur.cutoff_small),
            _affine({size_column: (first_large, Fraction(1))}, f"omega_{s}", blur.cutoff_large),
        ),
        "resize_scale": (
            _affine(direction[0], f"resize_scale_{s}", resize.up_range),
            _affine(direction[1], f"resize_scale_{s}", resize.down_range),
            _constant(direction[2], 1),
        ),
        "resize_mode": _modes(f"resize_mode_{s}", resize.modes),
        "noise_type": tuple(_constant(where, i) for i, where in enumerate(types)),
        "noise_level": (_affine({}, f"noise_level_{s}", (0, 1)),),
        "noise_sigma": (_affine(types[0], f"noise_level_{s}", noise.sigma),),
        "noise_scale": (_affine(types[1], f"noise_level_{s}", noise.scale),),
        "gray_noise": _switch(f"gray_noise_{s}", noise.gray),
        "jpeg": (_constant(compressed, 1), _constant(uncompressed, 0)),
        "jpeg_quality": (_affine(compressed, f"jpeg_quality_{s}", jpeg.quality),),
    }
    return {f"{name}_{s}": pieces for name, pieces in named.items()}


def _final(final: FinalStage) -> dict[str, _Branches]:
    return {
        "final_sinc": _switch("final_sinc", final.sinc),
        "final_kernel_size": _equally("final_kernel_size", final.kernel_sizes),
        "final_omega": (_affine({}, "final_omega", final.cutoff),),
        "final_sinc_before_jpeg": _switch("final_sinc_before_jpeg", final.before_jpeg),
        "final_resize_mode": _modes("final_resize_mode", final.modes),
    }


def component_sides(mixture: Mixture) -> tuple[Sides, ...]:
    """The box of the cube that belongs to each component of a mixture."""
    return tuple({COLUMNS[-1]: interval} for interval in mixture.intervals)


def _inside(piece: Branch, sides: Sides) -> Branch:
    """A piece of a component's map, on the part of the cube that belongs to the component."""
    ((column, (start, end)),) = sides.items()
    low, high = piece.where.get(column, (Fraction(0), Fraction(1)))
    part = (start + (end - start) * low, start + (end - start) * high)
    return Branch({**piece.where, column: part}, piece.low, piece.high, piece.column)


def _mixed(mixture: Mixture) -> dict[str, _Branches]:
    parts = list(zip(mixture.components, component_sides(mixture), strict=True))
    named: dict[str, _Branches] = {
        "component": tuple(_constant(sides, i) for i, (_, sides) in enumerate(parts))
    }
    for part, sides in parts:
        for name, pieces in branches(part.space).items():
            named[name] = (*named.get(name, ()), *(_inside(piece, sides) for piece in pieces))
    return named


@lru_cache(maxsize=32)
def branches(space: Space) -> Mapping[str, tuple[Branch, ...]]:
    """Every parameter of a space as its branches; boxes of no volume are left out.

    The keys are the parameters a user may set a range for: most columns under their own name, and
    `blur_1`, `jpeg_*`, `noise_sigma_*` (1/255, Gaussian samples only) and `noise_scale_*` (Poisson
    samples only). A mixture has `component` too.
    """
    if isinstance(space, Mixture):
        return _mixed(space)
    every = {**_stage(space.first, 1), **_stage(space.second, 2), **_final(space.final)}
    return {
        name: tuple(p for p in pieces if all(low < high for low, high in p.where.values()))
        for name, pieces in every.items()
    }


@lru_cache(maxsize=32)
def atom_edges(space: Space) -> Mapping[str, frozenset[Fraction]]:
    """The discrete columns and the edges of their atoms, where alone they may be cut."""
    pieces = [piece for some in branches(space).values() for piece in some]
    read = {piece.column for piece in pieces}
    edges: dict[str, set[Fraction]] = {}
    for piece in pieces:
        for column, side in piece.where.items():
            if column not in read:
                edges.setdefault(column, {Fraction(0), Fraction(1)}).update(side)
    return {column: frozenset(marks) for column, marks in edges.items()}
