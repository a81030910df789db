"""A function on several processes at once, joined by gloo."""

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LIMIT = 120


def on_processes(count: int, scene: Callable[..., Any], *args: Any) -> list[Any]:
    """What `scene(rank, *args)` returns on each process; AssertionError with what one raised.

    Processes are forked, so that they start in milliseconds and may run a function of a test. Their
    environment is that of torchrun.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("fork")
        run = (count, scene, args, Path(folder))
        processes = [context.Process(target=_run, args=(rank, *run)) for rank in range(count)]
        for process in processes:
            process.start()
        end = time.monotonic() + LIMIT
        # Where one process has failed, the others wait for it without end.
        while time.monotonic() < end and any(p.is_alive() for p in processes):
            if any(p.exitcode for p in processes):
                end = min(end, time.monotonic() + 1.0)
            time.sleep(0.01)
        hung = [process for process in processes if process.is_alive()]
        for process in hung:
            process.kill()
        errors = [p.read_text() for p in sorted(Path(folder).glob("error-*"))]
        assert not errors, "\n".join(errors)
        assert not hung, f"{len(hung)} processes hang"
        assert not any(p.exitcode for p in processes), [p.exitcode for p in processes]
        results = [Path(folder) / f"result-{rank}" for rank in range(count)]
        return [torch.load(result, weights_only=False) for result in results]


def _run(rank: int, count: int, scene: Callable[..., Any], args: Any, folder: Path) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    # No port is opened: the processes meet in a file.
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="1", TORCHELASTIC_RUN_ID="forked")
    os.environ.update(GROUP_RANK="0", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    try:
        store = dist.FileStore(str(folder / "store"), count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
        torch.save(scene(rank, *args), folder / f"result-{rank}")
        dist.destroy_process_group()
        os._exit(0)
    except BaseException:
        (folder / f"error-{rank}").write_text(f"process {rank}: {traceback.format_exc()}")
        os._exit(1)
