"""The accuracy tables of docs/benchmarks.md and of the README, from the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

from benchmarks.accuracy_data import NETWORKS, ROOT, SAMPLE, Setting
from benchmarks.accuracy_plot import PICTURE, networks
from benchmarks.accuracy_records import Record, spread, write
from benchmarks.accuracy_rows import ROWS

PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
SHORT = {"tp-l1-bn": "Torch-Pruning, L1 + BatchNorm", "least-squares": "least squares alone", "psp": "fxprune `psp`"}
RETRAINED = "retrained with labels"
SLACK = 0.01  # of the FLOPs, that a row may keep less than it may before it is said


def write_all(records: Sequence[Record]) -> None:
    """Put the tables between the markers of both pages."""
    write(PAGE, "accuracy", "\n".join(page(records)))
    write(README, "accuracy", "\n".join(short(records)))


def page(records: Sequence[Record]) -> Iterator[str]:
    """The plot, and for each network a table of all rows and what must be known of them."""
    if networks(records):
        yield from (f"![Accuracy over the FLOPs that are kept]({PICTURE.name})", "")
    for network, setting in NETWORKS.items():
        mine = [found for found in records if found["network"] == network]
        if len(mine) > 1:
            yield from (f"### {setting.title}", "", *_table(mine, setting), "", *_remarks(mine, setting))
    yield from measured(records, "python -m benchmarks.accuracy --write")


def short(records: Sequence[Record]) -> Iterator[str]:
    """A line for each network and share."""
    titles = ["network", "FLOPs kept", "dense", *SHORT.values(), RETRAINED, "time of `psp`"]
    yield from _header(titles)
    for network, setting in NETWORKS.items():
        for share in setting.shares:
            mine = [found for found in records if found["network"] == network and found["share"] in (share, 1.0)]
            cells = [_cell(_of(mine, row), "top1") for row in ("dense", *SHORT, "retrained")]
            if any(cells[1:]):
                cells[3] = f"**{cells[3]}**" if cells[3] else ""
                yield _line([setting.title, f"{100 * share:.0f} %", *cells, _seconds(_of(mine, "psp"))])
    yield from ("", *measured(records, "python -m benchmarks.accuracy --write"))


def measured(records: Sequence[Record], command: str) -> Iterator[str]:
    """With what, and by which command."""
    places = dict.fromkeys(found["where"] for found in records)
    if places:
        yield f"Measured on {' and on '.join(places)}, with `{command}`."


def _table(mine: Sequence[Record], setting: Setting) -> Iterator[str]:
    imagenet = setting.images == SAMPLE
    kinds = {"top1": "top-1 at {}"} | ({"agreement": "agreement at {}", "kl": "KL at {}"} if imagenet else {})
    titles = [title.format(f"{100 * share:.0f} %") for title in kinds.values() for share in setting.shares]
    yield from _header(["", *titles, "time", "peak memory"])
    for name, row in ROWS.items():
        found = _of(mine, name)
        if found:
            shares = [1.0] * len(setting.shares) if name == "dense" else setting.shares
            at = [[one for one in found if one["share"] == share] for share in shares]
            cells = [_cell(ones, kind) for kind in kinds for ones in at]
            cost = ["", ""] if name == "dense" else [_seconds(found), f"{_mean(found, 'bytes') / 2**30:.1f} GiB"]
            yield _line([f"**{row.title}**" if row.part == "ours" else row.title, *cells, *cost])


def _remarks(mine: Sequence[Record], setting: Setting) -> Iterator[str]:
    """What the figures alone do not say."""
    notes = dict.fromkeys(found["note"] for found in mine if "note" in found)
    yield from (f"- Torch-Pruning: {note}." for note in notes)
    for name in ("tp-best", "tp-best-bn"):
        chosen = [f"{100 * found['share']:.0f} %: {found['criterion']}" for found in _of(mine, name)]
        if chosen:
            yield f"- {ROWS[name].title}: {'; '.join(dict.fromkeys(chosen))}."
    trained, ours = _of(mine, "retrained"), _of(mine, "psp")
    both = {found["share"] for found in trained} & {found["share"] for found in ours}
    trained, ours = ([one for one in found if one["share"] in both] for found in (trained, ours))
    if both:
        ratio = _mean(trained, "seconds") / _mean(ours, "seconds")
        yield f"- Retraining: {trained[0]['epochs']} epochs, {ratio:.1f} times as long as `psp`."
    for name, row in ROWS.items():
        for share in setting.shares:
            found = [one for one in _of(mine, name) if one["share"] == share]
            if found and share - _mean(found, "kept") > SLACK:
                kept = f"{100 * _mean(found, 'kept'):.1f} %"
                yield f"- {row.title} at {100 * share:.0f} %: {kept} of the FLOPs kept, the nearest it comes."
    yield ""


def _of(records: Sequence[Record], row: str) -> list[Record]:
    return [found for found in records if found["row"] == row]


def _cell(records: Sequence[Record], kind: str) -> str:
    return spread([found[kind] for found in records], 3 if kind == "kl" else 2) if records else ""


def _mean(records: Sequence[Record], kind: str) -> float:
    return mean(float(found[kind]) for found in records)


def _seconds(records: Sequence[Record]) -> str:
    return f"{_mean(records, 'seconds'):.0f} s" if records else ""


def _header(titles: Sequence[str]) -> tuple[str, str]:
    return _line(titles), "|" + "---|" * len(titles)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
