"""Archives of arrays that nobody meant to write: each says or holds something that numpy.savez never would."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Arrays = dict[str, Any]


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), version=(1, 0))
    return stream.getvalue()


def headed(descr: str, shape: Any, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """An array whose header says what it likes."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def packed(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()


def patched(data: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    """Change what the first entry of a directory says."""
    at = data.index(mark) + offset
    return data[:at] + value + data[at + len(value) :]


def hostile(good: Arrays, name: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield what is wrong with an archive of `good` arrays, mostly with the one called `name`, and how to make it."""
    files = {f"{key}.npy": npy(value) for key, value in good.items()}
    file, plain = f"{name}.npy", files[f"{name}.npy"]
    size = len(plain)

    def with_(data: bytes, **more: bytes) -> Callable[[], bytes]:
        return lambda: packed([*(files | {file: data} | more).items()])

    whole = packed([*files.items()])
    first = packed([(file, plain), *((k, v) for k, v in files.items() if k != file)])
    yield "nothing", lambda: b""
    yield "text", lambda: b"inputs,labels\n"
    yield "one array", lambda: plain
    yield "cut", lambda: whole[:-40]
    yield "cut in the middle", lambda: whole[: len(whole) // 2]
    yield "an array too few", lambda: packed([(k, v) for k, v in files.items() if k != file])
    yield "an array that is none", with_(b"not an array")
    yield "an empty array file", with_(b"")
    yield "a header that is cut", with_(plain[:20])
    yield "data that are cut", with_(plain[:-1])
    yield "data too many", with_(plain + b"\0")
    yield "version 2", with_(plain[:6] + b"\x02\x00" + plain[8:])
    yield "version 9", with_(plain[:6] + b"\x09\x00" + plain[8:])
    yield "a large shape", with_(headed("'<f8'", "(1000000000000,)"))
    yield "a shape that overflows", with_(headed("'<f8'", "(4294967296, 4294967296, 4294967296)"))
    yield "a negative shape", with_(headed("'<f8'", "(-1,)", bytes(8)))
    yield "a large word", with_(headed("'<U1000000000'", "()"))
    yield "no bytes in a number", with_(headed("'<U0'", "(1000000000000,)"))
    yield "a header that is code", with_(headed("__import__('os').getcwd()", "()"))
    yield "a deep header", with_(headed("'<f8'", "(" * 5000 + ")" * 5000))
    yield "objects", with_(headed("'|O'", "(1,)", b"\x80\x04K\x01."))
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"method {method}", lambda method=method: packed([*files.items()], method)
    central, local = b"PK\x01\x02", b"PK\x03\x04"
    yield "an unknown method", lambda: patched(patched(first, central, 10, b"\x63\0"), local, 8, b"\x63\0")
    yield "a cipher", lambda: patched(patched(first, central, 8, b"\1\0"), local, 6, b"\1\0")
    yield "a size too small", lambda: patched(first, central, 24, struct.pack("<L", size - 8))
    yield "a size too large", lambda: patched(first, central, 24, struct.pack("<L", size + 8))
    yield "a size of 4 GB", lambda: patched(first, central, 24, struct.pack("<L", 2**32 - 2))
    yield "another checksum", lambda: patched(first, central, 16, b"\1\2\3\4")
    yield "another name", lambda: first.replace(file.encode(), b"?" * len(file), 1)
    yield "a place outside the file", lambda: patched(first, central, 42, struct.pack("<L", 2**31))
    yield "many members", lambda: packed([*files.items(), *((f"{k}.npy", b"") for k in range(2000))])
    longer = packed([(file, plain + bytes(2**26)), *((k, v) for k, v in files.items() if k != file)])
    yield "data that unpack to more than they say", lambda: patched(longer, central, 24, struct.pack("<L", size))


def twice(good: Arrays, name: str) -> bytes:
    """An archive with two arrays of one name."""
    stream, file = io.BytesIO(), f"{name}.npy"
    with zipfile.ZipFile(stream, "w") as archive:
        for key, value in good.items():
            archive.writestr(f"{key}.npy", npy(value))
        info = zipfile.ZipInfo(file)
        archive.NameToInfo.clear()  # else it warns
        archive.writestr(info, npy(good[name]))
    return stream.getvalue()
