"""The page in a real browser, as a phone and a desktop show it, by day and by night."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from espalier.report import write_report
from tests.report.fabricate import write_comparison, write_cut_run, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.xdist_group("browser"),
]
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
]
# Browsers refuse windows as narrow as a phone, frames they do not.
WRAPPER = """<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark"><body>
<iframe id="frame" style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe><pre id="found"></pre>
<script>
addEventListener("load", () => {{
  const inner = document.getElementById("frame").contentDocument, view = inner.defaultView;
  const width = inner.documentElement.clientWidth;
  const sticking = [...inner.querySelectorAll("body *:not(svg *)")].filter(e => e.getBoundingClientRect().right > width + 1);
  const texts = [...inner.querySelectorAll(".plots > .card > svg text")];
  const fits = t => {{
    const box = t.getBoundingClientRect(), svg = t.closest("svg.plot").getBoundingClientRect();
    return box.left >= svg.left - 1 && box.right <= svg.right + 1;
  }};
  const shown = t => t.getClientRects().length > 0;
  document.getElementById("found").textContent = JSON.stringify({{
    width,
    scrollWidth: inner.documentElement.scrollWidth,
    sticking: sticking.map(e => e.outerHTML.slice(0, 80)),
    cut: texts.filter(t => shown(t) && !fits(t)).map(t => t.textContent),
    letters: Math.min(...texts.filter(shown).map(t => t.getBoundingClientRect().height)),
    plots: [...inner.querySelectorAll(".plots")].filter(p => p.querySelector("svg").getBoundingClientRect().height > 100)
      .map(p => p.dataset.kind).filter(Boolean),
    ink: view.getComputedStyle(inner.querySelector("svg .title")).fill,
    line: view.getComputedStyle(inner.querySelector("svg .line")).stroke,
    card: view.getComputedStyle(inner.querySelector(".card")).backgroundColor,
  }});
}});
</script>"""


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    write_comparison(folder, (0.8, 0.9, 0.95), seeds=2, epochs=(3, 5, 20))
    write_run(folder, "a-method-with-a-rather-long-name-of-its-own", 0.9, epochs=20, model="resnet8")
    write_run(folder, "agp", 0.98, epochs=20, stop_after=6, model="resnet8")
    layers = [(f"backbone.features.stage{i}.block{i}.conv{i}.weight", 10**i) for i in range(1, 7)]
    write_run(folder, "ocp", 0.9, epochs=7, model="another_model_with_a_long_name", data="d" * 40, layers=layers)
    write_cuts(folder / "cuts")
    return write_report([folder], folder / "report.html").read_text(encoding="utf-8")


def write_cuts(folder: Path) -> None:
    """Methods that cut channels, beside masks of the same model and alone."""
    groups = [(f"backbone.features.stage{i}.block{i}.conv{i}", 2**i) for i in range(2, 12)]
    for seed in (0, 1):
        write_cut_run(folder, "ocsp", 0.5, seed=seed, epochs=20, cut_after=(4.0 + seed,), model="resnet8")
        write_cut_run(folder, "epi", 0.5, seed=seed, epochs=20, reason="latest", model="resnet8")
    write_run(folder, "dense", epochs=20, model="zz_cut_alone")
    for keep in (0.3, 0.5):
        write_cut_run(
            folder / str(keep), "ocsp", keep, epochs=20, cut_after=(2.0, 3.5, 5.0), model="zz_cut_alone", groups=groups
        )
        at = {"at_epoch": 10, "criterion": "taylor"}
        write_cut_run(folder / str(keep), "train-prune-finetune", keep, epochs=20, model="zz_cut_alone", groups=groups)
        write_cut_run(folder / f"at{keep}", "train-prune-finetune", keep, epochs=20, model="zz_cut_alone", settings=at)


def look(html: str, tmp_path: Path, width: int, *, dark: bool) -> tuple[dict[str, Any], list[str]]:
    """What the browser measures in the page, and its complaints."""
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(WRAPPER.format(width=width, page=escape(html)), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", scheme, "--window-size=1400,900"]
    done = subprocess.run([*command, "--dump-dom", wrapper.as_uri()], capture_output=True, text=True, timeout=240, check=True)
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def brightness(colour: str) -> float:
    """Relative luminance of a CSS `rgb(...)` colour."""
    shares = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    low, high = sorted((brightness(one), brightness(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits_and_is_readable(html: str, tmp_path: Path, width: int, dark: bool) -> None:
    found, complaints = look(html, tmp_path, width, dark=dark)
    assert complaints == []
    assert found["width"] == width
    assert found["scrollWidth"] <= width
    assert found["sticking"] == []
    assert found["cut"] == []
    assert found["letters"] >= 10
    assert found["plots"][:3] == ["training", "schedules", "layers"]  # of the model that has one run only
    cuts = {"tradeoff", "training", "stability", "macs", "speed", "norms", "widths"}
    assert set(found["plots"][3:14]) == cuts | {"sparsity", "budget", "schedules", "layers"}
    assert set(found["plots"][14:]) == cuts
    assert (brightness(found["card"]) < 0.1) == dark
    assert contrast(found["ink"], found["card"]) >= 7
    assert contrast(found["line"], found["card"]) >= 3
