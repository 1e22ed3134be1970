"""The layers of the package: a module imports only from lower layers, and only at its top."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "fxprune"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# From the top down. A part is a module or a package directly in fxprune; "fxprune" is the package's own __init__.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli", "__main__"),
    ("demo",),
    ("fxprune",),
    ("exported",),
    ("precrop",),
    ("api", "twin", "backend", "backend_inputs", "adapters"),
    ("recipes", "summary", "diff"),
    ("passes",),
    ("calibrate", "importance", "allocate", "select", "widths", "codegen"),
    ("report", "report_held", "held", "report_html", "report_charts", "drawing"),
    ("latency",),
    ("coupling", "cost", "flops", "capture"),
    ("closed_form",),
    ("calls", "progress", "types", "budget", "rectangles", "errors", "checkpoint", "files", "written"),
    ("randomness", "version"),
)
RANK = {part: len(LAYERS) - level for level, parts in enumerate(LAYERS) for part in parts}

# Plan.apply is a method of a value, built from passes: the only import that points upwards, and so the only lazy one.
UPWARD = {("types", "fxprune.twin")}


def test_every_part_of_the_package_has_a_layer() -> None:
    parts = {part_of(source) for source in SOURCES}
    assert parts <= set(RANK), f"give a layer to {sorted(parts - set(RANK))}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(source: Path) -> None:
    part = part_of(source)
    upward = [
        f"line {node.lineno}: {target}"
        for node, target in imports(ast.parse(source.read_text()))
        if part_of_name(target) != part and RANK[part_of_name(target)] > RANK[part] and (part, target) not in UPWARD
    ]
    assert not upward, f"{source.relative_to(PACKAGE)} imports from a higher layer: {upward}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_of_the_package_are_at_the_top_of_a_module(source: Path) -> None:
    tree = ast.parse(source.read_text())
    top = {id(node) for node in at_module_level(tree)}
    hidden = [
        f"line {node.lineno}: {target}"
        for node, target in imports(tree)
        if id(node) not in top and (part_of(source), target) not in UPWARD
    ]
    assert not hidden, f"{source.relative_to(PACKAGE)} imports inside a function: {hidden}"


def test_parts_of_one_layer_do_not_import_one_another_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for source in SOURCES:
        part = part_of(source)
        targets = {part_of_name(target) for _, target in imports(ast.parse(source.read_text()))}
        lazy = {part_of_name(target) for owner, target in UPWARD if owner == part}
        graph.setdefault(part, set()).update(targets - {part} - lazy)
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_a_lazy_upward_import_that_is_excepted_exists() -> None:
    for part, target in UPWARD:
        tree = ast.parse((PACKAGE / f"{part}.py").read_text())
        assert target in {found for _, found in imports(tree)}


def test_every_way_of_importing_is_seen() -> None:
    tree = ast.parse(
        "from fxprune.cli.prune import prune\nimport fxprune.types\nimport torch\nfrom fxprune import Plan, cli"
    )
    assert [target for _, target in imports(tree)] == ["fxprune.cli.prune", "fxprune.types", "fxprune", "fxprune.cli"]
    assert RANK["cli"] > RANK["fxprune"] > RANK["types"]


def part_of(source: Path) -> str:
    """The part of the package that a file belongs to."""
    first = source.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "fxprune" if first == "__init__" else first


def part_of_name(target: str) -> str:
    """The part that an imported dotted name belongs to."""
    _, _, rest = target.partition(".")
    path = PACKAGE / rest.split(".")[0] if rest else PACKAGE / "__init__.py"
    return part_of(path)


def imports(tree: ast.AST) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Each import of something of fxprune, with the dotted name of the module that is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names if alias.name.split(".")[0] == "fxprune")
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node, f"fxprune.{node.module or ''}"
        elif isinstance(node, ast.ImportFrom) and node.module == "fxprune":
            yield from ((node, _submodule(alias.name)) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fxprune."):
            assert node.module is not None
            yield node, node.module


def _submodule(name: str) -> str:
    """`from fxprune import name`: a module where there is one, else something that the package exports."""
    is_module = (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()
    return f"fxprune.{name}" if is_module else "fxprune"


def at_module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements outside functions and classes, those under `if TYPE_CHECKING:` included."""
    for node in tree.body:
        yield node
        if isinstance(node, ast.If):
            yield from node.body
