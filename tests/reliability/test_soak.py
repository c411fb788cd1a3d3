"""A steady load with jobs: nothing fails, and no descriptor stays open. The long form is reports/service-soak."""

from __future__ import annotations

from soak import soak


def test_a_minute_of_load_fails_nowhere_and_leaves_no_descriptor_open(tmp_path):
    report = soak(tmp_path, minutes=0.8, warm_up=0.2, fill=500)
    assert len(report.latencies) > 1000  # a tenth of what is asked: a busy machine is no failure
    assert report.failed == {}
    assert report.errors == []
    assert set(report.jobs) == {"succeeded"}
    assert (report.exit_code, report.tracebacks) == (0, 0)
    assert report.met("server_fds"), report.growth("server_fds")
    assert report.met("worker_fds"), report.growth("worker_fds")
