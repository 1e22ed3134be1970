"""Two networks side by side: their modules and their forwards, with what changed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from html import escape

from torch import fx, nn

from fxprune.passes.base import clone
from fxprune.passes.lift import Lift
from fxprune.passes.tidy import Tidy

_STYLE = """
.fxprune-diff { color-scheme: light dark; --line: #e3e7ed; --soft: #5d6878; --old: #fde3e1; --new: #dcf3e4;
  border-collapse: collapse; width: 100%; min-width: 44rem; table-layout: fixed;
  font: 12px/1.5 ui-monospace, monospace }
@media (prefers-color-scheme: dark) {
  .fxprune-diff { --line: #2b323d; --soft: #97a3b4; --old: #4a2323; --new: #1d3d2b } }
.fxprune-diff td { white-space: pre-wrap; overflow-wrap: anywhere; vertical-align: top; text-align: left; border: 0;
  padding: 0 .6rem 0 2.2rem; text-indent: -1.6rem }
.fxprune-diff th { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid var(--line) }
.fxprune-diff .same { color: var(--soft) } .fxprune-diff .old { background: var(--old) }
.fxprune-diff .new { background: var(--new) } .fxprune-diff b { font-weight: 700; text-decoration: underline }
""".strip()


@dataclass(frozen=True)
class Line:
    """One line of two networks: before and after, the same where nothing changed, None where there is none.

    name: of the module or tensor that the line is about; "" for a line of code.
    """

    before: str | None
    after: str | None
    name: str = ""

    @property
    def changed(self) -> bool:
        """Whether the two differ."""
        return self.before != self.after

    @property
    def parts(self) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
        """Both sides in pieces, each with whether it differs from the other side."""
        old, new = _tokens(self.before), _tokens(self.after)
        sides: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
        for kind, start, stop, first, last in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            for side, piece in zip(sides, ("".join(old[start:stop]), "".join(new[first:last])), strict=True):
                if piece:
                    side.append((piece, kind != "equal"))
        return sides


@dataclass(frozen=True)
class Diff:
    """What differs between two networks. `str()` is plain text; notebooks show it side by side.

    modules: the modules and loose tensors, by name. code: the lines of the forward.
    """

    modules: tuple[Line, ...]
    code: tuple[Line, ...]

    @property
    def changed(self) -> bool:
        """Whether anything differs."""
        return any(line.changed for line in (*self.modules, *self.code))

    def __str__(self) -> str:
        # the modules that changed, then the forward as a unified diff
        changed = [line for line in self.modules if line.changed]
        text = [f"modules: {len(changed)} of {len(self.modules)} changed"]
        text += [f"  {_arrow(line)}" for line in changed]
        text += [f"code: {sum(line.changed for line in self.code)} of {len(self.code)} lines changed"]
        return "\n".join([*text, *_unified(self.code)]).rstrip()

    def to_dict(self) -> dict[str, list[dict[str, str | None]]]:
        """The lines that changed, as plain data."""
        return {
            "modules": [_plain(line) for line in self.modules if line.changed],
            "code": [_plain(line) for line in self.code if line.changed],
        }

    def to_html(self) -> str:
        """Both networks side by side, as an HTML table with its own style; where all is the same, once."""
        rows = "\n".join([*_rows("modules", self.modules), *_rows("code", self.code)])
        return f'<style>\n{_STYLE}\n</style>\n<table class="fxprune-diff">\n{rows}\n</table>'

    def _repr_html_(self) -> str:
        return self.to_html()


def diff(before: fx.GraphModule, after: fx.GraphModule) -> Diff:
    """What differs between two graphs. An ATen graph of `capture` is lifted first; neither is modified."""
    old, new = lifted(before), lifted(after)
    first, second = dict(_modules(old)), dict(_modules(new))
    modules = [Line(first.get(name), second.get(name), name) for name in _merged(list(first), list(second))]
    return Diff(tuple(modules), tuple(_aligned(old.code.strip().split("\n"), new.code.strip().split("\n"))))


def lifted(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph with its calls lifted to modules; its tensors are shared."""
    copy = clone(gm)
    for step in (Tidy(), Lift()):
        step(copy)
    return copy


def _modules(gm: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """Each module that holds no others, and each tensor beside them, by name, as text."""
    for path, module in gm.named_modules():
        if path and next(module.children(), None) is None and type(module) is not nn.Module:
            yield path, " ".join(repr(module).split())
            continue
        for name, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None:
                yield f"{path}.{name}".lstrip("."), f"{type(tensor).__name__}{tuple(tensor.shape)}"


def _merged(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """The names of both in an order that suits both."""
    names: list[str] = []
    for _, start, stop, begin, end in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        names += [*first[start:stop], *second[begin:end]]
    return list(dict.fromkeys(names))


def _aligned(first: Sequence[str], second: Sequence[str]) -> Iterator[Line]:
    """The lines of two texts, those that take one another's place side by side."""
    for _, start, stop, begin, end in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        for offset in range(max(stop - start, end - begin)):
            old = first[start + offset] if start + offset < stop else None
            new = second[begin + offset] if begin + offset < end else None
            yield Line(old, new)


def _arrow(line: Line) -> str:
    """`conv1: Conv2d(3, 64) -> Conv2d(3, 40)`: keyword arguments only where they differ."""
    if line.before is None:
        return f"{line.name}: added: {line.after}"
    if line.after is None:
        return f"{line.name}: removed: {line.before}"
    old, new = _arguments(line.before), _arguments(line.after)
    shared = {item for item in old if item in new and "=" in item}
    shown = [
        f"{text.partition('(')[0]}({', '.join(item for item in items if item not in shared)})"
        for text, items in ((line.before, old), (line.after, new))
    ]
    return f"{line.name}: {shown[0]} -> {shown[1]}"


def _arguments(text: str) -> list[str]:
    """The arguments in the text of a module, split at the commas outside brackets."""
    inside = text.partition("(")[2].removesuffix(")")
    return [item.strip() for item in re.split(r",\s*(?![^()]*\))", inside) if item.strip()]


def _unified(lines: Sequence[Line], context: int = 2) -> Iterator[str]:
    """Changed lines with a few around them; the old ones of a run before the new ones."""
    near = {place + step for place, line in enumerate(lines) if line.changed for step in range(-context, context + 1)}
    last = None
    removed: list[str] = []
    added: list[str] = []
    for place, line in enumerate(lines):
        if not line.changed:
            yield from [*removed, *added]
            removed, added = [], []
        if place not in near:
            continue
        if last is not None and place != last + 1:
            yield "  ..."
        last = place
        if line.changed:
            removed += [f"- {line.before}"] if line.before is not None else []
            added += [f"+ {line.after}"] if line.after is not None else []
        else:
            yield f"  {line.before}".rstrip()
    yield from [*removed, *added]


def _plain(line: Line) -> dict[str, str | None]:
    named = {"name": line.name} if line.name else {}
    return {**named, "before": line.before, "after": line.after}


def _tokens(text: str | None) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text or "")


def _rows(title: str, lines: Sequence[Line]) -> Iterator[str]:
    """A part of the table: its head, and a row for each line; one column where nothing changed."""
    count = sum(line.changed for line in lines)
    if not count:
        yield f'<tr><th colspan="2">{title} (unchanged)</th></tr>'
        yield from (
            f'<tr><td class="same" colspan="2">{_head(line)}{escape(line.before or "")}</td></tr>' for line in lines
        )
        return
    yield f"<tr><th>{title} before ({count} of {len(lines)} changed)</th><th>{title} after</th></tr>"
    yield from map(_row, lines)


def _head(line: Line) -> str:
    return f"{escape(line.name)}: " if line.name else ""


def _row(line: Line) -> str:
    """A row of the table: both sides, with what differs in bold."""
    if not line.changed:
        cell = f'<td class="same">{_head(line)}{escape(line.before or "")}</td>'
        return f"<tr>{cell}{cell}</tr>"
    cells = []
    for text, pieces, css in zip((line.before, line.after), line.parts, ("old", "new"), strict=True):
        marked = "".join(f"<b>{escape(piece)}</b>" if differs else escape(piece) for piece, differs in pieces)
        cells.append("<td></td>" if text is None else f'<td class="{css}">{_head(line)}{marked}</td>')
    return f"<tr>{''.join(cells)}</tr>"
