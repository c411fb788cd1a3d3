"""kill -9 of workers and their children at random moments: nothing acknowledged is lost, and no byte differs."""

from __future__ import annotations

import os

import pytest
from databases import DATABASES, new_url
from kill_loop import LEASE_SECONDS, kill_loop

LONG = bool(os.environ.get("ALPHALLOC_TEST_RELIABILITY"))


@pytest.mark.parametrize("kind", DATABASES)
@pytest.mark.parametrize(
    ("kills", "workers"),
    [
        pytest.param(3, 1, marks=pytest.mark.skipif(LONG, reason="the long form is run")),
        pytest.param(100, 1, marks=pytest.mark.skipif(not LONG, reason="run by `make test-reliability`")),
        pytest.param(20, 3, marks=pytest.mark.skipif(not LONG, reason="run by `make test-reliability`")),
    ],
)
def test_nothing_acknowledged_is_lost(kind, kills, workers, tmp_path):
    report = kill_loop(new_url(kind, tmp_path), tmp_path, kills, workers=workers)
    assert report.kills_of_workers + report.kills_of_children == kills
    assert report.jobs >= 3
    assert (report.jobs_lost, report.results_differing) == (0, 0), report
    assert report.spectra_seen > 0
    assert report.spectra_lost == 0, report
    assert report.orphans == 0, report
    assert report.wrong_in_database == []
    assert len(report.recovery_seconds) >= 1
    # The promise, with room for the machine: another worker starts (a second or two here) and may be busy with a job.
    assert max(report.recovery_seconds) <= LEASE_SECONDS + 60, report
