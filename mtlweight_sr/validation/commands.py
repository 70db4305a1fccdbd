"""Validation sets from the command line.

`python -m mtlweight_sr.validation build photographs --out set`, `check set`, and
`rebuild set photographs --out copy`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from mtlweight_sr.data import BundledPhotographs, PhotographFolder, Photographs
from mtlweight_sr.degradation.pipeline import Compat
from mtlweight_sr.explaining import explain
from mtlweight_sr.tasks import PRESETS
from mtlweight_sr.tasks import preset as ready_made
from mtlweight_sr.validation.rebuild import rebuild as make_again
from mtlweight_sr.validation.sets import ValidationSet

__all__ = ["app"]

app = typer.Typer(
    help="Fixed validation sets: photographs degraded in every task, kept as PNG with a manifest.",
    add_completion=False,
)

_Folder = Annotated[
    Path | None,
    typer.Argument(
        metavar="[DIR]", help="Photographs; the bundled ones if not given.", show_default=False
    ),
]


@app.command()
def build(
    photographs: _Folder = None,
    preset: Annotated[str, typer.Option(help=f"Tasks: {', '.join(PRESETS)}.")] = "paper4",
    seed: Annotated[int, typer.Option(help="Seed of parameters and noise.")] = 0,
    scale: Annotated[int, typer.Option(help="2 or 4.")] = 4,
    crop: Annotated[int | None, typer.Option(help="Side of central crops in pixels.")] = None,
    images: Annotated[int | None, typer.Option(help="How many photographs to take.")] = None,
    natural: Annotated[bool, typer.Option(help="Also make a set without condition.")] = True,
    compat: Annotated[
        Compat | None,
        typer.Option(help="Follow the operators of that pipeline, defects included."),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="The folder to make.")],
) -> None:
    """Makes a set: a degraded copy of each photograph per task, with common random numbers."""
    with _reported("Degrading the photographs") as console:
        tasks = ready_made(preset, scale)
        made = ValidationSet.build(
            _photographs(photographs),
            tasks,
            seed=seed,
            crop=crop,
            out=out,
            images=images,
            natural=natural,
            compat=compat,
        )
        _say(console, made, out)


@app.command()
def check(folder: Annotated[Path, typer.Argument(metavar="SET", help="Its folder.")]) -> None:
    """Compares every file of a set with its hash."""
    with _reported("Reading the files") as console:
        found = ValidationSet.load(folder)
        _say(console, found, folder)


@app.command()
def rebuild(
    manifest: Annotated[Path, typer.Argument(metavar="SET", help="A set, or its manifest alone.")],
    photographs: _Folder = None,
    *,
    out: Annotated[Path, typer.Option(help="The folder to make.")],
) -> None:
    """Makes a set again from its manifest and the photographs, and compares every pixel."""
    with _reported("Degrading the photographs") as console:
        made = make_again(manifest, _photographs(photographs), out)
        _say(console, made, out)


def _photographs(folder: Path | None) -> Photographs:
    return BundledPhotographs("val") if folder is None else PhotographFolder(folder)


def _say(console: Console, made: ValidationSet, folder: Path) -> None:
    console.print(
        f"{folder}: {len(made)} photographs in {', '.join(made.tasks)}; all files as recorded.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def _reported(doing: str) -> Iterator[Console]:
    console = Console()
    try:
        with console.status(doing):
            yield console
    except (ValidationError, ValueError, OSError) as error:
        console.print(f"[red]Error:[/] {escape(explain(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
