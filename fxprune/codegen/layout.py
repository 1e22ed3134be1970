"""How a long line of Python is broken: at its last bracket, then one item a line, as the usual formatters do."""

from __future__ import annotations

WIDTH = 120
_OPEN, _CLOSE = "([{", ")]}"


def laid_out(text: str, indent: int = 0, width: int = WIDTH, behind: int = 0) -> list[str]:
    """The lines of one statement, each within `width` where the brackets allow it.

    behind: how many characters will follow on the last line.

    >>> laid_out("x = torch.cat([a, b], 1)", indent=4, width=20)
    ['    x = torch.cat(', '        [a, b], 1', '    )']
    """
    start = " " * indent
    opening, closing = _last_brackets(text)
    if indent + len(text) + behind <= width or opening < 0 or closing == opening + 1:
        return [start + text]
    head, body, tail = text[: opening + 1], text[opening + 1 : closing], text[closing:]
    if indent + 4 + len(body) <= width:
        return [start + head, start + "    " + body, start + tail]
    items = _items(body)
    lines = [start + head]
    comma = "," if len(items) > 1 else ""
    for item in items:
        *first, last = laid_out(item, indent + 4, width, len(comma))
        lines += [*first, last + comma]
    return [*lines, start + tail]


def _skip_string(text: str, position: int) -> int:
    """The position behind the string literal that starts at `position`."""
    quote = text[position]
    position += 1
    while text[position] != quote:
        position += 2 if text[position] == "\\" else 1
    return position + 1


def _last_brackets(text: str) -> tuple[int, int]:
    """Where the last outermost pair of brackets opens and closes; (-1, -1) where there is none."""
    depth, position, opened, pair = 0, 0, -1, (-1, -1)
    while position < len(text):
        if text[position] in "\"'":
            position = _skip_string(text, position)
            continue
        if text[position] in _OPEN:
            opened = position if depth == 0 else opened
            depth += 1
        elif text[position] in _CLOSE:
            depth -= 1
            pair = (opened, position) if depth == 0 else pair
        position += 1
    return pair


def _items(body: str) -> list[str]:
    """What stands between the outermost commas."""
    items, depth, start, position = [], 0, 0, 0
    while position < len(body):
        character = body[position]
        if character in "\"'":
            position = _skip_string(body, position)
            continue
        depth += (character in _OPEN) - (character in _CLOSE)
        if character == "," and depth == 0:
            items.append(body[start:position].strip())
            start = position + 1
        position += 1
    return [item for item in [*items, body[start:].strip()] if item]
