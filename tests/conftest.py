"""Fixtures and hypothesis profiles shared by every test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import threadpoolctl
from hypothesis import HealthCheck, settings

from quadric import backends

pytest.register_assert_rewrite("tests.refusals", "tests.sweep.witness")

settings.register_profile(
    "quadric",
    deadline=None,  # a backend may compile during an example
    max_examples=int(os.environ.get("QUADRIC_TEST_EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("ci", settings.get_profile("quadric"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "quadric")


# The one backend to test, which then must be there: QUADRIC_TEST_BACKEND=cuda where a GPU must be.
ONLY = os.environ.get("QUADRIC_TEST_BACKEND")
if ONLY and (reason := backends.why_missing(ONLY)) is not None:
    raise pytest.UsageError(f"QUADRIC_TEST_BACKEND={ONLY} cannot be used here: {reason}")

ON_GPU = {name.partition(".")[0] for name, row in backends.table() if "cuda" in row.backends}


@pytest.fixture(scope="session", params=[ONLY] if ONLY else backends.available())
def backend(request: pytest.FixtureRequest) -> str:
    """Name of a backend that works here; the test runs once for each of them."""
    return request.param


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of ``cuda`` in families that it does not serve."""
    here = Path(__file__).parent

    def left_out(item: pytest.Item) -> bool:
        asked = getattr(item, "callspec", None) and item.callspec.params.get("backend")
        if asked != "cuda" or not item.path.is_relative_to(here):
            return False
        return item.path.relative_to(here).parts[0] not in {*ON_GPU, "cuda"}

    gone = [item for item in items if left_out(item)]
    if gone:
        config.hook.pytest_deselected(items=gone)
        items[:] = [item for item in items if not left_out(item)]


@pytest.fixture(scope="session", autouse=True)
def one_core_per_worker() -> Iterator[None]:
    """Keep the workers of pytest-xdist out of each other's way; tests of threads ask for theirs."""
    limit = 1 if "PYTEST_XDIST_WORKER" in os.environ else None
    with threadpoolctl.threadpool_limits(limit, user_api="blas"):
        yield
