import json
import os
import subprocess
import sys
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from infnet.serving.metrics import CONTENT_TYPE_LATEST, ServiceMetrics
from service_parts import count, holder_of, replaced


def test_everything_that_is_counted_is_there_for_prometheus_to_read():
    text = ServiceMetrics().exposition().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    own = {name for name in families if name.startswith("infnet_")}
    assert own >= {
        *("infnet_requests", "infnet_request_seconds", "infnet_stage_seconds", "infnet_degraded", "infnet_candidates"),
        *("infnet_queued_requests", "infnet_unknown", "infnet_events", "infnet_expected", "infnet_observed"),
        *("infnet_feature_store_behind", "infnet_event_log_failures", "infnet_model_swaps", "infnet_model_info"),
    }
    assert all(families[name].documentation for name in own)
    assert "process_resident_memory_bytes" in families
    assert CONTENT_TYPE_LATEST.startswith("text/plain")


def test_an_answer_is_counted_and_timed_from_its_arrival():
    metrics = ServiceMetrics()
    metrics.answered("/v1/rank", 200, time.perf_counter() - 0.04)
    metrics.answered("/v1/rank", 422, time.perf_counter())
    assert count(metrics, "infnet_requests_total", endpoint="/v1/rank", code="200") == 1
    assert count(metrics, "infnet_requests_total", endpoint="/v1/rank", code="422") == 1
    assert count(metrics, "infnet_request_seconds_sum", endpoint="/v1/rank") == pytest.approx(0.04, abs=0.02)
    assert count(metrics, "infnet_request_seconds_bucket", le="0.03") == 1
    assert count(metrics, "infnet_request_seconds_bucket", le="+Inf") == 2


def test_the_stages_of_a_request_are_timed_each():
    metrics = ServiceMetrics()
    metrics.stages({"queue": 0.25, "model": 0.5})
    metrics.stages({"queue": 0.25})
    assert count(metrics, "infnet_stage_seconds_sum", stage="queue") == 0.5
    assert count(metrics, "infnet_stage_seconds_count", stage="queue") == 2
    assert count(metrics, "infnet_stage_seconds_count", stage="model") == 1


def test_one_version_is_shown_as_served_the_live_one(bundle):
    metrics, live = ServiceMetrics(), holder_of(bundle).live
    metrics.serving(live)
    assert count(metrics, "infnet_model_info", version=live.version, model="infnet") == 1
    assert count(metrics, "infnet_model_loaded_timestamp_seconds") == live.loaded_ms / 1000
    assert count(metrics, "infnet_model_trained_to_timestamp_seconds") == bundle.manifest.trained_to_ms / 1000
    metrics.serving(replaced(holder_of(bundle), version="abcd", loaded_ms=5000).live)
    assert count(metrics, "infnet_model_info") == count(metrics, "infnet_model_info", version="abcd") == 1
    assert count(metrics, "infnet_model_loaded_timestamp_seconds") == 5
    metrics.serving(live)
    assert count(metrics, "infnet_model_info") == count(metrics, "infnet_model_info", version=live.version) == 1


def test_services_in_one_process_count_apart():
    one, other = ServiceMetrics(), ServiceMetrics()
    one.degraded.labels("capped_candidates").inc()
    assert count(one, "infnet_degraded_total") == 1
    assert count(other, "infnet_degraded_total") == 0


TWO_PROCESSES = """
import json, os, sys
from types import SimpleNamespace as Some
from infnet.serving.metrics import ServiceMetrics

def model(version):
    manifest = Some(model="infnet", trained_to_ms=1000)
    return Some(version=version, loaded_ms=2000, ranker=Some(bundle=Some(manifest=manifest)))

def work(requests, behind, queued):
    metrics = ServiceMetrics()
    metrics.serving(model("aaaa"))
    metrics.serving(model("bbbb"))
    for _ in range(requests):
        metrics.answered("/v1/rank", 200, 0.0)
    metrics.store_behind.set(behind)
    metrics.queued.set(queued)
    return metrics

pipe = os.pipe()
child = os.fork()
if not child:
    work(3, 1, 5)
    os.write(pipe[1], b"done")
    os.read(pipe[0], 0)
    import time; time.sleep(0.5)
    os._exit(0)
os.read(pipe[0], 4)
print(json.dumps(work(4, 0, 2).exposition().decode()))
os.waitpid(child, 0)
"""


def test_the_processes_of_a_service_add_to_the_same(tmp_path):
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", TWO_PROCESSES], env=environment, capture_output=True, check=True)
    text = json.loads(done.stdout)
    assert count(text, "infnet_requests_total", endpoint="/v1/rank", code="200") == 7
    assert count(text, "infnet_queued_requests") == 7
    assert count(text, "infnet_feature_store_behind") == 1  # one of them is
    assert count(text, "infnet_model_info") == count(text, "infnet_model_info", version="bbbb") == 1
