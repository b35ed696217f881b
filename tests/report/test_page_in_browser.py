"""The page in a browser: links, sorting, filters, no errors, narrow screens. Needs a Chromium."""

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_reports import HOSTILE, write_report
from toy_runs import make_run, toy_runs, write_study

from bench.report.rendering import visible

CHROMIUM = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome"),
]

# Opens the page in a frame, does with it what a reader does, and writes down what came of it.
DRIVER = """<!doctype html><title>driver</title>
<iframe id="frame" src="PAGE" width="360" height="800"></iframe><pre id="found"></pre>
<script>
const frame = document.getElementById("frame");
// Contrast of text with what lies behind it (WCAG 2.2, relative luminance and contrast ratio).
const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
const linear = (c) => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const [r, g, b, alpha = 1] = channels(getComputedStyle(e).backgroundColor);
    if (alpha > 0) return [r, g, b];
  }
  return [255, 255, 255];
};
const contrast = (e) => {
  const [dark, light] = [channels(getComputedStyle(e).color), behind(e)].map(luminance).sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
};
const hasText = (e) => [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
const faint = (body) => {
  const shown = [...body.querySelectorAll("*:not(script, style)")].filter(hasText);
  const found = shown.map((e) => [contrast(e), e.tagName, e.className]);
  return { measured: found.length, least: found.sort((a, b) => a[0] - b[0])[0] };
};
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  const table = page.querySelector("#runs table");
  const shown = () => [...table.tBodies[0].rows].filter((row) => !row.hidden);
  const column = (i) => shown().map((row) => row.cells[i].textContent);
  const click = (i) => table.tHead.rows[0].cells[i].querySelector("button").click();
  const aria = (i) => table.tHead.rows[0].cells[i].ariaSort;
  const found = { inner: frame.contentWindow.innerWidth, widest: root.scrollWidth, text: root.textContent };
  const inner = [...page.querySelectorAll('a[href^="#"]')].map((a) => decodeURIComponent(a.hash.slice(1)));
  found.lost = inner.filter((id) => !page.getElementById(id));
  found.links = inner.length;
  found.original = column(0);
  const flops = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === "flops");
  click(0); found.up = column(0); found.up_aria = aria(0);
  click(0); found.down = column(0); found.down_aria = aria(0);
  click(0); found.again = column(0);
  click(flops); found.flops = column(flops);
  click(flops); found.flops_down = column(flops);
  const input = page.querySelector("#runs .filter input");
  input.value = "clm failed"; input.dispatchEvent(new Event("input")); found.filtered = column(0);
  page.querySelectorAll("details").forEach((details) => { details.open = true; });
  found.widest_open = root.scrollWidth;
  found.faint = faint(page.body);
  const folded = page.getElementById("config");
  folded.open = false;
  frame.contentWindow.location.hash = "#config";
  setTimeout(() => {
    found.opened = folded.open;
    found.focusable = table.tHead.rows[0].cells[0].querySelector("button").tabIndex;
    document.getElementById("found").textContent = JSON.stringify(found);
  }, 200);
};
</script>
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves without a line per request."""

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the driver saw of a page full of hostile names, and the browser's console."""
    folder = tmp_path_factory.mktemp("study")
    runs = [*toy_runs(), *(make_run("clm", seed, None, run_id=f"f{seed}") for seed in (8, 9))]
    runs += [make_run("mlm", i, 0.5 + i / 50, run_id=f"h{i}", model=name) for i, name in enumerate(HOSTILE)]
    write_study(folder, runs)
    (folder / "experiments/toy/README.md").write_text("\n\n".join(["# T", *HOSTILE]))
    page = write_report(folder)
    (folder / "driver.html").write_text(DRIVER.replace("PAGE", page.relative_to(folder).as_posix()))
    for address in serve(folder):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
        flags += ["--virtual-time-budget=10000", f"--user-data-dir={folder / 'profile'}"]
        done = subprocess.run(
            [str(CHROMIUM), *flags, f"{address}/driver.html"], capture_output=True, text=True, timeout=120
        )
    [text] = re.findall(r'<pre id="found">(.+?)</pre>', done.stdout, flags=re.DOTALL)
    return json.loads(html.unescape(text)) | {"console": re.findall(r".*CONSOLE.*", done.stderr)}


def serve(folder: Path) -> Iterator[str]:
    """The address of a server of a folder, for as long as it is wanted."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_every_link_inside_the_page_arrives(found: dict[str, Any]):
    assert found["links"] > 20
    assert found["lost"] == []


def test_a_click_sorts_up_then_down_then_back(found: dict[str, Any]):
    assert found["up"] == sorted(
        found["original"], key=lambda text: [w.zfill(9) for w in re.findall(r"\d+|\D", text)]
    )
    assert found["down"] == found["up"][::-1]
    assert found["again"] == found["original"]
    assert found["original"] != found["up"]
    assert (found["up_aria"], found["down_aria"]) == ("ascending", "descending")


def test_numbers_are_sorted_as_numbers_and_cells_without_one_come_last(found: dict[str, Any]):
    n_known = sum(text.startswith("1.0×10⁹") for text in found["flops"])
    assert 0 < n_known < len(found["flops"])
    for name in ("flops", "flops_down"):
        assert set(found[name][-2:]) == {"–"}


def test_a_filter_leaves_the_rows_with_all_of_its_words(found: dict[str, Any]):
    assert sorted(found["filtered"]) == ["f8", "f9"]


def test_a_link_into_a_folded_table_opens_it(found: dict[str, Any]):
    assert found["opened"]


def test_headers_are_reached_by_keyboard(found: dict[str, Any]):
    assert found["focusable"] == 0


def test_nothing_is_wider_than_a_narrow_screen(found: dict[str, Any]):
    assert found["inner"] == 360
    assert found["widest"] <= 360
    assert found["widest_open"] <= 360


def test_all_text_stands_out_from_what_is_behind_it(found: dict[str, Any]):
    """A ratio of 4.5 at least (WCAG 2.2, success criterion 1.4.3)."""
    assert found["faint"]["measured"] > 200
    assert found["faint"]["least"][0] >= 4.5


def test_hostile_names_are_text_and_the_console_stays_silent(found: dict[str, Any]):
    assert found["console"] == []
    assert all(visible(name) in found["text"] for name in HOSTILE if "`" not in name)
