"""Fashion-MNIST: 60 000 and 10 000 grey images of clothes (Xiao, Rasul and Vollgraf, 2017)."""

import io
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from rankwise.recipes.packages import Package, archive_of, cache_folder

FASHION = Package(
    "dataset-fashion-mnist",
    "0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    kind="debian",
)
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat",
           "sandal", "shirt", "sneaker", "bag", "ankle boot")  # fmt: skip


def fashion_mnist_folder() -> Path:
    """A folder with the four idx files: that of the installed package, else one in the cache.

    Raises RuntimeError where the package cannot be fetched; that takes `apt-get` and `dpkg-deb`.
    """
    target = cache_folder() / "data" / f"fashion-mnist-{FASHION.sha256[:8]}"
    for folder in (INSTALLED, target):
        if folder.is_dir():
            return folder
    unpack = ["dpkg-deb", "--fsys-tarfile", str(archive_of(FASHION))]
    try:
        content = subprocess.run(unpack, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"{unpack[-1]} could not be unpacked by dpkg-deb: {error}") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive.getmembers():
                path = PurePosixPath(member.name)
                if member.isfile() and path.parent.name == INSTALLED.name:
                    file = archive.extractfile(member)
                    assert file is not None
                    (Path(scratch) / path.name).write_bytes(file.read())
        kept = shutil.copytree(scratch, f"{target}.part", dirs_exist_ok=True)
        Path(kept).replace(target)
    return target
