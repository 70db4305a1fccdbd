"""What a user finds in the package: names, types, and nothing heavy behind the core."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mtlweight
from mtlweight.strategies import STRATEGIES

ROOT = Path(__file__).parents[1]
CORE_MAY_IMPORT = {"torch", "numpy", "einops", "pydantic", "mtlweight"} | set(
    sys.stdlib_module_names
)


def imported_by(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("file", sorted((ROOT / "mtlweight").rglob("*.py")), ids=lambda f: f.name)
def test_the_core_imports_nothing_heavier_than_its_dependencies(file: Path) -> None:
    assert imported_by(file) <= CORE_MAY_IMPORT


def test_the_core_works_where_the_adapter_is_not_installed() -> None:
    blocked = ["kornia", "lpips", "timm", "torchvision", "PIL", "skimage", "sklearn", "scipy"]
    blocked += ["matplotlib", "rich", "typer", "jinja2", "tensorboard"]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "from mtlweight import FocalAchievement, QuotaSampler\n"
        "s = FocalAchievement(2, references=[1.0, 2.0]); s.end_epoch([0.5, 2.0])\n"
        "print(s.weights[0] > s.weights[1])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "tensor(True)", done.stderr


@pytest.mark.parametrize("name", mtlweight.__all__)
def test_public_names_exist_and_say_what_they_are(name: str) -> None:
    assert getattr(mtlweight, name).__doc__


@pytest.mark.parametrize("package", ["mtlweight", "mtlweight_sr"])
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


def test_readme_lists_every_strategy() -> None:
    (table,) = re.findall(
        r"^\| they read \|.*\n\| --- \| --- \|\n((?:\|.*\n)+)",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    listed = re.findall(r"`(\w+)`", table)
    assert len(listed) == len(set(listed))
    assert set(listed) == set(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_says_what_it_does_and_when_to_use_it(name: str) -> None:
    text = " ".join((STRATEGIES[name].__doc__ or "").split())
    assert re.search(r"\$\$.+?\$\$", text), "no formula"
    order = [text.find(words) for words in ("Use it when ", " Not when ", "Source: ")]
    assert min(order) > 0, "it lacks `Use it when`, `Not when` or `Source:`"
    assert order == sorted(order)


def test_every_strategy_can_be_imported_from_the_package() -> None:
    assert {cls.__name__ for cls in STRATEGIES.values()} <= set(mtlweight.__all__)
