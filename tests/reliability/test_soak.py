"""A steady load with jobs: nothing fails, and no descriptor stays open. The long form is reports/service-soak."""

from __future__ import annotations

import json

from soak import soak


def test_half_a_minute_of_load_fails_nowhere_and_leaves_no_descriptor_open(tmp_path):
    report = soak(tmp_path, minutes=0.4, warm_up=0.1, fill=500)
    assert report.rate > 20  # a tenth of what is asked: a busy machine is no failure
    assert report.wrong() == []
    assert report.met("server_fds"), report.growth("server_fds")
    assert report.met("worker_fds"), report.growth("worker_fds")
    assert json.loads(json.dumps(report.as_dict()))["jobs"] == report.jobs
