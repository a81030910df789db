"""Whatever is done to a file of ours, it is read or refused by name: soon, in little room."""

import resource
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader import Loader
from loaders import loaders

LOADERS = loaders()
DAMAGED = Path(__file__).parent / "damaged"
SECONDS, MEBIBYTES = 1.0, 256
REFUSALS = (ValueError, TypeError, OSError)


def read(loader: Loader, content: bytes) -> bool:
    """Whether it was refused; anything but a refusal by name is an error here."""
    refused, seconds = tried(loader, content)
    if seconds >= SECONDS:  # The first one may import.
        refused, seconds = tried(loader, content)
    assert seconds < SECONDS
    return refused


def tried(loader: Loader, content: bytes) -> tuple[bool, float]:
    """Whether it was refused, and seconds of the processor."""
    with tempfile.TemporaryDirectory() as place:
        start = time.process_time()
        try:
            loader.read(content, Path(place))
            refused = False
        except REFUSALS as error:
            assert loader.explained(str(error), place), error
            refused = True
        return refused, time.process_time() - start


@pytest.fixture(scope="module", params=sorted(LOADERS))
def sound(request, tmp_path_factory) -> tuple[Loader, list[bytes]]:
    loader = LOADERS[request.param]
    return loader, loader.seeds(tmp_path_factory.mktemp("seeds"))


def test_damage_is_harmless_or_refused_by_name(sound):
    loader, contents = sound
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=30)
    @given(st.sampled_from(contents), st.randoms(use_true_random=False))
    def damaged(content, draw):
        read(loader, loader.damaged(content, draw))

    damaged()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEBIBYTES * 1024


@pytest.mark.parametrize(
    "path", sorted(DAMAGED.glob("*/*")), ids=lambda p: f"{p.parent.name}-{p.name}"
)
def test_what_once_crashed_is_refused(path):
    """Found by `make fuzz`; each was let in, or raised something else than a refusal, before."""
    name = path.parent.name
    refused = read(LOADERS[name], path.read_bytes())
    # What cannot be read is a finding of the doctor's.
    assert refused != name.startswith("doctor")
