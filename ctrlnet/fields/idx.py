"""Reader of IDX files, the format that MNIST and its relatives come in."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

__all__ = ["read_idx"]

_GZIP_MAGIC = b"\x1f\x8b"
# Third byte of the header -> element type; all numbers of an IDX file are big-endian.
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """Read one IDX file, gzipped or not.

    The header is two zero bytes, a byte for the element type, a byte for the number of axes and one
    32-bit length per axis; the elements follow in C order. Compression is told by the file's first
    bytes, not by its name.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    numpy.ndarray
        The elements in native byte order, with the shape that the header states.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not IDX, has an unknown element type, or is shorter or longer than its header
        says.

    Notes
    -----
    Source of the format: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten
    digits", section "File formats".
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No IDX file: received the path '{path}', where there is no file. "
            "Give the path of an existing IDX file, gzipped or not."
        )
    content = path.read_bytes()
    if content.startswith(_GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"The gzip stream of '{path}' is truncated or damaged: received {len(content)} compressed "
                f"bytes ({error}). Delete the file and fetch it again."
            ) from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[3] == 0:
        raise ValueError(
            f"'{path}' is not an IDX file: received the first bytes {content[:4].hex(' ') or '(none)'}, "
            "expected 00 00, an element type and a number of axes of at least 1. "
            "Give an IDX file such as train-images-idx3-ubyte."
        )
    if content[2] not in _TYPES:
        raise ValueError(
            f"'{path}' has an unknown element type: received 0x{content[2]:02x}, expected one of "
            f"{', '.join(f'0x{code:02x}' for code in _TYPES)}. Write the file again with one of these types."
        )
    dtype = np.dtype(_TYPES[content[2]])
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(
            f"'{path}' is truncated: received {len(content)} bytes, its header alone has {start}. "
            "Delete the file and fetch it again."
        )
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", content[3], 4))
    count = int(np.prod(shape, dtype=object))
    expected = start + count * dtype.itemsize
    if len(content) != expected:
        fault = "is truncated" if len(content) < expected else "has bytes after its last element"
        raise ValueError(
            f"'{path}' {fault}: received {len(content)} bytes, its header of shape {shape} asks for "
            f"{expected}. Delete the file and fetch it again."
        )
    return np.frombuffer(content, dtype, count, start).reshape(shape).astype(dtype.newbyteorder("="))
