"""Writes a page for every registered strategy, one of the wrappers, and the tables of them all."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import mkdocs_gen_files

import mtlweight
from mtlweight import wrappers
from mtlweight.strategies import STRATEGIES
from mtlweight.strategy import Strategy

HERE = Path(__file__).parent
FACTS: dict[str, Any] = runpy.run_path(str(HERE / "facts.py"))
PROPERTIES: dict[str, Any] = runpy.run_path(str(HERE / "properties.py"))["PROPERTIES"]
SCALE = {"yes": "yes", "direction": "in direction", "no": "no"}
HURTS = {True: "yes", False: "no", "two tasks": "of two", "independent": "if independent"}
MANY = 12


def first_line(documented: Any) -> str:
    """Returns the summary of a docstring."""
    return (documented.__doc__ or "").strip().splitlines()[0]


def experimental(strategy: type[Strategy]) -> bool:
    """Tells whether the interface of a strategy may still change."""
    return ".experimental" in strategy.__module__


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def state(buffers: dict[str, str]) -> str:
    """Returns in words what a strategy keeps."""
    shapes: dict[str, str] = {}
    for name, shape in buffers.items():
        part = name.split(".")[0]
        if len(buffers) > MANY and part != name:
            shapes[f"`{part}`"] = "the tensors of that module"
        else:
            shapes[f"`{name}`"] = f"`{shape}`"
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing more"


def described(name: str, facts: Any) -> str:
    """Returns what is true of a strategy, as a table."""
    properties = PROPERTIES[name]
    scale = {
        "yes": "changes nothing",
        "direction": "changes the length of the step, not its direction",
        "no": "turns the step",
    }[properties.scale_invariant]
    if properties.settled:
        scale += f", after {'one step' if properties.settled == 1 else 'some steps'}"
    hurts = {
        True: "never",
        False: "possible",
        "two tasks": "never with two tasks; possible with more",
        "independent": "never while the task gradients are linearly independent",
    }[properties.never_hurts]
    compiled = "in the graph, without a break" if facts.in_graph else "one break, at the call"
    rows = [
        ["take it when", properties.when],
        ["reads", FACTS["reads"](name, properties.needs)],
        ["needs beside the losses", properties.needs],
        ["a step costs", FACTS["cost"](name, facts)],
        ["memory", FACTS["memory"](name, facts)],
        ["state", state(facts.buffers)],
        ["heads", FACTS["heads"](name)],
        ["weights sum to", "one" if facts.sums_to_one else "what the rule gives"],
        ["one loss times a constant", scale],
        ["a short step raises a loss", hurts],
        ["negative losses", "refused" if facts.nonnegative else "taken"],
        ["`torch.compile`", compiled],
    ]
    return table(["", ""], rows)


def write_page(name: str, strategy: type[Strategy], facts: Any) -> None:
    """Writes the page of a strategy."""
    path = f"strategies/{name}.md"
    with mkdocs_gen_files.open(path, "w") as page:
        page.write(f"# {strategy.__name__}\n\n")
        if experimental(strategy):
            page.write(
                '!!! warning "Experimental"\n    Its options and its state may change from one '
                "version to the next. It is tested on small problems with known answers, and has "
                "not been tried in a training of the size that its paper reports.\n\n"
            )
        page.write(f"::: {strategy.__module__}.{strategy.__name__}\n")
        page.write("    options:\n      members: false\n      show_root_heading: false\n\n")
        page.write("## At a glance\n\n")
        page.write(
            "T tasks, P numbers that they share. Passes are counted through what is shared, "
            "the one of `loss.backward()` included.\n\n"
        )
        page.write(described(name, facts))
        page.write("## Options\n\n")
        rows = [
            [f"`{option}`", default, allowed] for option, default, allowed in FACTS["options"](name)
        ]
        if rows:
            page.write(table(["option", "default", "allowed"], rows))
        else:
            page.write("None of its own.\n\n")
        common = "`rescale` and `check`"
        if FACTS["reads_gradients"](strategy):
            chunked = issubclass(strategy, mtlweight.GramStrategy)
            common = "`rescale`, `check`, `heads`" + (" and `chunk`" if chunked else "")
        page.write(f"Also {common}: see [the options of all](../reference/core.md).\n")
    mkdocs_gen_files.set_edit_path(path, strategy.__module__.replace(".", "/") + ".py")


def write_wrappers() -> None:
    """Writes the page of the wrappers."""
    inner = [getattr(wrappers, name) for name in wrappers.__all__ if name != "Wrapper"]
    with mkdocs_gen_files.open("strategies/wrappers.md", "w") as page:
        page.write("# Wrappers\n\n")
        page.write(
            "A wrapper is a strategy around a strategy: it changes its weights, and has it spend "
            "them. Wrappers nest, as in `Smoothed(0.9, Every(10, NashMTL(tasks)))`, and the state "
            "of what is within is in the state of what is around.\n\n"
        )
        rows = [[f"[{w.__name__}](#{w.__module__}.{w.__name__})", first_line(w)] for w in inner]
        page.write(table(["wrapper", "in short"], rows))
        for wrapper in [*inner, mtlweight.Wrapper]:
            page.write(f"::: {wrapper.__module__}.{wrapper.__name__}\n")
            page.write("    options:\n      members: false\n      show_root_toc_entry: true\n\n")


measured = {name: FACTS["measure"](name, PROPERTIES[name].needs) for name in STRATEGIES}
for name, strategy in STRATEGIES.items():
    write_page(name, strategy, measured[name])
write_wrappers()

with mkdocs_gen_files.open("strategies/SUMMARY.md", "w") as summary:
    summary.write("* [All](index.md)\n")
    for family, names in FACTS["FAMILIES"].items():
        summary.write(f"* {family}\n")
        summary.writelines(f"    * [{STRATEGIES[n].__name__}]({n}.md)\n" for n in names)
    summary.write("* [Wrappers](wrappers.md)\n")

with mkdocs_gen_files.open("strategies/index.md", "w") as index:
    index.write("# Strategies\n\n")
    index.write(
        "`mtlweight.build(name, tasks, **options)` builds any of them; command lines take hyphens "
        "too. Which one to take: [the guide](../which.md), which also has a table of their "
        "properties. To change the weights of any of them: [wrappers](wrappers.md).\n\n"
    )
    for family, names in FACTS["FAMILIES"].items():
        index.write(f"## {family}\n\n")
        rows = []
        for name in names:
            strategy = STRATEGIES[name]
            mark = " (experimental)" if experimental(strategy) else ""
            link = f"[{strategy.__name__}]({name}.md){mark}"
            rows.append([f"`{name}`", link, f"{PROPERTIES[name].when}."])
        index.write(table(["name", "class", "take it when"], rows))

with mkdocs_gen_files.open("which.md", "a") as which:
    head = ["name", "reads", "backward passes", "scale-invariant", "never hurts a task"]
    rows = []
    for names in FACTS["FAMILIES"].values():
        for name in names:
            facts, properties = measured[name], PROPERTIES[name]
            count = FACTS["passes"](facts.backwards, "backward").removesuffix(" passes")
            count = count.removesuffix(" pass").removesuffix(" backward").replace("one", "1")
            if facts.on_features is not None:
                count += "; 1"
            rows.append(
                [
                    f"[`{name}`](strategies/{name}.md)",
                    FACTS["reads"](name, properties.needs),
                    count,
                    SCALE[properties.scale_invariant],
                    HURTS[properties.never_hurts],
                    properties.needs,
                    "one" if facts.sums_to_one else "",
                ]
            )
    which.write("\n" + table([*head, "needs", "weights sum to"], rows))
