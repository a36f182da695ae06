"""State on disk: NumPy archives (.npz) that appear whole or not at all."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def save(path: str | os.PathLike[str], fields: Mapping[str, Any]) -> None:
    """Write arrays and numbers to `path`; what was there stays until all of it is written."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            np.savez(file, **fields)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def load(path: str | os.PathLike[str], origin: str) -> Iterator[Mapping[str, Any]]:
    """Open what :func:`save` wrote for `origin`; read and judge all fields inside the block.

    Raises
    ------
    ValueError
        If anything goes wrong there: the file is damaged, or something else.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as fields:
            yield fields
    except (OSError, MemoryError):
        raise
    except Exception as error:  # zipfile, struct, NumPy: each has its own for a damaged file
        raise ValueError(f"path must be a whole file of {origin}, got {path}: {error}") from error
