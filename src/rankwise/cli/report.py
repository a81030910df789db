"""`rankwise report`: a page of HTML about runs."""

from json import dumps
from pathlib import Path
from shlex import quote

from rankwise.io.atomic import write_text
from rankwise.report.page.write import write_report

PAGE = "report.html"


def hint(folder: Path) -> str:
    """What to type for the page of a run that has ended."""
    return f"a page of it, with ranks, spectra and curves: rankwise report {quote(str(folder))}"


def run_report(
    runs: tuple[Path, ...],
    /,
    *,
    output: Path | None = None,
    title: str | None = None,
    json: Path | None = None,
) -> None:
    """Draw a page of HTML about one run or several, complete in itself.

    Args:
        runs: Folders of runs of this program, or of a `rankwise.report.Recorder`.
        output: The page [report.html in the folder of the run, of several here].
        title: Of the page [the names of the runs].
        json: Write the numbers of the page to this file, as JSON.
    """
    if not runs:
        raise ValueError("name a folder of a run; `rankwise finetune` makes one in runs/finetune")
    target = output or (runs[0] / PAGE if len(runs) == 1 else Path(PAGE))
    page = write_report(runs, target, title=title)
    if json is not None:
        write_text(json, dumps(page.numbers, indent=1) + "\n")
    print(f"written: {target}, {len(page.html) / 1e3:,.0f} kB")
