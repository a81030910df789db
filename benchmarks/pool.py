"""Many runs, each in a process of its own with one thread; what has a record is not run again."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from methods import Setting
from results import record_path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Pool:
    """Runs settings of one task and keeps their records in `folder`."""

    folder: Path
    task: str
    bfloat16: bool
    workers: int

    def path(self, setting: Setting) -> Path:
        return record_path(self.folder, self.task, setting, self.bfloat16)

    def record(self, setting: Setting) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.path(setting).read_text())
        return record

    def run(self, settings: Iterable[Setting]) -> None:
        missing = [s for s in dict.fromkeys(settings) if not self.path(s).exists()]
        with ThreadPoolExecutor(self.workers) as threads:
            list(threads.map(self._run_one, missing))

    def _run_one(self, setting: Setting) -> None:
        order = {
            "task": self.task,
            "setting": asdict(setting),
            "bfloat16": self.bfloat16,
            "path": str(self.path(setting)),
        }
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command: Sequence[str] = (sys.executable, str(HERE / "one_run.py"), json.dumps(order))
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"{setting} failed:\n{done.stderr[-2000:]}")
        record = self.record(setting)
        print(
            f"{setting.label:30s} r={setting.rank:<3d} lr={setting.lr:<7g} seed={setting.seed}  "
            f"train {record['train_loss']:.4f}  validation {record['eval_loss']:.4f}  "
            f"parameters {record['parameters']['end']:,}",
            flush=True,
        )
