"""One run in a process of its own: reads an order as JSON, writes a record."""

import json
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from methods import Setting  # noqa: E402
from results import write_record  # noqa: E402
from tasks import TASKS  # noqa: E402


def main(order: dict) -> None:
    torch.set_num_threads(1)
    setting = Setting.from_json(order["setting"])
    task = TASKS[order["task"]]
    record = task.run(setting, order["bfloat16"])
    losses = record["losses"]
    complete = len(losses) == setting.steps and math.isfinite(losses[-1])
    tail = losses[-task.tail :]
    record["train_loss"] = sum(tail) / len(tail) if complete else float("nan")
    write_record(Path(order["path"]), {**order, **record})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
