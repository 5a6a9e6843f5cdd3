import json
import os

import pytest

from infnet.errors import TrainingError
from infnet.serving import profile as module
from infnet.serving.profile import profile_bundle, profile_table


def test_every_size_is_measured_with_every_number_of_threads(bundle):
    rows = profile_bundle(bundle.path, candidates=(9, 2), threads=(1, 2))
    assert [(row.threads, row.candidates) for row in rows] == [(1, 2), (1, 9), (2, 2), (2, 9)]
    for row in rows:
        assert 0 < row.p50_ms <= row.p99_ms
        assert row.requests_per_s == pytest.approx(1000 / row.p50_ms, rel=0.9)
        assert row.peak_mb is None or row.peak_mb > 50
        assert row.backend == bundle.manifest.backend
    keys = {"candidates", "threads", "p50_ms", "p99_ms", "requests_per_s", "peak_mb", "backend"}
    assert json.loads(rows[0].model_dump_json()).keys() == keys
    assert profile_table("title", rows).row_count == 4


def die(*_):
    os._exit(1)


def test_a_process_that_was_ended_is_one_line(bundle, monkeypatch):
    monkeypatch.setattr(module, "_measure", die)
    with pytest.raises(TrainingError, match="the process that measured it was ended; ask for fewer candidates"):
        profile_bundle(bundle.path, candidates=(2,), threads=(1,))
