"""Fixtures and hypothesis profiles shared by every test."""

import os
from collections.abc import Iterator

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


@pytest.fixture(scope="session", params=backends.available())
def backend(request: pytest.FixtureRequest) -> str:
    """Name of a backend that works here; the test runs once for each of them."""
    return request.param


@pytest.fixture(scope="session", autouse=True)
def one_core_per_worker() -> Iterator[None]:
    """Keep the workers of pytest-xdist out of each other's way; tests of threads ask for theirs."""
    limit = 1 if "PYTEST_XDIST_WORKER" in os.environ else None
    with threadpoolctl.threadpool_limits(limit, user_api="blas"):
        yield
