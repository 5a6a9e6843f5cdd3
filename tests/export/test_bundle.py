import json
import pickle
import shutil
import time
import tracemalloc

import numpy as np
import pytest
from numpy.lib.format import open_memmap

from infnet.errors import ArtifactError
from infnet.export import bundle as module
from infnet.export.bundle import MANIFEST, Bundle, FileRecord, sha256_of
from infnet.serving.ranker import Ranker


@pytest.fixture
def copy(bundle, tmp_path):
    """A bundle that a test may damage."""
    shutil.copytree(bundle.path, tmp_path / "copy")
    return tmp_path / "copy"


def change_manifest(path, **changes):
    described = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(described | changes))


def record(path, *names):
    """Make the manifest agree with files that were changed."""
    described = json.loads((path / MANIFEST).read_text())
    for name in names:
        file = path / name
        described["files"][name] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
    (path / MANIFEST).write_text(json.dumps(described))


def refusal(path, **options):
    """The one line that says why a bundle is not opened."""
    with pytest.raises(ArtifactError) as error:
        Bundle.open(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_bundle_lists_every_file_in_it(bundle):
    found = {file.relative_to(bundle.path).as_posix() for file in bundle.path.rglob("*") if file.is_file()}
    assert found == {MANIFEST, *bundle.manifest.files}
    assert Bundle.open(bundle.path, verify="full").manifest == bundle.manifest


def test_a_changed_byte_of_any_file_is_noticed(copy):
    for name in Bundle.open(copy).manifest.files:
        before = (copy / name).read_bytes()
        (copy / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert f"{copy / name}: its contents do not match its checksum; copy the bundle again" in refusal(copy), name
        (copy / name).write_bytes(before)
    Bundle.open(copy)


@pytest.mark.parametrize("name", ["tables/tokens.npy", "whole.onnx", "encoder/vocabularies/author.parquet"])
def test_a_cut_or_missing_file_is_named(copy, name):
    file = copy / name
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file}: has {size - 1} bytes, wanted {size}; copy the bundle again" in refusal(copy)
    file.unlink()
    assert f"{file}: is missing; copy the bundle again" in refusal(copy)


def test_only_a_full_verification_reads_large_files(copy, monkeypatch):
    file = copy / "tables/tokens.npy"
    monkeypatch.setattr(module, "_SMALL", file.stat().st_size - 1)
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    Bundle.open(copy)
    assert str(file) in refusal(copy, verify="full")


@pytest.mark.parametrize("more", [{}, {"a_field_of_that_format": 1}])
def test_a_bundle_of_another_format_says_which_version_is_needed(copy, more):
    change_manifest(copy, format_version=99, **more)
    found = refusal(copy)
    assert "is a bundle of format 99, this package reads format 2" in found
    assert "export the run again with this version" in found


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (b"", "file"),
        (b"[1, 2]", "file"),
        (b"\xff\x00", "file"),
        (b"{}", "format_version"),
        (b'{"format_version": 2, "package_version": "0", "name": 3}', "name"),
    ],
)
def test_a_garbled_manifest_is_one_line(copy, text, where):
    (copy / MANIFEST).write_bytes(text)
    found = refusal(copy)
    assert f"{copy / MANIFEST}: {where} is damaged" in found
    assert found.endswith("export the run again")


@pytest.mark.parametrize("name", ["whole.onnx", "model.safetensors", "tables/tokens.npy", "users/keys.npy"])
def test_a_manifest_that_lists_too_little_is_refused(copy, name):
    described = json.loads((copy / MANIFEST).read_text())
    del described["files"][name]
    (copy / MANIFEST).write_text(json.dumps(described))
    assert f"{copy / MANIFEST}: lists no {name}; export the run again" in refusal(copy)


def test_what_is_no_bundle_is_named_with_the_remedy(run, dataset, tmp_path):
    file = tmp_path / "file"
    file.write_text("no directory")
    for path in (run.path, dataset.path, tmp_path / "nowhere", tmp_path, file):
        found = refusal(path)
        assert found.startswith(f"{path}: is no bundle ({MANIFEST}: ")
        assert found.endswith("make one with 'infnet export'")


def test_the_version_names_the_contents(bundle, copy):
    assert Bundle.open(copy).manifest.version == bundle.manifest.version
    change_manifest(copy, request_ms={"onnx": 9.0})
    assert Bundle.open(copy).manifest.version == bundle.manifest.version
    (copy / "spec.yaml").write_text("another")
    record(copy, "spec.yaml")
    assert Bundle.open(copy).manifest.version != bundle.manifest.version


class Trap:
    """Writes a file when somebody unpickles it."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


ARRAYS = ["items/keys.npy", "users/ids.npy", "users/dense.npy", "items/values/item_age.npy"]
ARRAYS += ["history/click.starts.npy", "history/like.items.npy", "tables/tokens.npy", "tables/mass.npy"]


@pytest.mark.parametrize("name", ARRAYS)
def test_loading_executes_nothing(copy, tmp_path, name):
    sprung = tmp_path / "sprung"
    with (copy / name).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (3,)})
        pickle.dump(np.array([Trap(sprung)] * 3, dtype=object), file)
    record(copy, name)
    with pytest.raises(ArtifactError, match=rf"{name}: cannot be read"):
        Ranker.load(copy).score("u1", [1])
    assert not sprung.exists()
    np.load(copy / name, allow_pickle=True)
    assert sprung.exists()


@pytest.mark.parametrize("name", ["users/ids.npy", "history/click.starts.npy", "items/values/item_age.npy"])
def test_an_array_of_another_shape_or_type_is_named(copy, name):
    array = np.load(copy / name)
    for wrong in (array[:-1], array != 0):
        np.save(copy / name, wrong)
        record(copy, name)
        with pytest.raises(ArtifactError, match=rf"{name}: holds {wrong.dtype} .* wanted {array.dtype}"):
            Ranker.load(copy).score("u1", [1])


@pytest.fixture
def huge(copy):
    """A bundle whose catalogue has ten million items; its tables are all zeros and take no disk."""
    num_items = 10_000_000 + 1
    manifest = Bundle.open(copy).manifest
    np.save(copy / "items/keys.npy", np.arange(1, num_items, dtype=np.int64))
    tables = [f"tables/{name}.npy" for name in ("tokens", "events", *manifest.item_tables)]
    for name in (*tables, "items/values/item_age.npy"):
        old = np.load(copy / name, mmap_mode="r")
        dtype, shape = old.dtype, (num_items, *old.shape[1:])
        (copy / name).unlink()
        del old
        open_memmap(copy / name, "w+", dtype, shape)
    files = dict(manifest.files)
    for name in (*tables, "items/keys.npy", "items/values/item_age.npy"):
        size = (copy / name).stat().st_size
        files[name] = FileRecord(size=size, sha256="0" * 64 if size > module._SMALL else sha256_of(copy / name))
    made = manifest.model_copy(update={"files": files, "num_items": num_items})
    (copy / MANIFEST).write_text(made.model_dump_json())
    yield copy
    shutil.rmtree(copy)


def test_ten_million_items_open_in_under_a_second(huge):
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        found = Bundle.open(huge).items.find(["1", 5_000_000, "10000000", 10_000_001, "nothing"])
        seconds.append(time.perf_counter() - started)
        assert found.tolist() == [1, 5_000_000, 10_000_000, 0, 0]
    assert min(seconds) < 1
    tracemalloc.start()
    Bundle.open(huge).items.find([7])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6  # of the 80 MB of keys alone
    assert np.isfinite(Ranker.load(huge).score("u1", [1, 9_999_999])).all()
