"""Tables, texts and pictures."""

import gzip
import io
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from loader import Loader
from mutate import of_bytes, of_lines
from rankwise.recipes import idx
from rankwise.recipes.images import _pixels
from rankwise.recipes.language_files import read_language, read_paragraphs
from rankwise.recipes.tables import read_dataset


def table_seeds(folder: Path) -> list[bytes]:
    return [b'text,label\ngood film,1\n"a ""bad"", long one",0\nfine,1\nno,0\n']


def tab_seeds(folder: Path) -> list[bytes]:
    return [
        content.replace(b"text,label", b"text\tlabel").replace(b",1", b"\t1").replace(b",0", b"\t0")
        for content in table_seeds(folder)
    ]


def _table(name: str) -> Callable[[bytes, Path], object]:
    def read(content: bytes, folder: Path) -> None:
        path = folder / name
        path.write_bytes(content)
        columns = {"text_column": None, "label_column": None, "eval_path": None}
        read_dataset(path, **columns, eval_fraction=0.3, seed=0)

    return read


def jsonl_seeds(folder: Path) -> list[bytes]:
    rows = (b'{"text": "good film", "label": 1}', b'{"text": "bad", "label": 0.0}')
    return [b"\n".join(rows * 3)]


def language_seeds(folder: Path) -> list[bytes]:
    turns = b'[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    forms = (b'{"messages": %b}' % turns, b'{"prompt": "a", "completion": "b"}', b'{"text": "a"}')
    return [b"\n".join([form] * 3) for form in forms]


def read_rows(content: bytes, folder: Path) -> None:
    path = folder / "rows.jsonl"
    path.write_bytes(content)
    read_language(path)


def text_seeds(folder: Path) -> list[bytes]:
    return [b"In the beginning\n\nwas the word,\r\nand more.\n", "\ufeffüber\n".encode()]


def read_text_file(content: bytes, folder: Path) -> None:
    path = folder / "notes.txt"
    path.write_bytes(content)
    read_paragraphs(path)


def idx_seeds(folder: Path) -> list[bytes]:
    images = struct.pack(">HBBIII", 0, 8, 3, 2, 3, 4) + bytes(range(24))
    return [images, struct.pack(">HBBI", 0, 8, 1, 5) + bytes(5)]


def read_plain_idx(content: bytes, folder: Path) -> None:
    idx.read_idx(io.BytesIO(content), "a.idx")


def packed_idx_seeds(folder: Path) -> list[bytes]:
    return [gzip.compress(content, mtime=0) for content in idx_seeds(folder)]


def read_packed_idx(content: bytes, folder: Path) -> None:
    (folder / "name.gz").write_bytes(content)
    idx._read(folder, "name")


def of_gzip(content: bytes, draw: random.Random) -> bytes:
    """Damage inside, or of the archive."""
    try:
        inner = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return of_bytes(content, draw)
    damaged = of_bytes(inner, draw) if draw.random() < 0.7 else inner + bytes(10**5)
    return of_bytes(content, draw) if draw.random() < 0.3 else gzip.compress(damaged, 1, mtime=0)


def picture_seeds(folder: Path) -> list[bytes]:
    from PIL import Image

    found = []
    for form in ("PNG", "JPEG"):
        file = io.BytesIO()
        Image.frombytes("RGB", (4, 3), bytes(range(36))).save(file, form)
        found.append(file.getvalue())
    return found


def read_picture(content: bytes, folder: Path) -> None:
    path = folder / "a.png"
    path.write_bytes(content)
    _pixels(path, None)


LOADERS = (
    Loader("csv", table_seeds, _table("a.csv"), (of_lines,)),
    Loader("tsv", tab_seeds, _table("a.tsv"), (of_lines,)),
    Loader("jsonl", jsonl_seeds, _table("a.jsonl"), (of_lines,)),
    Loader("language", language_seeds, read_rows, (of_lines,)),
    Loader("text", text_seeds, read_text_file, (of_bytes,)),
    Loader("idx", idx_seeds, read_plain_idx, (of_bytes,)),
    Loader("idx-gz", packed_idx_seeds, read_packed_idx, (of_gzip,)),
    Loader("picture", picture_seeds, read_picture, (of_bytes,)),
)
