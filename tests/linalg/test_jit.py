"""The cache of compiled kernels."""

import threading

import numpy as np

from quadric.linalg.numba.jit import _locked, compiled


def test_one_writer_at_a_time(tmp_path):
    """Whoever comes second waits until the first has written."""
    entered = threading.Event()

    def second() -> None:
        with _locked(str(tmp_path), "index"):
            entered.set()

    with _locked(str(tmp_path), "index"):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
    thread.join()
    assert entered.is_set()


def test_a_folder_that_cannot_be_written(tmp_path):
    with _locked(str(tmp_path / "missing"), "index"):
        pass


def test_versions_of_a_kernel():
    @compiled
    def double(x):
        return x + x

    assert double(np.float32(3)) == 6
    assert double(1.5) == 3
