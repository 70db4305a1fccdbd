"""Degrade image files from the command line.

`python -m mtlweight_sr.degrade photographs --task blur --seed 3 --out lr`
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mtlweight_sr.data import Photographs
from mtlweight_sr.degradation import DegradationSpace
from mtlweight_sr.degradation.pipeline import Compat
from mtlweight_sr.degrade.contact_sheet import Sample, contact_sheet
from mtlweight_sr.degrade.files import RECORD, Outcome, degrade_files
from mtlweight_sr.degrade.jobs import Found, Job, find_images, jobs_of, read_record
from mtlweight_sr.explaining import explain
from mtlweight_sr.replay import cut
from mtlweight_sr.tasks import PRESETS, FrozenTasks, ScoreTaskSpace, TaskSpace, paper, two_stage4
from mtlweight_sr.tasks import preset as ready_made
from mtlweight_sr.training_files import write_atomically

__all__ = ["main"]

SHEET = "sheet.png"
"""Name of the contact sheet in the folder of results."""
INTERRUPTED = 130
_SHEET_ROWS, _SHEET_COLUMNS = 4, 8
_TABLE_ROWS = 20
# Streams of parameters of their own, one per image made from a photograph.
_STREAM = 2**17
_ON_RECORD = ("preset", "space", "task", "seed", "scale", "count", "crop", "compat", "sheet")

Tasks = TaskSpace | ScoreTaskSpace | FrozenTasks

_ON_ANY_SPACE: Mapping[str, Callable[[DegradationSpace], Tasks]] = {
    **{f"paper{n}": partial(paper, n=n) for n in (2, 3, 4, 5)},
    "two_stage4": two_stage4,
    "physical4": ScoreTaskSpace,
}


def main(
    context: typer.Context,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[IMAGE|DIR]...",
            help="Files, and folders to search; the bundled photographs if none is given.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help=f"Tasks: {', '.join(PRESETS)}.")] = "paper4",
    space: Annotated[
        Path | None, typer.Option(help="JSON of a DegradationSpace, instead of Real-ESRGAN's.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="One of the preset's tasks; if not given, all, as probable as they are."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of parameters and noise.")] = 0,
    scale: Annotated[int | None, typer.Option(help="2 or 4; 4 if not given.")] = None,
    count: Annotated[int, typer.Option(help="Degraded images per photograph.")] = 1,
    crop: Annotated[int | None, typer.Option(help="Side of a central crop in pixels.")] = None,
    compat: Annotated[
        Compat | None,
        typer.Option(help="Follow the operators of that pipeline, defects included."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("degraded"),
    sheet: Annotated[
        bool, typer.Option("--sheet", help=f"Also draw the images in every task, as {SHEET}.")
    ] = False,
    replay: Annotated[
        Path | None, typer.Option(help=f"A {RECORD}: make its images again, bit for bit.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files in the folder.")] = False,
) -> None:
    """Degrades photographs into low-resolution images, and says by which parameters."""
    console = Console()
    try:
        found = find_images(images or [], out) if images or replay is None else []
        if replay is not None:
            _refuse_options(context)
            jobs, request = read_record(replay, found)
            tasks = None
        else:
            tasks = _task_space(preset, space, scale)
            request = {"preset": preset, "task": task, "seed": seed, "count": count}
            request |= {"crop": crop, "compat": compat}
            request["space"] = tasks.space.model_dump(mode="json")
            jobs = _plan(found, tasks, request)
        if sheet and not force and (out / SHEET).exists():
            raise FileExistsError(f"{str(out / SHEET)!r} exists; give another --out, or --force.")
        outcome = _degrade(jobs, out, request, force, console)
        if sheet and tasks is not None and outcome.done:
            _draw_sheet(jobs, outcome, tasks, request, out, console)
    except KeyboardInterrupt:
        console.print(f"Stopped. What was made is in {out}.", highlight=False, markup=False)
        raise typer.Exit(INTERRUPTED) from None
    except (ValidationError, ValueError, OSError) as error:
        console.print(f"[red]Error:[/] {escape(explain(error))}", highlight=False)
        raise typer.Exit(2) from None
    if not outcome.done:
        console.print("[red]Error:[/] None of the images could be degraded.")
        raise typer.Exit(1)


def _refuse_options(context: typer.Context) -> None:
    given = [
        name
        for name in _ON_RECORD
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise ValueError(
            f"--replay takes everything from the record: leave out --{' and --'.join(given)}."
        )


def _task_space(name: str, file: Path | None, scale: int | None) -> Tasks:
    if file is None:
        return ready_made(name, 4 if scale is None else scale)
    if name not in _ON_ANY_SPACE:
        raise ValueError(
            f"`preset` must be one of {', '.join(_ON_ANY_SPACE)} on a --space, got {name!r}."
        )
    space = DegradationSpace.model_validate_json(file.read_bytes())
    if scale not in (None, space.scale):
        raise ValueError(f"{str(file)!r} has scale {space.scale}, --scale is {scale}; drop one.")
    return _ON_ANY_SPACE[name](space)


def _plan(found: Sequence[Found], tasks: Tasks, request: dict[str, Any]) -> list[Job]:
    """Draws the parameters of all images; the place of an image is its id, the turn the stream."""
    task, crop, scale = request["task"], request["crop"], tasks.space.scale
    if task is not None and task not in tasks.names:
        raise ValueError(
            f"`task` must be one of {', '.join(tasks.names)} in the preset {request['preset']!r}, "
            f"got {task!r}."
        )
    if request["count"] < 1:
        raise ValueError(f"`count` must be at least 1, got {request['count']}.")
    if crop is not None and (crop < scale or crop % scale):
        raise ValueError(f"`crop` must be a positive multiple of the scale {scale}, got {crop}.")
    ids, seed = range(len(found)), request["seed"]
    tables = [
        tasks.draw_natural(ids, seed, stream=_STREAM + turn)
        if task is None
        else tasks.draw(task, ids, seed, stream=_STREAM + turn)
        for turn in range(request["count"])
    ]
    names = [
        [tasks.names[place] if place >= 0 else None for place in tasks.assign(table).tolist()]
        for table in tables
    ]
    return jobs_of(found, tables, names, crop=crop, compat=request["compat"])


def _degrade(
    jobs: Sequence[Job], out: Path, request: dict[str, Any], force: bool, console: Console
) -> Outcome:
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

    def skip(name: str, why: str) -> None:
        console.print(f"[yellow]Skipped[/] {escape(f'{name}: {why}')}", highlight=False)

    with progress:
        bar = progress.add_task("degrading", total=len(jobs))
        outcome = degrade_files(
            jobs, out, request, force=force, skip=skip, step=lambda: progress.advance(bar)
        )
    if outcome.done:
        console.print(_table(outcome))
        hidden = len(outcome.done) - _TABLE_ROWS
        more = f", {hidden} more than shown" if hidden > 0 else ""
        skipped = f" Skipped: {len(outcome.skipped)}." if outcome.skipped else ""
        console.print(
            f"Wrote {len(outcome.done)} to {out}{more}.{skipped} Parameters: {out / RECORD}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return outcome


def _table(outcome: Outcome) -> Table:
    table = Table(show_lines=True)
    for column in ("image", "task", "degradation, step by step"):
        table.add_column(column, overflow="fold")
    for record in outcome.done[:_TABLE_ROWS]:
        steps = record["words"].split("; ")
        numbered = "\n".join(f"{i}. {step}" for i, step in enumerate(steps, start=1))
        table.add_row(Text(record["output"]), Text(record["task"] or "none"), Text(numbered))
    return table


def _draw_sheet(
    jobs: Sequence[Job],
    outcome: Outcome,
    tasks: Tasks,
    request: dict[str, Any],
    out: Path,
    console: Console,
) -> None:
    """Draws the first of the images that were degraded in every task."""
    written = {record["output"] for record in outcome.done}
    samples = []
    for job in [job for job in jobs if job.output in written][:_SHEET_ROWS]:
        image = Photographs([job.found.file], [job.found.name]).image(0)
        name = Path(job.output).stem
        samples.append(
            Sample(name, cut(image, job.crop, tasks.space.scale), job.id, _STREAM + job.turn)
        )
    title = f"{request['preset']}, ×{tasks.space.scale}, seed {request['seed']}"
    names = tasks.names[:_SHEET_COLUMNS]
    picture = contact_sheet(
        samples, tasks, seed=request["seed"], title=title, names=names, compat=request["compat"]
    )
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    write_atomically(out / SHEET, buffer.getvalue())
    console.print(f"Sheet: {out / SHEET}", highlight=False, markup=False, soft_wrap=True)
