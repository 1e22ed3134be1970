"""`fxprune precrop`, from the command line to the files it writes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fxprune.cli import main
from fxprune.widths import METHODS

ROOT = Path(__file__).resolve().parents[2]
README = re.compile(r"<!-- precrop:begin -->\n```console\n\$ (.*)\n```\n```text\n(.*?)```", re.DOTALL)

TEXT = """\
fxprune report: recipe precrop, seed 3

cost      before    after     kept    limit
flops    101,440   48,408   47.7 %   60,864
params       860      414   48.1 %      430

group               units   kept    share   axes
features.0.weight       8      7   87.5 %      4
features.3.weight       8      3   37.5 %      4

layer density       weights   single weights   channels
features.0.weight       216            0.838      0.875
features.3.weight       576            0.314      0.328

objective (0 is the original): single weights -1.3344, channels -1.1655, wanted widths -1.1655,
whole widths -1.2479, SynExp -1.2479
"""

TRAINS = """\
import runpy, sys, torch, safetensors.torch as s
space = runpy.run_path('model.py')
network = [c for c in space.values() if isinstance(c, type) and issubclass(c, torch.nn.Module)][-1]()
network.load_state_dict(s.load_file('model.safetensors'))
before = network.features[0].weight.detach().clone()
statistics = network.features[1].running_mean.clone()
optimiser = torch.optim.SGD(network.parameters(), 0.1)
torch.nn.functional.cross_entropy(network.train()(torch.randn(6, 3, 8, 8)), torch.arange(6) % 4).backward()
optimiser.step()
assert not torch.equal(network.features[0].weight, before)
assert not torch.equal(network.features[1].running_mean, statistics)
assert network.eval()(torch.zeros(3, 3, 8, 8)).shape == (3, 4)
assert not any(name.startswith('fxprune') for name in sys.modules)
"""


@pytest.fixture
def tiny(networks: Path) -> str:
    """The SPEC of a network of two convolutions of eight channels, with BatchNorm, for images of eight pixels."""
    return f"{networks}:tiny"


def precrop(spec: str, *arguments: object) -> Result:
    command = ["precrop", spec, "--input-size", "3,8,8", *map(str, arguments)]
    return CliRunner().invoke(main, command, catch_exceptions=False)


def report_of(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_what_is_printed(tiny: str, tmp_path: Path) -> None:
    result = precrop(tiny, "--params", 0.5, "--flops", 0.6, "--out", tmp_path / "out", "--seed", 3)
    assert (result.exit_code, result.stderr) == (0, "")
    told, _, rest = result.stdout.partition("held: ")
    assert told == TEXT
    note = "note: which channels of a group stay does not matter before training: they were drawn with seed 3\n"
    assert f"\n{note}verified: " in rest
    assert rest.endswith(f"written to {tmp_path / 'out'}\n")


def test_the_readme_shows_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [(command, shown)] = README.findall((ROOT / "README.md").read_text())
    (tmp_path / "fxprune").symlink_to(ROOT / "fxprune")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, shlex.split(command)[1:], catch_exceptions=False)
    assert result.stdout[: len(shown)] == shown


@pytest.mark.parametrize(
    "options", [("--params", 0.5), ("--params", 1.0, "--grow"), ("--flops", 0.5, "--reinitialise")]
)
def test_the_network_trains_where_there_is_no_fxprune(tiny: str, tmp_path: Path, options: tuple[object, ...]) -> None:
    out = tmp_path / "out"
    assert precrop(tiny, *options, "--out", out).exit_code == 0
    assert {path.name for path in out.iterdir()} == {"model.py", "model.safetensors", "plan.json", "report.json"}
    subprocess.run([sys.executable, "-c", TRAINS], cwd=out, check=True, timeout=120)


def test_json_is_all_there_is_on_standard_output(tiny: str, tmp_path: Path) -> None:
    limits = ("--params", 0.6, "--flops", 0.7, "--memory", 0.8)
    report = report_of(precrop(tiny, *limits, "--out", tmp_path / "out", "--json"))
    assert (report["recipe"], report["seed"], report["out"]) == ("precrop", 0, str(tmp_path / "out"))
    assert set(report["cost"]) == {"flops", "params", "memory"}
    for cost in report["cost"].values():
        assert cost["after"] <= cost["limit"] < cost["before"]
    assert [density["layer"] for density in report["densities"]] == ["features.0.weight", "features.3.weight"]
    assert [density["weights"] for density in report["densities"]] == [8 * 3 * 9, 8 * 8 * 9]
    assert all(0 < density["kept"] <= 1 and 0 < density["best"] <= 1 for density in report["densities"])
    assert report["objective"] and report["verification"]["ok"]
    assert report == {**json.loads((tmp_path / "out" / "report.json").read_text()), "out": report["out"]}


@pytest.mark.parametrize("flag", ["--grow", "--config"])
def test_groups_may_grow(tiny: str, tmp_path: Path, flag: str) -> None:
    report = report_of(precrop(tiny, "--params", 1.0, flag, "--out", tmp_path / "out", "--json"))
    widths = {group["name"]: (group["before"], group["after"]) for group in report["groups"]}
    assert widths["features.0.weight"][1] > 8 > widths["features.3.weight"][1]
    assert report["cost"]["params"]["after"] <= report["cost"]["params"]["before"]
    assert max(density["kept"] for density in report["densities"]) > 1
    assert (report["verification"], report["unverified"]) == (None, "a network that grows has no oracle")


def test_options_reach_the_library(tiny: str, tmp_path: Path) -> None:
    options = ("--multiple-of", 2, "--freeze", "features.0*", "--max-ratio", 0.5, "--no-verify", "--method", "uniform")
    report = report_of(precrop(tiny, "--params", 0.7, *options, "--out", tmp_path / "out", "--json"))
    widths = {group["name"]: group["after"] for group in report["groups"]}
    assert widths["features.0.weight"] == 8
    assert 4 <= widths["features.3.weight"] < 8 and widths["features.3.weight"] % 2 == 0
    assert (report["recipe"], report["verification"]) == ("uniform", None)
    assert report["unverified"] == "verification was switched off"


def test_the_seed_makes_the_network_and_draws_the_channels(tmp_path: Path) -> None:
    source = "from torch.nn import *\ndef plain():\n    return Sequential(Conv2d(3, 8, 3), ReLU(), Conv2d(8, 4, 3))\n"
    (tmp_path / "plain.py").write_text(source)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ("--params", 0.5, "--seed", seed, "--out", tmp_path / name)
        assert precrop(f"{tmp_path}/plain.py:plain", *options).exit_code == 0
    for file in ("model.py", "plan.json", "model.safetensors"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b
        assert file == "model.py" or a != c


SCALED = """
from torch import nn, ones
class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.scale = nn.Parameter(ones(8, 1, 1))
    def forward(self, x):
        return self.last(self.first(x) * self.scale)
"""


def test_notes_tell_what_was_drawn(tmp_path: Path) -> None:
    (tmp_path / "scaled.py").write_text(SCALED)
    notes = {}
    for method in ("precrop", "synflow"):
        options = ("--params", 0.7, "--method", method, "--reinitialise", "--out", tmp_path / method, "--json")
        notes[method] = report_of(precrop(f"{tmp_path}/scaled.py:Scaled", *options))["notes"]
    channels = "which channels of a group stay does not matter before training: they were drawn with seed 0"
    weights = "`scale` is not drawn anew, as no module draws it by itself: it keeps its values"
    assert notes == {"precrop": [channels, weights], "synflow": [weights]}, "synflow has an order of its own"


def test_the_report_as_a_web_page(tiny: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert precrop(tiny, "--params", 0.5, "--html", page, "--out", tmp_path / "out").exit_code == 0
    titles: list[str] = []

    class Titles(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            titles.extend(value or "" for name, value in attrs if (tag, name) == ("svg", "aria-labelledby"))

    Titles().feed(page.read_text())
    assert titles[:2] == ["group-widths", "layer-densities"]
    text = page.read_text()
    assert all(f"<h2>{title}</h2>" in text for title in ("Coupling", "Before and after", "Plan"))


def test_fresh_weights_are_not_mentioned(tmp_path: Path) -> None:
    options = ("--input-size", "3,64,64", "--params", 0.5, "--no-verify", "--out", tmp_path / "out")
    result = precrop("torchvision:squeezenet1_1", *options)
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--params", "0"], "error: params=0.0: a limit is a share in (0, 1] of the original"),
        (["--params", "nan"], "error: params=nan: a limit is a share in (0, 1] of the original"),
        (["--params", "0.001"], "error: params=1 cannot be reached: the smallest network has 48; "),
        (
            ["--params", "0.9", "--flops", "0.001"],
            "error: flops=101 cannot be reached: the smallest network has 4,616; ",
        ),
        (["--memory", "0.001"], "error: memory=13 cannot be reached: the smallest network has "),
        (
            ["--params", "0.5", "--freeze", "features*"],
            "error: params=430 cannot be reached: the smallest network has 860; ",
        ),
        (["--params", "0.5", "--freeze", "nothing_like_it"], "error: freeze='nothing_like_it' matches no parameter"),
        (["--params", "0.5", "--max-ratio", "2"], "error: max_ratio=2.0 must be in [0, 1]"),
        (["--params", "0.5", "--method", "nonsense"], "error: method 'nonsense' is not known; there are: "),
        (["--params", "0.5", "--method", "snip"], "error: method='snip' looks at a loss: give data=(inputs, labels)"),
        (["--params", "0.5", "--input-size", "1,8,8"], "error: the model does not run on the example inputs "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_writes_nothing(tiny: str, tmp_path: Path, options: list[str], message: str) -> None:
    out = tmp_path / "out"
    result = precrop(tiny, *options, "--out", out)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith(message)
    assert not out.exists()


def test_a_network_without_a_prunable_group_is_refused(tmp_path: Path) -> None:
    (tmp_path / "single.py").write_text("from torch import nn\ndef single():\n    return nn.Conv2d(3, 4, 1)\n")
    result = precrop(f"{tmp_path}/single.py:single", "--params", 0.5, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("error: nothing in this network can shrink: ")


def test_an_output_that_cannot_be_written_is_told_before_the_work(networks: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = precrop(f"{networks}:nowhere", "--params", 0.5, "--out", tmp_path)
    assert result.exit_code == 1 and "holds thesis.txt and no earlier result" in result.stderr


def test_a_missing_budget_is_a_usage_error(tiny: str, tmp_path: Path) -> None:
    result = precrop(tiny, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "give a budget: at least one of --flops, --params and --memory" in result.stderr


def test_help_tells_all_methods() -> None:
    told = " ".join(precrop("--help").stdout.split())
    for method in METHODS:
        assert method in told, method
    assert "[default: precrop]" in told
