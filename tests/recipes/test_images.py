"""Images from files: the same numbers from every form, and errors that name file and fault."""

import gzip
import io
import subprocess

import pytest
import torch

from image_files import SIZE, idx_bytes, squares, write_idx
from rankwise.recipes import fashion_mnist, packages
from rankwise.recipes.fashion_mnist import fashion_mnist_folder
from rankwise.recipes.idx import read_idx
from rankwise.recipes.images import read_images, rows_at
from rankwise.recipes.packages import Package, archive_of


def test_idx_files_are_read_plain_and_gzipped_alike(tmp_path):
    plain = read_images(str(write_idx(tmp_path / "plain")))
    zipped = read_images(str(write_idx(tmp_path / "zipped", zipped=True)))
    assert plain.train.shape == (60, 1, SIZE, SIZE) and plain.classes == ("0", "1", "2")
    for one, other in zip(plain[:4], zipped[:4], strict=True):
        assert torch.equal(one, other)


def test_images_have_mean_zero_and_deviation_one_of_the_training_part(tmp_path):
    data = read_images(str(write_idx(tmp_path)))
    assert abs(float(data.train.mean())) < 1e-6
    assert float(data.train.std()) == pytest.approx(1.0, abs=1e-5)
    raw, test = squares(60, 0)[0].float() / 255, squares(60, 1)[0].float() / 255
    torch.testing.assert_close(data.test[:, 0], (test - raw.mean()) / raw.std())


def test_an_idx_array_comes_back():
    values = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    assert torch.equal(read_idx(io.BytesIO(idx_bytes(values)), "name"), values)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "name: not an idx file of unsigned bytes"),
        (b"\x89PNG and more", "not an idx file"),
        (bytes([0, 0, 0x0D, 1, 0, 0, 0, 0]), "not an idx file of unsigned bytes"),
        (idx_bytes(torch.zeros(3, 4, 4, dtype=torch.uint8))[:-1], "47 values, but .* says 3x4x4"),
    ],
)
def test_a_file_that_is_no_idx_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        read_idx(io.BytesIO(content), "name")


def test_a_folder_says_which_file_is_missing(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="has no t10k-labels-idx1-ubyte or t10k-.*.gz"):
        read_images(str(tmp_path))


def test_images_and_labels_must_be_as_many(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(squares(59, 0)[1]))
    with pytest.raises(ValueError, match=r"images \(60, 12, 12\) and labels \(59,\)"):
        read_images(str(tmp_path))


def test_a_broken_gzip_file_is_named(tmp_path):
    write_idx(tmp_path, zipped=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.gz: Not a gzipped file"):
        read_images(str(tmp_path))


def test_a_folder_with_neither_form_and_a_path_that_is_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="neither idx files .* nor the folders"):
        read_images(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder, and none of the built-in fashion-"):
        read_images("fashion-mist")


def write_pictures(folder, part: str, mode: str, rows: int = 6) -> None:
    image = pytest.importorskip("PIL.Image")
    for i, (pixels, label) in enumerate(zip(*squares(rows, 0), strict=True)):
        path = folder / part / f"class-{label}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = image.frombytes("L", (SIZE, SIZE), bytes(pixels.flatten().tolist()))
        grey.convert(mode).save(path)


@pytest.mark.parametrize("mode, channels", [("L", 1), ("RGB", 3)])
def test_pictures_in_folders_of_classes_are_read(tmp_path, mode, channels):
    for part in ("train", "test"):
        write_pictures(tmp_path, part, mode)
    data = read_images(str(tmp_path))
    assert data.classes == ("class-0", "class-1", "class-2")
    assert data.train.shape == (6, channels, SIZE, SIZE)
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    raw = squares(6, 0)[0][[0, 3, 1, 4, 2, 5]].float() / 255
    torch.testing.assert_close(data.train[:, 0], (raw - raw.mean()) / raw.std())


def test_a_picture_of_another_size_is_named(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "test"):
        write_pictures(tmp_path, part, "L")
    image.new("L", (5, 7)).save(tmp_path / "test" / "class-1" / "odd.png")
    with pytest.raises(ValueError, match="odd.png is 5x7, the first picture is 12x12"):
        read_images(str(tmp_path))


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own():
    epochs = [
        [i for step in range(5 * e, 5 * e + 5) for i in
         rows_at(step, count=43, batch_size=8, seed=3).tolist()]
        for e in range(2)
    ]  # fmt: skip
    assert all(len(set(epoch)) == 40 for epoch in epochs) and epochs[0] != epochs[1]
    assert rows_at(3, count=43, batch_size=8, seed=4).tolist() != epochs[0][24:32]
    assert rows_at(3, count=43, batch_size=8, seed=3).tolist() == epochs[0][24:32]


def test_a_package_of_debian_without_apt_names_other_data(monkeypatch, tmp_path):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="no command `apt-get` here: take --data mnist, or a fo"):
        archive_of(Package("thing", "1.0", "0" * 64, kind="debian"))


def test_a_package_that_apt_does_not_know_says_what_may_help(monkeypatch, tmp_path):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    monkeypatch.setattr(packages, "_command", lambda package, folder: ["false"])
    with pytest.raises(RuntimeError, match="could not be downloaded: .* `apt-get update` as root"):
        archive_of(Package("thing", "1.0", "0" * 64, kind="debian"))


def test_the_installed_package_comes_first(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "INSTALLED", write_idx(tmp_path / "fashion-mnist"))
    monkeypatch.setattr(fashion_mnist, "archive_of", None)
    assert read_images("fashion-mnist").classes[8:] == ("bag", "ankle boot")


def test_an_archive_is_unpacked_once_into_the_cache(monkeypatch, tmp_path):
    content = write_idx(tmp_path / "usr/share/datasets/fashion-mnist", zipped=True)
    packed = subprocess.run(
        ["tar", "-cf", "-", "-C", str(tmp_path), "usr"], capture_output=True, check=True
    )
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "none" / "fashion-mnist")
    monkeypatch.setattr(fashion_mnist, "archive_of", lambda package: tmp_path / "a.deb")
    monkeypatch.setattr(fashion_mnist.subprocess, "run", lambda *_, **__: packed)
    folder = fashion_mnist_folder()
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in content.iterdir())
    monkeypatch.setattr(fashion_mnist.subprocess, "run", None)
    assert fashion_mnist_folder() == folder


def test_fashion_mnist_is_whole():
    try:
        data = read_images("fashion-mnist")
    except RuntimeError as error:
        pytest.skip(f"the data could not be fetched: {error}")
    assert data.train.shape == (60_000, 1, 28, 28) and data.test.shape == (10_000, 1, 28, 28)
    assert data.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert data.test_labels.bincount().tolist() == [1000] * 10


def test_gzip_is_read_by_the_ending_of_the_name(tmp_path):
    """A plain file wins over a gzipped one of the same name."""
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"other"))
    assert len(read_images(str(tmp_path)).labels) == 60
