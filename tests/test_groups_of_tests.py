"""Tests that share what is slow to make are in one worker."""

import os

import pytest


@pytest.mark.xdist_group("test_groups_of_tests")
def test_a_group_of_tests_stays_in_one_worker(request: pytest.FixtureRequest) -> None:
    """Workers tell the scheduler a test's group by its name: a release of pytest or xdist may lose it silently."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("there is one worker only")
    assert request.node.nodeid.endswith("@test_groups_of_tests")
