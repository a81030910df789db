"""`rankwise doctor`: what is found as a table, the worst of it as the exit status."""

from pathlib import Path

from rankwise.check.finding import Verdict
from rankwise.recipes.doctor import DoctorOptions, doctor
from rankwise.recipes.folder import METRICS

INSTALL = 'pip install "rankwise[finetune]"'
COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAULT: "red"}
FAULTY = 1


def run_doctor(
    subject: Path | None = None,
    /,
    *,
    base: str | None = None,
    output: Path | None = None,
    seed: int = 0,
) -> int:
    """Examine the installation; or a run or adapter, of which each flaw is told with its mend.

    Without arguments: Python, torch, threads, packages, cache, and a few seconds of trials. The
    exit status is 1 where something is at fault.

    Args:
        subject: Folder of a run or an adapter (rankwise's or PEFT's), a history.jsonl, or a
            .safetensors file [the installation].
        base: The model under the adapter: folder or file of its weights, or a hub name in the
            cache.
        output: Folder for metrics.json with all findings [none].
        seed: Of the trials.
    """
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise ImportError(f"tables need rich: {INSTALL}") from error
    findings = doctor(DoctorOptions(subject, base, output, seed))
    console = Console(highlight=False)
    table = Table("", "check", "seen, and what to do", box=SIMPLE_HEAD, pad_edge=False)
    for f in findings:
        colour = COLOURS[f.verdict]
        what = Text(f.seen)
        if f.mend:
            what.append(f"\n-> {f.mend}", style=colour)
        table.add_row(Text(f.verdict.value, style=colour), Text(f.name), what)
    console.print(table)
    bad = len(findings.bad)
    console.print(f"{len(findings)} checks, {bad} of them with a mend" if bad else "all is well")
    if output is not None:
        console.print(f"written: {output / METRICS}", soft_wrap=True)
    return FAULTY if findings.worst is Verdict.FAULT else 0
