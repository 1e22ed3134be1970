"""The HTML report in a real browser: a Chromium without network, by CHROME_BIN or one of the usual names on PATH."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.models import VisionTransformer

import fxprune as fp
from tests.networks import build, images

NAMES = (
    "chromium-headless-shell",
    "chrome-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)
OPTIONS = (
    "--headless",
    "--no-sandbox",  # there is none in a container; the pages are our own
    "--disable-gpu",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # no network
    "--enable-logging=stderr",
)

# Writes what a reader would see into the page. `outside`: what sticks out of the window and cannot be scrolled into it.
MEASURE = """<script>addEventListener("load", () => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const box = element => element.getBoundingClientRect();
  const wide = document.documentElement.clientWidth;
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const within = (inner, outer) => {
    const [a, b] = [box(inner), box(outer)];
    return a.left > b.left - 1 && a.right < b.right + 1 && a.top > b.top - 1 && a.bottom < b.bottom + 1;
  };
  const touching = drawing => {
    const texts = all("text", drawing);
    return texts.flatMap((one, place) => texts.slice(place + 1).filter(other => meet(box(one), box(other)))
      .map(other => one.textContent + " on " + other.textContent));
  };
  const measured = {
    width: wide,
    scroll: document.documentElement.scrollWidth,
    outside: all("body *").filter(e => !e.closest(".scroll > *") && box(e).right > wide + 0.5).map(e => e.tagName),
    sections: all("h2").map(e => [e.textContent, Math.round(box(e.nextElementSibling).height)]),
    links: all("nav a").filter(e => !document.querySelector(e.getAttribute("href"))).map(e => e.textContent),
    asked: performance.getEntriesByType("resource").map(e => e.name),
    drawings: all("svg").map(e => [box(e).width, box(e).height]),
    touching: all("svg").flatMap(touching),
    cut: all("svg").flatMap(drawing => all("text", drawing).filter(text => !within(text, drawing))
      .concat(all("svg.coupling g text").filter(text => !within(text, text.parentNode.querySelector("rect")))))
      .map(e => e.textContent),
  };
  const note = parent.document.createElement("pre");
  note.id = "measured";
  note.textContent = JSON.stringify(measured);
  parent.document.body.append(note);
});</script>"""

SECTIONS = {
    "pruned": "Warnings, Cost, Channel groups, Held-out error of the outputs, Errors of the layer outputs",
    "cropped": "Cost, Notes, Channel groups, Layer densities",
    "transformer": "Cost, Notes, Channel groups",
}
LAST = "Held axes, Coupling, Before and after, Plan, Seconds"


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, (os.environ.get("CHROME_BIN", ""), *NAMES))), None)
    if found is None:
        pytest.skip("needs a Chromium: install one, or set CHROME_BIN to it")
    return found


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The report of a pruned network, of one cropped before training, and of one with many long names."""
    half = fp.Budget(params=0.6)
    vit = VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=4).eval()
    return {
        "pruned": fp.prune(build("Residual"), images(), budget=half, recipe="fast", calibration=images(32)).to_html(),
        "cropped": fp.precrop(build("Residual"), images(), budget=half).to_html(),
        "transformer": fp.prune(vit, torch.randn(2, 3, 16, 16), budget=half, recipe="magnitude").to_html(),
    }


def look(browser: str, folder: Path, text: str, *options: str) -> tuple[str, str]:
    """What the browser prints of a page, and what the page wrote on its console."""
    page = folder / "page.html"
    page.write_text(text, encoding="utf-8")
    command = [browser, *OPTIONS, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=60, cwd=folder)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def measured(browser: str, folder: Path, text: str, width: int) -> dict[str, Any]:
    """What the page tells of itself in a frame of this width: a window cannot be as narrow as a phone everywhere."""
    inside = html.escape(text.replace("</body>", f"{MEASURE}</body>"))
    style = f"width:{width}px;height:900px;border:0"
    frame = f'<!doctype html><meta charset="utf-8"><body><iframe srcdoc="{inside}" style="{style}"></iframe>'
    printed, console = look(browser, folder, frame, "--window-size=1400,1000", "--dump-dom")
    assert not console
    found = re.search(r'<pre id="measured">(.*?)</pre>', printed, re.DOTALL)
    assert found, "the page does not run"
    told: dict[str, Any] = json.loads(html.unescape(found[1]))
    assert told["width"] == width
    return told


@pytest.mark.parametrize("name", SECTIONS)
def test_the_page_is_whole_and_quiet(browser: str, pages: dict[str, str], name: str, tmp_path: Path) -> None:
    printed, console = look(browser, tmp_path, pages[name], "--dump-dom")
    assert console == ""
    assert re.findall("<h2>([^<]+)</h2>", printed) == f"{SECTIONS[name]}, {LAST}".split(", ")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", SECTIONS)
def test_nothing_sticks_out_touches_or_vanishes(
    browser: str, pages: dict[str, str], name: str, width: int, tmp_path: Path
) -> None:
    told = measured(browser, tmp_path, pages[name], width)
    assert told["scroll"] == width
    assert not any(told[fault] for fault in ("outside", "asked", "links", "touching", "cut")), told
    assert all(height > 0 for _, height in told["sections"]) and told["sections"]
    assert len(told["drawings"]) == pages[name].count("<svg")
    assert all(side > 50 for size in told["drawings"] for side in size)


@pytest.mark.parametrize(("scheme", "paper"), [("dark", (20, 24, 31)), ("light", (255, 255, 255))])
def test_there_is_something_to_see_in_either_scheme(
    browser: str, pages: dict[str, str], scheme: str, paper: tuple[int, int, int], tmp_path: Path
) -> None:
    chosen = f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"
    look(browser, tmp_path, pages["pruned"], "--window-size=1280,2000", chosen, "--screenshot=seen.png")
    with Image.open(tmp_path / "seen.png") as picture:
        seen = picture.convert("RGB")
    assert seen.size[0] == 1280 and seen.getpixel((5, 5)) == paper
    counted = seen.getcolors(seen.size[0] * seen.size[1])
    assert counted is not None
    drawn = 1 - max(count for count, _ in counted) / (seen.size[0] * seen.size[1])
    assert 0.02 < drawn < 0.5 and len(counted) > 100


def test_a_page_with_faults_is_told(browser: str, tmp_path: Path) -> None:
    svg = '<svg width="40" height="0"><text>a</text><text>b</text></svg>'
    faults = f'<nav><a href="#no">no</a></nav><h2>Empty</h2><p></p><div style="width:900px">wide</div>{svg}'
    faults += '<img src="http://example.org/a.png">'
    told = measured(browser, tmp_path, f"<!doctype html><body>{faults}</body>", 400)
    assert told["scroll"] > 900 > told["width"]
    assert told["outside"] == ["DIV"] and told["links"] == ["no"] and told["sections"] == [["Empty", 0]]
    assert told["drawings"] == [[40, 0]] and told["touching"] == ["a on b"]
    assert told["cut"] == ["a", "b"]
    assert told["asked"] == ["http://example.org/a.png"]
    _, console = look(browser, tmp_path, "<script>gone()</script>", "--dump-dom")
    assert "gone is not defined" in console
