"""Compare task weighting strategies on real-world image super-resolution.

Without any options this trains small networks on bundled photographs, in minutes on a CPU:

    python examples/sr_ablation.py --preset demo --out results
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from mtlweight_sr.data.loader import CACHE_BYTES
from mtlweight_sr.explaining import explain
from mtlweight_sr.settings import RuntimeSettings
from mtlweight_sr.study import PRESETS, AblationConfig, run_ablation
from mtlweight_sr.study.command_line import ablation_config
from mtlweight_sr.study.display import Display, print_table
from mtlweight_sr.training import TrainingInterrupted

INTERRUPTED = 130


def main(
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "demo",
    strategy: Annotated[
        str | None,
        typer.Option(help="Names with commas, or all; dwa:data spends the weights of dwa on data."),
    ] = None,
    spend: Annotated[str | None, typer.Option(help="loss, data, loss,data or both.")] = None,
    tasks: Annotated[str, typer.Option(help="2, 3, 4 or 5, or the name of a preset.")] = "4",
    data: Annotated[Path | None, typer.Option(help="Folder of HR photographs to train on.")] = None,
    val: Annotated[Path | None, typer.Option(help="Folder to validate on.")] = None,
    val_crop: Annotated[int | None, typer.Option(help="Side of central validation crops.")] = None,
    val_images: Annotated[int | None, typer.Option(help="Validation images to take.")] = None,
    model: Annotated[str, typer.Option(help="srresnet or rrdbnet.")] = "srresnet",
    model_set: Annotated[list[str] | None, typer.Option(help="Such as channels=32.")] = None,
    scale: Annotated[int | None, typer.Option(help="2 or 4.")] = None,
    intervals: Annotated[int | None, typer.Option(help="Validations of a run.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps per interval.")] = None,
    batch: Annotated[int | None, typer.Option(help="Crops per step.")] = None,
    crop: Annotated[int | None, typer.Option(help="Side of HR crops.")] = None,
    context: Annotated[int | None, typer.Option(help="Degraded around them, then cut off.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The first one.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs per arm, with seeds 0, 1, ...")] = None,
    gamma: Annotated[float | None, typer.Option(help="Focus of focal_achievement.")] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="temperature=1.5 or dwa.temperature=1.5.")
    ] = None,
    references: Annotated[Path | None, typer.Option(help="JSON of single-task metrics.")] = None,
    lpips: Annotated[str, typer.Option(help="alex, vgg, squeeze or none.")] = "alex",
    lpips_backbone: Annotated[Path | None, typer.Option(help="File of its features.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0, ...")] = "auto",
    amp: Annotated[bool, typer.Option(help="Run the network in bfloat16.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that load images.")] = 0,
    cache: Annotated[
        str, typer.Option(help="Where decoded images are kept: none, host or device.")
    ] = "none",
    cache_gb: Annotated[float, typer.Option(help="The most they may take.")] = CACHE_BYTES / 1e9,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results"),
    resume: Annotated[bool, typer.Option(help="Go on with the runs in the folder.")] = False,
    baseline: Annotated[bool, typer.Option(help="Also run equal weights.")] = True,
) -> None:
    """Compares strategies, and writes tables, plots and a report."""
    console = Console()
    training = {
        "intervals": intervals,
        "iterations": iterations,
        "batch_size": batch,
        "crop": crop,
        "context": context,
        "learning_rate": learning_rate,
        "amp": amp or None,
    }
    others: dict[str, Any] = {
        "data": data,
        "val": val,
        "val_crop": val_crop,
        "val_images": val_images,
        "references": references,
        "lpips": lpips,
        "lpips_backbone": lpips_backbone,
        "out": out,
    }
    try:
        runtime = RuntimeSettings(
            device=device, workers=workers, cache=cache, cache_bytes=round(cache_gb * 1e9)
        )
        config: AblationConfig = ablation_config(
            preset,
            strategy=strategy,
            spend=spend,
            tasks=tasks,
            model=model,
            model_options=model_set or [],
            scale=scale,
            training=training,
            seeds=seeds,
            gamma=gamma,
            options=options or [],
            baseline=baseline,
            **others,
        )
        with Display(console) as display:
            found = run_ablation(config, runtime=runtime, resume=resume, display=display)
    except (TrainingInterrupted, KeyboardInterrupt) as stop:
        console.print(f"{escape(str(stop))}\nGive the same command with --resume to go on.")
        raise typer.Exit(INTERRUPTED) from None
    except (ValidationError, ValueError, OSError) as error:
        console.print(f"[red]Error:[/] {escape(explain(error))}", highlight=False)
        raise typer.Exit(2) from None
    for table in found.tables:
        print_table(table, console)
    for note in found.notes:
        console.print(f"[dim]- {escape(note)}[/]", highlight=False)
    console.print(f"Report: {found.report}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
