"""The job of `rankwise doctor`: an installation examined, or what a training has left."""

import importlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankwise.check.finding import Findings
from rankwise.io.atomic import write_text
from rankwise.recipes.folder import METRICS, OPTIONS
from rankwise.recipes.installation import installation_findings
from rankwise.recipes.packages import cache_folder
from rankwise.recipes.run_findings import findings_of
from rankwise.recipes.seed import check_seed
from rankwise.recipes.trials import trial_findings
from rankwise.report.machine import versions
from rankwise.report.recorder import RUN

PACKAGES = ("rankwise", "torch", "safetensors", "transformers", "peft")


@dataclass(frozen=True)
class DoctorOptions:
    """What is examined, and where to write what was found."""

    subject: Path | None = None
    base: str | None = None
    output: Path | None = None
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        paths = {"subject": self.subject, "output": self.output}
        told = {name: None if path is None else str(path) for name, path in paths.items()}
        return {**told, "base": self.base, "seed": self.seed}


def doctor(options: DoctorOptions) -> Findings:
    """Examine; writes `metrics.json` into `options.output` if there is one.

    Raises ValueError or FileNotFoundError where there is nothing to examine.
    """
    check_seed(options.seed)
    if options.base is not None and options.subject is None:
        raise ValueError("--base is the model of an adapter: name the adapter or run as well")
    if options.output is not None and any((options.output / n).exists() for n in (OPTIONS, RUN)):
        raise ValueError(
            f"--output {options.output} holds a run, whose {METRICS} would be replaced: name "
            "another folder"
        )
    start = time.perf_counter()
    if options.subject is None:
        # The door of the package imports what is inside, so nothing inside imports the door.
        imported = importlib.import_module("rankwise").__version__
        found = installation_findings(cache_folder(), imported)
        found += trial_findings(options.seed)
    else:
        found = findings_of(options.subject, options.base)
    findings = Findings(found)
    if options.output is not None:
        metrics = {
            "verdict": findings.worst.value,
            "findings": [{**f._asdict(), "verdict": f.verdict.value} for f in findings],
            "seconds": time.perf_counter() - start,
            "seed": options.seed,
            "options": options.to_json(),
            "versions": versions(PACKAGES),
        }
        write_text(options.output / METRICS, json.dumps(metrics, indent=2) + "\n")
    return findings
