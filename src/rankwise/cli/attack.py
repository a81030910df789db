"""`rankwise attack`: the job, with its progress and its table on the screen."""

from rankwise.cli.progress import progress
from rankwise.cli.report import hint
from rankwise.cli.table import comparison
from rankwise.recipes.alone import alone_in
from rankwise.recipes.attack import FIGURE, TABLE, attack, table_of
from rankwise.recipes.attack_options import AttackOptions, AttackSettings
from rankwise.recipes.folder import METRICS
from rankwise.recipes.history import Line


def run_attack(subjects: tuple[str, ...] = (), /, *, settings: AttackSettings) -> None:
    """Attack trained image classifiers, and print how they compare.

    Args:
        subjects: Run folders of `rankwise train`, or package.module:factory, which returns a
            trained module [three networks, trained here first].
    """
    options = AttackOptions(**vars(settings), subjects=subjects)
    with alone_in(options.output), progress(_state) as (console, watcher):
        outcome = attack(options, watcher)
    console.print(comparison(*table_of(outcome.metrics)))
    for name, measures in outcome.metrics["models"].items():
        for sign in measures["masking"]:
            console.print(f"{name} may only look robust: {sign}")
        if measures.get("uncertified"):
            console.print(f"{name} is not certified: {measures['uncertified']}")
    files = ", ".join(str(outcome.folder / name) for name in (FIGURE, TABLE, METRICS))
    console.print(f"written: {files}", soft_wrap=True)
    console.print(hint(outcome.folder), soft_wrap=True)


def _state(line: Line) -> str:
    return f"loss {line['loss']:.3f}"
