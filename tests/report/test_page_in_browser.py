"""The page in Chromium: no error on its console, and values under the pointer."""

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from rankwise.report.page.write import write_report
from recorded_runs import HOSTILE, NAMES, history, write_run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="NOT TESTED: there is no Chromium, so nobody has run the page's script"
)

POINT = """
<script>
addEventListener("load", () => {
  const area = document.querySelector(%s);
  const frame = area.getBoundingClientRect();
  area.dispatchEvent(new PointerEvent("pointermove", {
    clientX: frame.left + %g * frame.width, clientY: frame.top + %g, bubbles: true,
  }));
});
</script>
"""


def opened(page: Path) -> tuple[str, str]:
    """The document after its scripts, and what the browser logged on its console."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--v=0", "--window-size=1200,3000", "--virtual-time-budget=2000", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout, "\n".join(x for x in done.stderr.splitlines() if "CONSOLE" in x)


def tip(page: Path, selector: str, along: float, down: float) -> str:
    """What the page shows when the pointer is there."""
    html = page.read_text()
    pointed = page.with_name("pointed.html")
    pointed.write_text(html.replace("</body>", POINT % (repr(selector), along, down) + "</body>"))
    document, console = opened(pointed)
    assert console == ""
    shown = re.search(r'<div id="tip".*?(?=<script)', document, flags=re.DOTALL)
    assert shown and "visible" in shown[0]
    return unescape(" ".join(re.sub("<[^>]+>", " ", shown[0]).split()))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    write_report([write_run(tmp_path / "run")], tmp_path / "report.html")
    return tmp_path / "report.html"


@pytest.mark.parametrize("names", [NAMES, HOSTILE])
def test_the_page_opens_without_an_error(tmp_path, names):
    runs = [write_run(tmp_path / name, names=names, seed=i) for i, name in enumerate("ab")]
    write_report(runs, tmp_path / "report.html")
    document, console = opened(tmp_path / "report.html")
    assert console == ""
    assert "<title>a and b - rankwise</title>" in document


def test_an_error_would_be_seen(page):
    page.write_text(page.read_text().replace("</body>", "<script>nothing.at.all</script></body>"))
    assert "nothing is not defined" in opened(page)[1]


def test_a_page_without_steps_opens_too(tmp_path):
    run = write_run(tmp_path / "run", lines=[], about=None, metrics={"accuracy": 0.5})
    write_report([run], tmp_path / "report.html")
    assert opened(tmp_path / "report.html")[1] == ""


def test_the_pointer_tells_layer_step_and_rank(page):
    # The second row of the first block, in the middle of steps 1 to 60.
    shown = tip(page, ".heat > .area", 0.5, 22 + 26 + 5)
    assert shown.startswith(f"{NAMES[1]} step 31 rank 5 weight 64 \u00d7 64")


def test_the_pointer_tells_the_loss_of_the_nearest_step(page):
    lines = history()
    shown = tip(page, "[data-chart=loss] .area", 1.0, 5)
    assert shown.startswith("step 60")
    assert f"{lines[-1]['loss']:.5g}"[:5] in shown


def test_the_pointer_tells_a_singular_value(page):
    shown = tip(page, ".tile .area", 0.0, 5)
    assert shown == f"{NAMES[0]} step 60 direction 1 of 10 singular value 1"
