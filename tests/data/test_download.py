import hashlib
import io
import re
import shutil
import socket
import tarfile
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from infnet.data.catalog import Archive, KnownDataset, known_dataset, known_datasets
from infnet.data.download import DownloadError, download_dataset
from infnet.data.sources.known import known_spec
from infnet.errors import SpecError

LOG = np.random.default_rng(0).bytes(700_000)  # does not compress, so transfers have something to cut


def packed(*members, folder="Tiny"):
    """A gzipped tar of (name, content or TarInfo) pairs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members or ((f"{folder}/data/log.csv", LOG), (f"{folder}/README.md", b"hello")):
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if not isinstance(content, tarfile.TarInfo):
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """Serves one archive; ``cuts`` are the bytes after which the next connections break."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = packed()
        self.cuts = []
        self.statuses = []
        self.with_ranges = True
        self.ranges = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/files/Tiny.tar.gz"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.ranges.append(wanted)
        if server.statuses and (status := server.statuses.pop(0)) != 200:
            self.send_error(status)
            return
        total, start = len(server.content), 0
        if wanted and server.with_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(total - start))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else total
        self.wfile.write(server.content[start : start + cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def tiny(url, content, md5=None):
    archive = Archive(
        url=url,
        page="http://example.org/tiny",
        size=len(content),
        md5=md5 or hashlib.md5(content).hexdigest(),
        folder="Tiny",
        unpacked=1_000_000,
    )
    return KnownDataset(name="tiny", what="a test", rows=1, licence="none", how="download", archive=archive)


def get(server, out, md5=None, **options):
    dataset = tiny(server.url, server.content, md5)
    return download_dataset(dataset, out, **{"attempts": 3, "pause_s": 0.001} | options)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_downloads_checks_and_unpacks(server, tmp_path):
    seen = []
    path = get(server, tmp_path / "raw", progress=lambda *at: seen.append(at))
    assert path == tmp_path / "raw" / "Tiny"
    assert (path / "data" / "log.csv").read_bytes() == LOG
    assert names(tmp_path / "raw") == ["Tiny"]
    assert list(dict.fromkeys(stage for stage, _, _ in seen)) == ["fetching", "checking", "unpacking"]
    for stage in ("fetching", "checking"):
        assert max(done for s, done, _ in seen if s == stage) == len(server.content)


def test_a_second_call_fetches_nothing(server, tmp_path):
    assert get(server, tmp_path) == get(server, tmp_path)
    assert len(server.ranges) == 1


def test_broken_connections_are_resumed_where_they_broke(server, tmp_path):
    server.cuts = [100_000, 250_000]
    path = get(server, tmp_path)
    assert (path / "data" / "log.csv").read_bytes() == LOG
    assert server.ranges == [None, "bytes=100000-", "bytes=350000-"]


def test_an_interrupted_run_is_resumed_by_the_next(server, tmp_path):
    def interrupt(stage, done, total):
        if done > 300_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path, progress=interrupt)
    assert names(tmp_path) == ["Tiny.tar.gz.part"]
    begun = (tmp_path / "Tiny.tar.gz.part").stat().st_size
    assert (get(server, tmp_path) / "data" / "log.csv").read_bytes() == LOG
    assert server.ranges == [None, f"bytes={begun}-"]
    assert begun > 0


def test_a_server_without_ranges_is_read_from_the_start(server, tmp_path):
    server.with_ranges = False
    (tmp_path / "Tiny.tar.gz.part").write_bytes(server.content[:5000])
    assert (get(server, tmp_path) / "data" / "log.csv").read_bytes() == LOG
    assert server.ranges == ["bytes=5000-"]


def test_a_complete_part_is_not_fetched_again(server, tmp_path):
    (tmp_path / "Tiny.tar.gz.part").write_bytes(server.content)
    assert (get(server, tmp_path) / "data" / "log.csv").read_bytes() == LOG
    assert server.ranges == [f"bytes={len(server.content)}-"]


@pytest.mark.parametrize("length", [5000, 2_000_000])
def test_a_part_of_something_else_is_replaced(server, tmp_path, length):
    (tmp_path / "Tiny.tar.gz.part").write_bytes(b"x" * length)
    assert (get(server, tmp_path) / "data" / "log.csv").read_bytes() == LOG
    assert names(tmp_path) == ["Tiny"]


def test_a_wrong_checksum_is_refused_and_removed(server, tmp_path):
    with pytest.raises(DownloadError, match=f"MD5 {hashlib.md5(server.content).hexdigest()}, published is {'0' * 32}"):
        get(server, tmp_path, md5="0" * 32)
    assert names(tmp_path) == []
    assert len(server.ranges) == 1


def test_passing_troubles_are_waited_out(server, tmp_path):
    server.statuses = [503, 429]
    assert (get(server, tmp_path) / "data" / "log.csv").read_bytes() == LOG
    assert len(server.ranges) == 3


def test_a_missing_file_is_reported_at_once_with_the_manual_steps(server, tmp_path):
    server.statuses = [404] * 9
    with pytest.raises(DownloadError) as caught:
        get(server, tmp_path)
    message = str(caught.value)
    assert len(server.ranges) == 1
    assert "\n" not in message
    for part in (
        "answered 404",
        "open http://example.org/tiny",
        hashlib.md5(server.content).hexdigest(),
        f"place it as {tmp_path / 'Tiny.tar.gz'}",
        f"run infnet data download tiny --out {tmp_path} again",
        f"infnet prepare tiny --raw {tmp_path / 'Tiny'}",
    ):
        assert part in message


def test_an_unreachable_host_is_reported_with_the_manual_steps(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/files/Tiny.tar.gz"
    with pytest.raises(DownloadError, match=r"refused.*\(3 attempts\)\. By hand: \(1\)"):
        download_dataset(tiny(url, b"x"), tmp_path, attempts=3, pause_s=0.001)
    assert names(tmp_path) == []


def test_a_connection_that_keeps_breaking_leaves_the_part_for_next_time(server, tmp_path):
    server.cuts = [1000, 0, 0, 0, 0]
    with pytest.raises(DownloadError, match="closed after 1,000 of"):
        get(server, tmp_path)
    assert names(tmp_path) == ["Tiny.tar.gz.part"]
    assert (tmp_path / "Tiny.tar.gz.part").stat().st_size == 1000


def test_an_archive_placed_by_hand_is_used_and_kept(server, tmp_path):
    (tmp_path / "Tiny.tar.gz").write_bytes(server.content)
    assert (get(server, tmp_path) / "data" / "log.csv").read_bytes() == LOG
    assert names(tmp_path) == ["Tiny", "Tiny.tar.gz"]
    assert server.ranges == []


def test_a_wrong_archive_placed_by_hand_is_named_and_kept(server, tmp_path):
    (tmp_path / "Tiny.tar.gz").write_bytes(b"half of it")
    with pytest.raises(DownloadError, match=r"Tiny\.tar\.gz has MD5 .* remove it"):
        get(server, tmp_path)
    assert names(tmp_path) == ["Tiny.tar.gz"]


def link(target):
    info = tarfile.TarInfo("Tiny/data/link")
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def device():
    info = tarfile.TarInfo("Tiny/data/device")
    info.type = tarfile.CHRTYPE
    return info


@pytest.mark.parametrize(
    "evil",
    [("../../outside.txt", b"gotcha"), ("", link("/etc/passwd")), ("", link("../../../outside")), ("", device())],
)
def test_a_malicious_archive_writes_nothing_outside_and_leaves_nothing(server, tmp_path, evil):
    server.content = packed(("Tiny/data/log.csv", b"1"), evil)
    out = tmp_path / "deep" / "raw"
    with pytest.raises(DownloadError, match="unsafe"):
        get(server, out)
    assert [p.name for p in tmp_path.rglob("*")] == ["deep", "raw", "Tiny.tar.gz"]


def test_an_archive_of_something_else_is_refused(server, tmp_path):
    server.content = packed(("Other/data/log.csv", b"1"))
    with pytest.raises(DownloadError, match="no folder Tiny"):
        get(server, tmp_path)
    assert names(tmp_path) == ["Tiny.tar.gz"]


def test_a_truncated_archive_is_called_damaged(server, tmp_path):
    server.content = server.content[: len(server.content) // 2]
    with pytest.raises(DownloadError, match="damaged"):
        get(server, tmp_path)
    assert names(tmp_path) == ["Tiny.tar.gz"]


def test_a_full_disk_is_noticed_before_the_transfer(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1_000_000))
    with pytest.raises(DownloadError, match=r"0\.0 GB free, Tiny needs 0\.0 GB"):
        get(server, tmp_path)
    assert server.ranges == []


def test_tenrec_comes_with_steps_instead_of_a_download(tmp_path):
    with pytest.raises(DownloadError, match=r"accept the licence.*QB-video\.csv.*infnet prepare qb-video --raw"):
        download_dataset(known_dataset("qb-video"), tmp_path)
    with pytest.raises(DownloadError, match="infnet data synthesize"):
        download_dataset(known_dataset("synthetic"), tmp_path)


def test_known_datasets_have_a_spec_and_what_their_way_needs():
    for dataset in known_datasets():
        assert known_spec(dataset.name).name == dataset.name
        assert (dataset.archive is not None) == (dataset.how == "download")
        assert (dataset.page is not None and dataset.file != "") == (dataset.how == "form")
        if dataset.archive is not None:
            assert re.fullmatch("[0-9a-f]{32}", dataset.archive.md5)
            assert dataset.archive.url == f"{dataset.archive.page}/files/{dataset.archive.folder}.tar.gz"
            assert dataset.archive.url.startswith("https://")


def test_a_misspelt_name_gets_a_suggestion():
    assert known_dataset("KuaiRand-1K").name == "kuairand-1k"
    with pytest.raises(SpecError, match="did you mean 'kuairand-pure'"):
        known_dataset("kuairand_pure")
