"""Records of runs: one JSON file each, found again by what was run, so that nothing runs twice."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from methods import Setting


def record_path(folder: Path, task: str, setting: Setting, bfloat16: bool) -> Path:
    """Where the record of a run is, or will be."""
    what = json.dumps([task, asdict(setting), bfloat16], sort_keys=True)
    name = f"{task}-{setting.method}-r{setting.rank}-lr{setting.lr:g}-s{setting.seed}"
    digest = hashlib.sha256(what.encode()).hexdigest()[:8]
    return folder / f"{name.replace(' ', '_')}-{digest}.json"


def write_record(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(record, indent=1))
    partial.replace(path)


def read_records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))]
