"""The report of an ablation, as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict

from mtlweight_sr.study.results import Table
from mtlweight_sr.training_files import write_atomically

__all__ = ["Report", "markdown_table", "write_report"]


class Report(BaseModel):
    """What a report says.

    Attributes:
        title: its heading.
        summary: sentences on what was done and found.
        tables: one per metric.
        plots: caption and file name of each, in the folder of the report.
        tasks: the definitions of the tasks.
        settings: name and value of each.
        notes: remarks that a reader must know to judge the numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    summary: tuple[str, ...]
    tables: tuple[Table, ...]
    plots: tuple[tuple[str, str], ...]
    tasks: str
    settings: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def markdown_table(table: Table) -> str:
    """A table in Markdown: the best bold, the second best underlined."""
    marks = {"": "{}", "best": "**{}**", "second": "<u>{}</u>"}
    lines = [["strategy", *table.columns], ["---", *["---:"] * len(table.columns)]]
    for row in table.rows:
        lines.append([row.label if row.ranked else f"*{row.label}*"])
        for column in table.columns:
            lines[-1].append(marks[table.mark(row, column)].format(table.text(row, column)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """Writes `report.md` and `report.html`; the plots are read from the same folder.

    Returns:
        The paths of both.
    """
    for name in ("report.md", "report.html"):
        environment = Environment(
            loader=PackageLoader("mtlweight_sr.study"),
            autoescape=name.endswith("html"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        template = environment.get_template(f"{name}.j2")
        images = {file: _embedded(folder / file) for _, file in report.plots}
        text = template.render(report=report, markdown_table=markdown_table, images=images)
        write_atomically(folder / name, text.encode())
    return folder / "report.md", folder / "report.html"


def _embedded(image: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
