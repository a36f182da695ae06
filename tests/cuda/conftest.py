"""An emulated GPU for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.cuda import emulated


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[emulated.Gpu]:
    """Emulate a GPU; arrays get there by ``gpu.put``."""
    with monkeypatch.context() as patch:
        yield emulated.install(patch)
    emulated.forget()
