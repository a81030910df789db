"""The text that stands ready: the King James Bible, out of Debian's package `bible-kjv-text`.

Only its reader (`bible-kjv`) opens that format, so this takes a machine with `apt-get`.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from rankwise.recipes.packages import cache_folder

KING_JAMES = "king-james"
PACKAGES = ("bible-kjv", "bible-kjv-text")
# The reader fails beyond this verse.
ALL_VERSES = "ge1:1-rev22:12"


def king_james() -> list[str]:
    """All verses, one string each, without their references; public domain.

    Raises RuntimeError where the packages cannot be had.
    """
    file = cache_folder() / "king-james.txt"
    if not file.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise RuntimeError(
                "the King James text comes in a package of Debian's, and there is no command "
                "`apt-get` here: give a text of your own, --data notes.txt"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        verses = [re.sub(r"^\S+ ", "", line) for line in _read().splitlines()]
        partial = file.with_suffix(".part")
        partial.write_text("\n".join(verses), encoding="utf-8")
        partial.replace(file)
    return file.read_text(encoding="utf-8").splitlines()


def _read() -> str:
    with tempfile.TemporaryDirectory() as scratch:
        _run(["apt-get", "download", "-q", *PACKAGES], scratch)
        for package in Path(scratch).glob("*.deb"):
            _run(["dpkg-deb", "-x", str(package), scratch], scratch)
        reader = f"{scratch}/usr/bin/bible"
        return _run([reader, "-f", "-p", f"{scratch}/usr/lib", ALL_VERSES], scratch)


def _run(command: list[str], folder: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["there was no reason given"])[-1]
        raise RuntimeError(
            f"the King James text could not be had, `{Path(command[0]).name}` failed: {reason}. "
            "Give a text of your own, --data notes.txt"
        )
    return done.stdout
