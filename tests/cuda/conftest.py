"""An emulated GPU for the tests of this folder."""

import sys
from collections.abc import Iterator

import pytest

from tests.cuda import emulated


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[emulated.Gpu]:
    """Emulate a GPU; arrays get there by ``gpu.put``."""
    with monkeypatch.context() as patch:
        yield emulated.install(patch)
    emulated.forget()


@pytest.fixture(autouse=True)
def first_device() -> None:
    """Make the first GPU current: JAX leaves the last one so when it starts."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.set_device(0)
