"""Fetch a known dataset: resumable, checked, unpacked safely; or say exactly how to do it by hand."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import ssl
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from infnet import __version__
from infnet.data.catalog import Archive, KnownDataset
from infnet.errors import InfnetError

__all__ = ["DownloadError", "Progress", "download_dataset"]

Stage = Literal["fetching", "checking", "unpacking"]
Progress = Callable[[Stage, int, int], None]
"""Called with the stage, the bytes done and the bytes in all."""

_CHUNK = 1 << 18
_TIMEOUT_S = 60.0
_LONGEST_PAUSE_S = 60.0
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class DownloadError(InfnetError):
    """A dataset cannot be had this way; the message says how else. Exit code 1."""


def download_dataset(
    dataset: KnownDataset,
    out: Path,
    progress: Progress | None = None,
    *,
    attempts: int = 6,
    pause_s: float = 1.0,
) -> Path:
    """The dataset's raw directory below ``out``, fetched and unpacked unless it is there already.

    An archive that lies in ``out`` under its own name is checked, unpacked and kept; one fetched here is removed once
    unpacked. An interrupted transfer leaves a ``.part`` file, from which the next call goes on.

    Args:
        attempts: Transfers in a row that may fail without a byte arriving before this gives up.
        pause_s: Before the second attempt; doubles with each.

    Raises:
        DownloadError: It is not openly downloadable, cannot be reached, is not what was published, or the disk is too
            small.
    """
    archive = dataset.archive
    if archive is None:
        raise DownloadError(_steps_without_archive(dataset, out))
    target = out / archive.folder
    if target.is_dir():
        return target
    out.mkdir(parents=True, exist_ok=True)
    packed = out / archive.filename
    is_placed = packed.exists()
    _check_space(archive, out, is_placed)
    report = progress or (lambda stage, done, total: None)
    if is_placed:
        found = _md5(packed, report)
        if found != archive.md5:
            raise DownloadError(
                f"{packed} has MD5 {found}, wanted {archive.md5}: it is not the published file or is incomplete; "
                f"remove it and run infnet data download {dataset.name} --out {out}"
            )
    else:
        try:
            _fetch(archive, packed, report, attempts, pause_s)
        except _TransferError as error:
            raise DownloadError(_steps_by_hand(dataset, archive, out, str(error))) from error
    _unpack(archive, packed, target, report)
    if not is_placed:
        packed.unlink()
    return target


class _TransferError(Exception):
    """Why the archive could not be fetched."""


def _steps_by_hand(dataset: KnownDataset, archive: Archive, out: Path, reason: str) -> str:
    return (
        f"cannot fetch {archive.url}: {reason}. By hand: (1) open {archive.page} where you have access and save "
        f"{archive.filename} ({archive.size / 1e6:,.0f} MB, MD5 {archive.md5}); (2) place it as "
        f"{out / archive.filename}; (3) run infnet data download {dataset.name} --out {out} again, which checks and "
        f"unpacks it; (4) run infnet prepare {dataset.name} --raw {out / archive.folder} --out {dataset.name}"
    )


def _steps_without_archive(dataset: KnownDataset, out: Path) -> str:
    if dataset.how == "synthesize":
        return f"{dataset.name} is not downloaded but made: run infnet data synthesize --out {out}"
    return (
        f"{dataset.name} is given only to those who accept its licence. By hand: (1) open {dataset.page}, accept the "
        f"licence agreement and download the dataset; (2) unpack it and place {dataset.file} as {out / dataset.file}; "
        f"(3) run infnet prepare {dataset.name} --raw {out} --out {dataset.name}"
    )


def _check_space(archive: Archive, out: Path, is_placed: bool) -> None:
    part = _part(out / archive.filename)
    have = archive.size if is_placed else (part.stat().st_size if part.exists() else 0)
    need = max(archive.size - have, 0) + archive.unpacked
    free = shutil.disk_usage(out).free
    if free < need:
        raise DownloadError(
            f"{out} has {free / 1e9:,.1f} GB free, {archive.folder} needs {need / 1e9:,.1f} GB with its archive; "
            f"free some or give another --out"
        )


def _part(packed: Path) -> Path:
    return packed.with_name(packed.name + ".part")


def _md5(path: Path, report: Progress) -> str:
    # MD5 is what the publishers give; it guards against accidents, not against them.
    digest, total, done = hashlib.md5(usedforsecurity=False), path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            done += len(block)
            report("checking", done, total)
    return digest.hexdigest()


def _fetch(archive: Archive, packed: Path, report: Progress, attempts: int, pause_s: float) -> None:
    part = _part(packed)
    was_begun = part.exists()
    _transfer(archive, part, report, attempts, pause_s)
    found = _md5(part, report)
    if found != archive.md5 and was_begun:
        # What an earlier run left may have been of another version: once more from the start.
        part.unlink()
        _transfer(archive, part, report, attempts, pause_s)
        found = _md5(part, report)
    if found != archive.md5:
        part.unlink()
        raise _TransferError(f"what came has MD5 {found}, published is {archive.md5}")
    part.replace(packed)


def _transfer(archive: Archive, part: Path, report: Progress, attempts: int, pause_s: float) -> None:
    """Bring ``part`` to its full length, over as many connections as that takes."""
    failures = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            total = _receive(archive, part, have, report)
            length = part.stat().st_size
            if length == total:
                return
            reason = f"the connection closed after {length:,} of {total:,} bytes"
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416:  # asked for bytes past the end: the part is whole, or of something else
                    if error.headers.get("Content-Range", "") == f"bytes */{have}":
                        return
                    part.unlink(missing_ok=True)
                elif error.code not in _PASSING:
                    raise _TransferError(f"the server answered {error.code} {error.reason}") from error
                reason = f"the server answered {error.code} {error.reason}"
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        except OSError as error:
            raise DownloadError(
                f"{part}: cannot be written ({error.strerror}); mend that or give another --out"
            ) from error
        came = part.stat().st_size if part.exists() else 0
        failures = 1 if came > have else failures + 1
        if failures >= attempts:
            raise _TransferError(f"{reason} ({attempts} attempts)")
        time.sleep(min(pause_s * 2 ** (failures - 1), _LONGEST_PAUSE_S))


def _receive(archive: Archive, part: Path, have: int, report: Progress) -> int:
    """One connection's worth of bytes into ``part``; the length of the whole file as the server tells it."""
    headers = {"User-Agent": f"infnet/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(archive.url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        resumed = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status == 206 and resumed and int(resumed[1]) == have:
            total = int(resumed[2])
        else:
            # It sends everything, whatever was asked for.
            have = 0
            total = int(response.headers.get("Content-Length") or archive.size)
        with part.open("ab" if have else "wb") as file:
            while block := response.read(_CHUNK):
                file.write(block)
                have += len(block)
                report("fetching", have, total)
    return total


def _unpack(archive: Archive, packed: Path, target: Path, report: Progress) -> None:
    """Unpack beside ``target`` and rename, so that ``target`` is complete whenever it is there."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with packed.open("rb") as file, tarfile.open(fileobj=file, mode="r:*") as tar:
            for member in tar:
                _unpack_member(tar, member, partial, packed)
                report("unpacking", file.tell(), packed.stat().st_size)
        if not (partial / archive.folder).is_dir():
            raise DownloadError(f"{packed} holds no folder {archive.folder}; it is not the published archive")
        (partial / archive.folder).rename(target)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DownloadError(f"{packed} is damaged ({error}); remove it and download again") from error
    except OSError as error:
        raise DownloadError(f"{target}: cannot unpack {packed} ({error}); mend that and run again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unpack_member(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: Path, packed: Path) -> None:
    """A plain file or a folder that stays inside; neither rights nor owners are taken over."""
    path = directory / member.name
    source = tar.extractfile(member) if member.isreg() else None
    if not path.resolve().is_relative_to(directory.resolve()) or not (source or member.isdir()):
        raise DownloadError(f"{packed} is unsafe and was not unpacked: {member.name} is no file or folder inside it")
    (path.parent if source else path).mkdir(parents=True, exist_ok=True)
    if source:
        with source, path.open("wb") as file:
            shutil.copyfileobj(source, file)
