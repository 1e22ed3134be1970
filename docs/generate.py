"""Keep the generated parts of docs/passes/ and of the README in step with the code: `python docs/generate.py`.

Each pass has a page. What stands between the markers comes from the pass's docstring and fields; the rest of a page is
written by hand and left alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import pkgutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.fx.passes.infra.pass_base import PassBase

import fxprune.passes

PAGES = Path(__file__).with_name("passes")
ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
EXAMPLE = "<!-- example:begin -->\n```python\n"
BEGIN, END = "<!-- generated:begin -->", "<!-- generated:end -->"


def passes() -> Iterator[tuple[str, type[PassBase]]]:
    """Every pass with the name of its module, in alphabetical order of the modules."""
    for info in pkgutil.iter_modules(fxprune.passes.__path__):
        module = importlib.import_module(f"fxprune.passes.{info.name}")
        for value in vars(module).values():
            own = getattr(value, "__module__", None) == module.__name__
            if own and inspect.isclass(value) and issubclass(value, PassBase) and not inspect.isabstract(value):
                yield info.name, value


def pages() -> dict[Path, str]:
    """The text that every page should have."""
    found = list(passes())
    bodies = {PAGES / f"{name}.md": (f"# {kind.__name__}", _body(name, kind)) for name, kind in found}
    rows = [f"| [{kind.__name__}]({name}.md) | {_purpose(kind)} |" for name, kind in found]
    index = "\n".join(["| pass | what it does |", "|---|---|", *rows])
    bodies[PAGES / "index.md"] = ("# Passes", index)
    return {path: _updated(path, title, body) for path, (title, body) in bodies.items()}


def readme() -> str:
    """The README with the output of its example as it is now."""
    before, _, rest = README.read_text().partition(EXAMPLE)
    example, _, after = rest.partition("```\n```text\n")
    printed, here = io.StringIO(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed):
        os.chdir(folder)
        try:
            exec(compile(example, "README.md", "exec"), {})
        finally:
            os.chdir(here)
    output = printed.getvalue().strip().replace(f"{ROOT}/", "")
    return f"{before}{EXAMPLE}{example}```\n```text\n{output}\n{after[after.index('```') :]}"


def _updated(path: Path, title: str, body: str) -> str:
    """The page with `body` between its markers; a new page where there is none."""
    text = path.read_text() if path.exists() else f"{title}\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def _body(name: str, kind: type[PassBase]) -> str:
    """Docstring, options, and where the code and its tests are."""
    documentation = inspect.getdoc(kind) or ""
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    options = [f"| `{field.name}` | `{field.type}` | {_default(field)} |" for field in fields]
    table = ["", "| option | type | default |", "|---|---|---|", *options] if options else []
    code = f"[fxprune/passes/{name}.py](../../fxprune/passes/{name}.py)"
    return "\n".join([_purpose(kind), "", "```text", documentation, "```", *table, "", f"Code: {code}"])


def _purpose(kind: type[PassBase]) -> str:
    """The docstring of the module of a pass: what it is for, in a line."""
    return (inspect.getdoc(inspect.getmodule(kind)) or "").split("\n")[0]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is field.default_factory is dataclasses.MISSING:
        return "needed"
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return f"`{value.__name__ if inspect.isfunction(value) else repr(value)}`"


def main() -> None:
    """Write what has changed."""
    PAGES.mkdir(exist_ok=True)
    for path, text in {**pages(), README: readme()}.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
