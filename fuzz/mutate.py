"""Small damage to what was sound: to its bytes, its lines, its JSON, its tensors and arrays."""

import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-38, 1e38, 1e308,
    float("nan"), float("inf"), "", " ", "x", "x" * 2000, "0", "\u2028</script>", "\ud800", "\x00",
    "../../escape", "/dev/zero", "__class__", [], {}, [[]], [1, 2], [[1, 2], [3]], {"": {}},
)  # fmt: skip
"""What stands in JSON where something else is expected."""
DEEP = "<deep>"
"""Stands for lists in lists, more than Python walks through."""
NUMBERS = (0.0, -0.0, 1e-45, 1e-38, 1.0, 3e38, float("nan"), float("inf"), -float("inf"))
TYPES = ("F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "X")
DESCRIPTIONS = (
    b"'<f4'", b"'>f4'", b"'<f8'", b"'<i2'", b"'|O'", b"'|V4'", b"'<U9'", b"'|b1'", b"'<M8[D]'",
    b"[('a', '<f4')]", b"('<f4', (2,))", b"''", b"None", b"'" + b"x" * 2000 + b"'",
)  # fmt: skip
"""What the header of a NumPy file may claim for a type."""
SHAPES = (
    b"()", b"(0,)", b"(1,)", b"(2, 2)", b"(-1,)", b"(2**9,)", b"(99999999999999999999,)",
    b"(True,)", b"(1.0,)", b"(None,)", b"((1,),)", b"[2]", b"(" * 500 + b")" * 500,
)  # fmt: skip

Mutation = Callable[[bytes, random.Random], bytes]


def of_bytes(content: bytes, draw: random.Random) -> bytes:
    """A flip, a cut, a doubled or overwritten piece."""
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at, other = draw.randrange(len(damaged) + 1), draw.randrange(len(damaged) + 1)
        size = draw.choice((1, 1, 2, 4, 8, 64))
        way = draw.randrange(5)
        if way == 0 and at < len(damaged):
            damaged[at] ^= 1 << draw.randrange(8)
        elif way == 1:
            del damaged[at : at + size]
        elif way == 2:
            damaged[at:at] = damaged[other : other + size]
        elif way == 3:
            damaged[at : at + size] = draw.choice((b"\x00", b"\xff", b'"', b"{", b"9")) * size
        else:
            del damaged[at:]
    return bytes(damaged)


def of_lines(content: bytes, draw: random.Random) -> bytes:
    """A line left out, doubled, moved, or damaged in itself."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return of_bytes(content, draw)
    at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    way = draw.randrange(4)
    if way == 0:
        del lines[at]
    elif way == 1:
        lines.insert(other, lines[at])
    elif way == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        part = of_json if lines[at].lstrip().startswith(b"{") else of_bytes
        lines[at] = part(lines[at], draw).rstrip(b"\n") + b"\n"
    return b"".join(lines)


def of_json(content: bytes, draw: random.Random) -> bytes:
    """Another value, key or depth somewhere; bytes, where it is no JSON."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return of_bytes(content, draw)
    if draw.random() < 0.05:
        return of_bytes(content, draw)
    return written(changed(value, draw), draw)


def changed(value: Any, draw: random.Random) -> Any:
    """`value` with one place of it changed."""
    places = _places(value)
    if not places:
        return strange(draw)
    holder, key = draw.choice(places)
    way = draw.randrange(6)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[draw.choice(("", "x", "__class__", "kind", "../x"))] = holder.pop(key)
    elif way == 2 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif way == 3:
        other, name = draw.choice(places)
        # By way of text: a value that holds itself is none.
        holder[key] = json.loads(json.dumps(other[name])) if name in _keys(other) else None
    else:
        holder[key] = strange(draw)
    return value


def strange(draw: random.Random) -> Any:
    return DEEP if draw.random() < 0.02 else draw.choice(STRANGE)


def written(value: Any, draw: random.Random) -> bytes:
    levels = draw.choice((50, 120, 130, 500, 5000))
    return json.dumps(value).replace(json.dumps(DEEP), "[" * levels + "]" * levels).encode()


def of_tensors(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file with another header, other numbers, or damaged bytes."""
    if len(content) < 8 or draw.random() < 0.1:
        return of_bytes(content, draw)
    (size,) = struct.unpack("<Q", content[:8])
    data = bytearray(content[8 + size :])
    try:
        header = json.loads(content[8 : 8 + size])
    except (ValueError, RecursionError):
        return of_bytes(content, draw)
    way = draw.random()
    if way < 0.3 and len(data) >= 4:
        _change_number(data, draw)
    elif way < 0.7:
        _change_metadata(header, draw)
    else:
        _change_entry(header, draw)
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        # A wrong checksum would hide all else: mostly the file is as from before there were any.
        if draw.random() < 0.9:
            header["__metadata__"].pop("checksum", None)
    text = written(header, draw)
    promised = len(text) if draw.random() < 0.98 else draw.choice((0, 2**31, 2**63, len(text) + 1))
    return struct.pack("<Q", promised) + text + bytes(data)


def of_npy(content: bytes, draw: random.Random) -> bytes:
    """A NumPy file with another header, other numbers, or damaged bytes."""
    end = 10 + int.from_bytes(content[8:10], "little")
    if len(content) < end or draw.random() < 0.15:
        return of_bytes(content, draw)
    text, data = content[10:end], bytearray(content[end:])
    way = draw.randrange(5)
    if way == 0:
        text = re.sub(rb"'descr': '[^']*'", b"'descr': " + draw.choice(DESCRIPTIONS), text)
    elif way == 1:
        text = re.sub(rb"\([^)]*\)", draw.choice(SHAPES), text)
    elif way == 2:
        text = text.replace(b"False", draw.choice((b"True", b"0", b"None")))
    elif way == 3:
        text = of_bytes(text, draw)
    elif len(data) >= 4:
        _change_number(data, draw)
    promised = len(text) if draw.random() < 0.95 else draw.choice((0, 1, 2**16 - 1))
    return content[:8] + struct.pack("<H", min(promised, 2**16 - 1)) + text + bytes(data)


def _change_number(data: bytearray, draw: random.Random) -> None:
    at = 4 * draw.randrange(len(data) // 4)
    data[at : at + 4] = struct.pack("<f", draw.choice(NUMBERS))


def _change_metadata(header: Any, draw: random.Random) -> None:
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not metadata:
        return
    key = draw.choice(sorted(metadata))
    if isinstance(metadata[key], str):
        text = metadata[key].encode("utf-8", "surrogatepass")
        metadata[key] = of_json(text, draw).decode("utf-8", "replace")


def _change_entry(header: Any, draw: random.Random) -> None:
    names = [n for n in header if n != "__metadata__"] if isinstance(header, dict) else []
    if not names:
        return
    name, other = draw.choice(names), draw.choice(names)
    entry, way = header[name], draw.randrange(6)
    if way == 0:
        header[name], header[other] = header[other], header[name]
    elif way == 1:
        header["n" * draw.choice((1, 900, 5000))] = header.pop(name)
    elif way == 2 and isinstance(entry, dict):
        entry["dtype"] = draw.choice(TYPES)
    elif way == 3 and isinstance(entry, dict) and isinstance(entry.get("shape"), list):
        entry["shape"] = entry["shape"][::-1] or [1]
    elif way == 4 and isinstance(entry, dict):
        at = draw.choice((0, 8, 2**40))
        entry["shape"], entry["data_offsets"] = [0, draw.choice((1, 2**31, 2**40))], [at, at]
    else:
        changed(header, draw)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every list or dict in `value`, with each of its keys."""
    found, open_ = [], [value]
    while open_ and len(found) < 2000:
        holder = open_.pop()
        for key in _keys(holder):
            found.append((holder, key))
            open_.append(holder[key])
    return found


def _keys(holder: Any) -> list[Any]:
    if isinstance(holder, dict):
        return list(holder)
    return list(range(len(holder))) if isinstance(holder, list) else []
