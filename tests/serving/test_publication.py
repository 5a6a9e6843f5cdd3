import json
import shutil
import threading

import pytest

from infnet.errors import ArtifactError, DataError
from infnet.export.bundle import MANIFEST, Bundle, FileRecord, sha256_of
from infnet.serving.publication import ModelDirectory


@pytest.fixture
def versions(bundle, tmp_path):
    """Three bundles of different versions."""
    return [variant(bundle, tmp_path / f"bundle-{i}", i) for i in range(3)]


def variant(bundle, path, number):
    """A copy whose contents differ, as its manifest says."""
    shutil.copytree(bundle.path, path)
    spec = path / "spec.yaml"
    spec.write_text(spec.read_text() + f"# {number}\n")
    manifest = bundle.manifest
    files = manifest.files | {"spec.yaml": FileRecord(size=spec.stat().st_size, sha256=sha256_of(spec))}
    (path / MANIFEST).write_text(manifest.model_copy(update={"files": files}).model_dump_json())
    return path


def version_of(path):
    return Bundle.open(path).manifest.version


def test_what_was_published_last_is_current_and_the_one_before_a_step_away(versions, tmp_path):
    live = ModelDirectory(tmp_path / "live")
    assert live.current() is None
    names = [live.publish(path) for path in versions[:2]]
    assert names == [version_of(path) for path in versions[:2]]
    assert version_of(live.current()) == names[1]
    assert live.rollback() == names[0]
    assert version_of(live.current()) == names[0]
    with pytest.raises(ArtifactError, match="no version was current before"):
        live.rollback()


def test_as_many_versions_are_kept_as_asked(versions, tmp_path):
    live = ModelDirectory(tmp_path / "live")
    names = [live.publish(path, keep=2) for path in versions]
    assert sorted(names[1:]) == live.versions()


def test_publishing_the_current_version_again_keeps_what_was_before(versions, tmp_path):
    live = ModelDirectory(tmp_path / "live")
    names = [live.publish(path) for path in (*versions[:2], versions[1])]
    assert live.publication().previous == (names[0],)


def test_a_published_version_that_was_damaged_since_is_mended_by_publishing_it_again(versions, tmp_path):
    live = ModelDirectory(tmp_path / "live")
    live.publish(versions[0])
    (live.current() / "whole.onnx").write_bytes(b"damaged")
    before = live.publication()
    live.publish(versions[0])
    Bundle.open(live.current(), verify="full")
    assert live.publication() != before


def test_a_damaged_bundle_is_not_published(versions, tmp_path):
    live = ModelDirectory(tmp_path / "live")
    live.publish(versions[0])
    graph = versions[1] / "whole.onnx"
    content = bytearray(graph.read_bytes())
    content[100] ^= 1
    graph.write_bytes(content)
    before = live.publication()
    with pytest.raises(ArtifactError, match="checksum"):
        live.publish(versions[1])
    assert live.publication() == before
    assert len(live.versions()) == 1


def test_a_copy_that_fails_leaves_nothing(versions, tmp_path, monkeypatch):
    live = ModelDirectory(tmp_path / "live")
    live.publish(versions[0])

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copytree", fails)
    with pytest.raises(DataError, match="No space"):
        live.publish(versions[1])
    assert [p.name for p in (live.path / "versions").iterdir()] == [version_of(versions[0])]


def test_nothing_is_published_into_another_directory(versions, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep me")
    with pytest.raises(DataError, match="holds no published model"):
        ModelDirectory(tmp_path / "mine").publish(versions[0])
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_damaged_pointer_is_told(versions, tmp_path):
    live = ModelDirectory(tmp_path / "live")
    live.publish(versions[0])
    (live.path / "current.json").write_text(json.dumps({"version": "../../etc", "published_ms": 1}))
    with pytest.raises(ArtifactError, match="is damaged"):
        live.current()


def test_publishers_at_the_same_time_take_turns(versions, tmp_path):
    live = ModelDirectory(tmp_path / "live")
    errors = []

    def publish(path):
        try:
            for _ in range(3):
                live.publish(path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=publish, args=(path,)) for path in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    Bundle.open(live.current(), verify="full")
