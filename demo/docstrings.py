"""English text that every Python installation carries: the docstrings of the standard library."""

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

CALIBRATION = (
    "argparse ast asyncio base64 bisect calendar code collections configparser contextlib copy "
    "csv dataclasses difflib dis doctest email enum fileinput fractions ftplib functools "
    "getpass gettext glob heapq html http imaplib inspect ipaddress json logging mailbox "
    "mimetypes multiprocessing numbers"
).split()
HELD_OUT = (
    "optparse pathlib pdb pickle platform plistlib poplib pprint queue random re sched "
    "selectors shelve shlex shutil smtplib socket socketserver sqlite3 ssl statistics string "
    "subprocess symtable tarfile tempfile textwrap threading timeit tokenize traceback types "
    "typing unittest urllib uuid wave weakref xml zipfile"
).split()


def paragraphs(modules: Iterable[str], *, words: tuple[int, int] = (8, 100)) -> list[str]:
    """Paragraphs of prose from the docstrings of `modules`, without repeats, in source order.

    Sources are parsed, never imported.  A paragraph with fewer or more words than `words` allows is
    left out, and so is one that is not prose: a doctest, a table, a list of signatures.

    >>> any("heap" in text for text in paragraphs(["heapq"]))
    True
    """
    found: dict[str, None] = {}
    for module in modules:
        for source in _sources(module):
            for docstring in _docstrings(ast.parse(source.read_bytes())):
                for block in re.split(r"\n\s*\n", docstring):
                    text = " ".join(block.split())
                    if words[0] <= len(text.split()) <= words[1] and _is_prose(text):
                        found.setdefault(text)
    return list(found)


def spread(texts: list[str], count: int) -> list[str]:
    """`count` of `texts`, evenly spaced, so that every module keeps its share."""
    if count >= len(texts):
        return texts
    return [texts[i * len(texts) // count] for i in range(count)]


def _sources(module: str) -> list[Path]:
    """Source files of a module or of a whole package, its tests left out; none if it is missing."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # modules come and go with Python versions
        return []
    origin = Path(spec.origin)
    if origin.name != "__init__.py":
        return [origin] if origin.suffix == ".py" else []
    return [path for path in sorted(origin.parent.rglob("*.py")) if "test" not in path.parts]


def _docstrings(tree: ast.Module) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (docstring := ast.get_docstring(node, clean=False)):
            yield inspect.cleandoc(docstring)


def _is_prose(text: str) -> bool:
    plain = sum(c.isalpha() or c.isspace() for c in text)
    return ">>>" not in text and plain > 0.88 * len(text)
