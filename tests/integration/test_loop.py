"""The whole loop: served, logged, joined, learnt from, published, served; with traffic on, whatever is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infnet.export.bundle import MANIFEST, FileRecord, sha256_of
from infnet.schema import load_spec
from infnet.serving.label_join import join_labels
from infnet.serving.publication import ModelDirectory
from infnet.serving.samples import read_samples
from served import PATIENT, served
from traffic import Traffic

WINDOW_S = 1.0
STAGES = ["reading samples", "learning", "judging", "exporting", "publishing"]
KILLED = Path(__file__).parents[1] / "killed_follower.py"


@pytest.fixture
def live(bundle, tmp_path):
    """A directory of versions, the first of which has windows of a second."""
    path = tmp_path / "first"
    shutil.copytree(bundle.path, path)
    spec = path / "spec.yaml"
    declared = load_spec(spec)
    tasks = [task.model_copy(update={"window_s": WINDOW_S}) for task in declared.tasks]
    spec.write_text(declared.model_copy(update={"tasks": tasks}).model_dump_json())
    record = FileRecord(size=spec.stat().st_size, sha256=sha256_of(spec))
    manifest = bundle.manifest.model_copy(update={"files": bundle.manifest.files | {"spec.yaml": record}})
    (path / MANIFEST).write_text(manifest.model_dump_json())
    directory = ModelDirectory(tmp_path / "live")
    directory.publish(path)
    return directory


def test_a_loop_that_is_killed_in_every_stage_still_learns_from_every_impression_once(bundle, live, tmp_path):
    events, samples = tmp_path / "service" / "events", tmp_path / "samples"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = live.publication().version
    with served(live.path, tmp_path / "service", *PATIENT) as service:
        with Traffic(service, bundle) as traffic:
            for stage in STAGES:
                command = [sys.executable, str(KILLED), *map(str, (live.path, events, samples, live.path)), stage]
                killed = subprocess.run(command, env=environment, check=False, capture_output=True, timeout=120)
                assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
                assert live.publication().version == first
            command = [
                *(sys.executable, "-m", "infnet", "update", str(live.path), "--events", str(events)),
                *("--samples", str(samples), "--to", str(live.path), "--follow", "--every", "0.2"),
                *("--min-samples", "50", "--unsure", "accept", "--json"),
            ]
            with (tmp_path / "rounds").open("w") as rounds:
                loop = subprocess.Popen(command, stdout=rounds, env=environment)
                try:
                    told = time.monotonic()
                    Traffic.wait_until(lambda: traffic.answers[-1].version != first, within_s=120)
                    print(f"served after {time.monotonic() - told:.1f} s")
                finally:
                    loop.terminate()
                    assert loop.wait(60) == 0
            traffic.wait_for(10)
        served_version = service.client.get("/v1/model").json()["version"]
        assert served_version == live.publication().version != first
        assert set(traffic.statuses()) == {200}
        assert traffic.unanswered == 0
        logged = {record["request_id"] for record in service.records("served") if record["items"]}
    outcomes = [json.loads(line)["outcome"] for line in (tmp_path / "rounds").read_text().splitlines()]
    assert "published" in outcomes
    assert "failed" not in outcomes

    spec = load_spec(live.bundle_path(served_version) / "spec.yaml")
    join_labels(events, samples, spec, now_ms=time.time_ns() // 1_000_000 + 60_000)
    found, _ = read_samples(samples)
    said = [event.split("/") for event in traffic.acknowledged]
    wanted = sorted((page, item) for page, item, kind in said if kind == "impression" and page in logged)
    assert sorted(found.select("request_id", "item_id").iter_rows()) == wanted
    clicked = {(page, item) for page, item, kind in said if kind == "click"}
    positive = found.filter(found["label_click"] > 0).select("request_id", "item_id").iter_rows()
    assert set(positive) == clicked & set(wanted)
