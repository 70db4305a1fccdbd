"""Writes a page for every registered strategy from its docstring, and the table of them all."""

from __future__ import annotations

import mkdocs_gen_files

from mtlweight.strategies import STRATEGIES
from mtlweight.strategy import GradientStrategy, GramStrategy, MetricStrategy, Strategy


def reads(strategy: type[Strategy]) -> tuple[str, str]:
    """Returns what a strategy reads, and what a step costs beside one backward pass."""
    if issubclass(strategy, MetricStrategy):
        return "validation metrics", "nothing"
    if issubclass(strategy, GramStrategy):
        return "inner products of task gradients", "T passes in place of one"
    if issubclass(strategy, GradientStrategy):
        return "task gradients", "T passes in place of one"
    return "losses", "nothing"


rows = ["| name | class | reads | costs | in short |", "| --- | --- | --- | --- | --- |"]
for name, strategy in STRATEGIES.items():
    summary = (strategy.__doc__ or "").strip().splitlines()[0]
    link = f"[{strategy.__name__}]({name}.md)"
    rows.append(f"| `{name}` | {link} | {' | '.join(reads(strategy))} | {summary} |")
    with mkdocs_gen_files.open(f"strategies/{name}.md", "w") as page:
        page.write(f"# {strategy.__name__}\n\n")
        page.write(f'`build("{name}", tasks)` reads {reads(strategy)[0]}.\n\n')
        page.write(f"::: {strategy.__module__}.{strategy.__name__}\n")
        page.write("    options:\n      members: false\n      show_root_heading: false\n")
    mkdocs_gen_files.set_edit_path(
        f"strategies/{name}.md", strategy.__module__.replace(".", "/") + ".py"
    )
with mkdocs_gen_files.open("strategies/SUMMARY.md", "w") as summary:
    summary.write("* [All](index.md)\n")
    summary.writelines(f"* [{s.__name__}]({name}.md)\n" for name, s in STRATEGIES.items())
with mkdocs_gen_files.open("strategies/index.md", "w") as index:
    index.write("# Strategies\n\n")
    index.write(
        "`mtlweight.build(name, tasks, **options)` builds any of them; command lines take hyphens "
        "too. Every strategy also takes the options of `Options` (`rescale`, `check`), and those "
        "that read gradients `heads`.\n\n"
    )
    index.write("\n".join(rows) + "\n\n")
    index.write("::: mtlweight.wrappers.LogLosses\n")
