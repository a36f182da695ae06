"""Files that appear whole or not at all, and what can be said of one before it is read."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "config.json"
PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor is, and how big."""

    file: Path
    shape: tuple[int, ...]
    bytes: int


def write_atomically(path: Path, content: bytes) -> None:
    """Write `path` so that it holds either what it did before or all of `content`."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Give a folder to write into, which becomes `path` at the end, or nothing does."""
    with _out_dir_errors(path):
        _refuse(path, overwrite)
        partial = _partial(path)
        try:
            yield partial
            old = None
            if path.exists():
                old = partial.with_suffix(".old")
                os.rename(path, old)
            try:
                os.rename(partial, path)
            except OSError:
                if old is not None:
                    os.rename(old, path)
                raise
            if old is not None:
                shutil.rmtree(old)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_out_dir(out_dir: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Find out early what :func:`save` would find out at the end.

    Raises
    ------
    OSError
        If `out_dir` exists and is not to be overwritten, or cannot be written.
    """
    with _out_dir_errors(Path(out_dir)):
        _refuse(Path(out_dir), overwrite)
        _partial(Path(out_dir)).rmdir()


def _refuse(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"out_dir {path} is a file")
    if any(path.iterdir()):
        if not overwrite:
            raise FileExistsError(f"out_dir {path} is not empty; see overwrite")
        if not (path / CONFIG).exists():  # so that a mistyped path loses nothing
            raise FileExistsError(f"out_dir {path} is not a checkpoint; it is not overwritten")


def _partial(path: Path) -> Path:
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{os.getpid()}{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return partial


@contextmanager
def _out_dir_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:  # ours already says it all
            raise
        raise type(error)(
            f"out_dir {path} cannot be written: {error.strerror}: {error.filename!r}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; the error for anything else names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__}")
    except ValueError as error:  # also what is not UTF-8
        raise ValueError(f"{path} is damaged: {error}") from error
    return content


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Read the names, shapes and places of all tensors, and check that the file holds them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path} is truncated: {size} bytes do not hold its header")
        header = file.read(length)
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", {})
        places = {key: entry["data_offsets"] for key, entry in entries.items()}
        for key, (_, end) in places.items():
            if end > size - 8 - length:
                raise ValueError(f"it is truncated inside tensor {key!r}")
        tensors = {
            key: Stored(path, tuple(entry["shape"]), places[key][1] - places[key][0])
            for key, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return tensors, metadata
