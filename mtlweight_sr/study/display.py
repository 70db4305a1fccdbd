"""What a user sees while an ablation runs."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as ProgressTask
from rich.table import Table as RichTable
from rich.text import Text

from mtlweight_sr.study.results import Table
from mtlweight_sr.training import IntervalRecord, Observer, Trainer

__all__ = ["Display", "print_table"]


_MUCH_WAITING = 0.05


class _Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: ProgressTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} steps/s", style="progress.data.speed")


class _Waiting(ProgressColumn):
    """The share of time in which training waits for data."""

    def render(self, task: ProgressTask) -> Text:
        share = task.fields["waiting"]
        style = "yellow" if share > _MUCH_WAITING else "progress.data.speed"
        return Text(f"{share:.0%} waiting for data", style=style)


class Display(Observer):
    """A progress bar over all runs, and a line of metrics and weights per interval.

    Args:
        console: where to print.

    Attributes:
        console: prints above the bar.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            _Waiting(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar: TaskID = self._progress.add_task("starting", total=None, waiting=0.0)
        self._label = ""
        self._told = False

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def plan(self, steps: int) -> None:
        """Says how many steps there are to do in all."""
        self._progress.update(self._bar, total=steps)

    def begin(self, label: str) -> None:
        """Says what runs next."""
        self._label = label
        self._progress.update(self._bar, description=label)

    def skip(self, label: str, steps: int, why: str) -> None:
        """Says that steps need not be done."""
        self.console.print(f"[bold]{label}[/]: {why}")
        self._progress.advance(self._bar, steps)

    def tell(self, words: str) -> None:
        """Says something that holds for all runs."""
        self.console.print(words, highlight=False, markup=False)

    def on_start(self, trainer: Trainer) -> None:
        """Counts the steps that an interrupted run has done before, and tells of the cache."""
        kept = trainer.loader.cached_bytes
        if kept and not self._told:
            self.console.print(
                f"{len(trainer.problem.photographs)} photographs are kept decoded on the "
                f"{trainer.runtime.cache}: {kept / 1e6:.0f} MB",
                highlight=False,
            )
            self._told = True
        if trainer.step:
            self.console.print(f"[bold]{self._label}[/]: goes on from step {trainer.step}")
            self._progress.advance(self._bar, trainer.step)

    def on_step(self, trainer: Trainer) -> None:
        """Moves the bar."""
        self._progress.update(self._bar, advance=1, waiting=trainer.pace.waiting_share)

    def on_interval(self, trainer: Trainer, record: IntervalRecord) -> None:
        """Prints the metrics of the interval, the weights it was trained with, and long waits."""
        psnr = "  ".join(f"{task} {value:.2f}" for task, value in record.psnr.items())
        line = f"[bold]{self._label}[/] {record.interval}/{trainer.settings.intervals}  {psnr} dB"
        if len(record.weights) > 1:
            shares = record.shares(trainer.settings.spend)
            line += "  [dim]shares[/] " + " ".join(f"{share:.2f}" for share in shares.values())
        if trainer.pace.waiting_share > _MUCH_WAITING:
            line += f"  [yellow]{trainer.pace.waiting_share:.0%} waiting for data[/]"
        if record.skipped:
            line += f"  [red]{record.skipped} steps skipped[/]"
        self.console.print(line, highlight=False)


def print_table(table: Table, console: Console) -> None:
    """Prints a table: the best bold, the second best underlined; in two lines a row if need be."""
    shown = _rich_table(table, " ")
    unbounded = console.options.update(max_width=10_000)
    if console.measure(shown, options=unbounded).maximum > console.width:
        shown = _rich_table(table, "\n")
    console.print(shown)


def _rich_table(table: Table, gap: str) -> RichTable:
    styles = {"": "", "best": "bold green", "second": "underline"}
    shown = RichTable(title=table.title, title_justify="left")
    shown.add_column("strategy", min_width=12, overflow="fold")
    for column in table.columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for row in table.rows:
        texts = [
            Text(
                table.text(row, column).replace(" ±", f"{gap}±"),
                style=styles[table.mark(row, column)],
            )
            for column in table.columns
        ]
        shown.add_row(Text(row.label), *texts, style="" if row.ranked else "dim")
    return shown
