"""The files for deployment name images, options, ports and metrics that exist."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from infnet.cli import app
from infnet.serving.metrics import ServiceMetrics

DEPLOY = Path(__file__).parents[1] / "deploy"
COMMANDS = get_command(app).commands


def documents():
    return [each for each in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()) if each]


def compose():
    return yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())


def command_lines():
    """Arguments that are given to infnet."""
    for service in compose()["services"].values():
        if service.get("image") == "infnet":
            yield service["command"]
    for document in documents():
        template = document["spec"].get("template", {})
        for container in template.get("spec", {}).get("containers", ()):
            if container["image"] == "infnet":
                yield container["args"]


@pytest.mark.parametrize("arguments", [*command_lines()], ids=" ".join)
def test_every_command_has_the_options_it_is_given(arguments):
    verb, *rest = arguments
    known = {option for parameter in COMMANDS[verb].params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known


def test_kubernetes_objects_find_each_other():
    kinds = {(each["kind"], each["metadata"]["name"]): each for each in documents()}
    for (kind, _), each in kinds.items():
        if kind in ("Deployment", "StatefulSet"):
            labels = each["spec"]["template"]["metadata"]["labels"]
            assert each["spec"]["selector"]["matchLabels"].items() <= labels.items()
            pod = each["spec"]["template"]["spec"]
            volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
            templates = {claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", ())}
            for container in pod["containers"]:
                mounts = {mount["name"] for mount in container.get("volumeMounts", ())}
                assert mounts <= {*volumes, *templates}
            for volume in volumes.values():
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in kinds
    served = {("Service", "infnet-ranker"), ("Service", "infnet-redis")}
    assert served <= {*kinds}
    assert kinds["Deployment", "infnet-ranker"]["spec"]["replicas"] > 1
    assert any("redis://infnet-redis:6379/0" in arguments for arguments in command_lines())


def test_compose_mounts_files_that_are_there():
    own = [volume for service in compose()["services"].values() for volume in service.get("volumes", ())]
    files = [Path(volume.split(":")[0]) for volume in own if volume.startswith("./")]
    for file in files:
        assert (DEPLOY / file).exists() or file.name in ("models", "events"), file
    assert (DEPLOY / "prometheus.yaml").exists()
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["ranker:8000"]


def test_the_dashboard_asks_for_metrics_that_the_service_has():
    dashboard = json.loads((DEPLOY / "grafana" / "infnet.json").read_text())
    known = set(re.findall(r"^# TYPE (\w+)", ServiceMetrics().exposition().decode(), re.MULTILINE))
    known |= {f"{name}_{part}" for name in known for part in ("bucket", "sum", "count")}
    asked = {name for panel in dashboard["panels"] for name in re.findall(r"\binfnet_\w+", json.dumps(panel))}
    assert len(asked) >= 12
    assert asked <= known


def test_the_image_has_what_its_commands_need():
    text = (DEPLOY / "Dockerfile").read_text()
    assert "[serve,export,tracing]" in text
    assert "USER infnet" in text
    for source in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (DEPLOY.parent / name).exists(), name
