"""One loader in a process of its own: atheris ends it, and memory is counted by process."""

import json
import os
import random
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

BROKEN = 3
"""Exit status where making the damage has failed, not reading it."""

NEVER = 10**7
"""Seconds: its own timeout goes by the clock, and a machine that was paused looked like an endless
input. `Trial` has one that goes by the processor."""


def main(name: str, output: Path, folder: Path, seed: int, inputs: int) -> None:
    atheris = _atheris()
    import torch

    from loaders import loaders
    from trial import Trial

    torch.set_num_threads(1)
    loader = loaders()[name]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        sound = loader.seeds(Path(place))
    trial = Trial(loader, folder, output)

    def one(content: bytes) -> None:
        trial.one(content)
        if trial.inputs >= inputs:
            (output / f"{name}.json").write_text(json.dumps(trial.told(), indent=1) + "\n")
            # Atheris does not return, and what it prints in the end is of no use.
            os._exit(0)

    if atheris is None:
        draw = random.Random(seed)
        while True:
            one(loader.damaged(draw.choice(sound), draw))

    def damaged(content: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        way = draw.random()
        try:
            if way < 0.1:
                return bytes(atheris.Mutate(content, most))
            # What grows is damaged already, and most of it is refused early.
            start = draw.choice(sound) if way < 0.6 else content
            return loader.damaged(start, draw)[:most]
        except BaseException:
            # Atheris would keep silent and wait for its next alarm, which then kills it.
            traceback.print_exc()
            os._exit(BROKEN)

    seeds = output / "seeds" / name
    seeds.mkdir(parents=True, exist_ok=True)
    for i, content in enumerate(sound):
        (seeds / str(i)).write_bytes(content)
    flags = [f"-seed={seed + 1}", "-max_len=200000", "-rss_limit_mb=8192"]
    flags += [f"-timeout={NEVER}", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *flags, str(seeds)], one, custom_mutator=damaged)
    atheris.Fuzz()


def _atheris() -> Any:
    """With all of rankwise imported so that coverage is seen; None without atheris."""
    try:
        import atheris
    except ImportError:
        return None
    with atheris.instrument_imports(include=["rankwise"]):
        import loaders  # noqa: F401
    return atheris


if __name__ == "__main__":
    name, output, folder, seed, inputs = sys.argv[1:]
    main(name, Path(output), Path(folder), int(seed), int(inputs))
