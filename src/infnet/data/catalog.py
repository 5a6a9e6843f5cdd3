"""Datasets this package knows by name: what they are, under which licence, and how to come by them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from infnet.errors import SpecError, did_you_mean

__all__ = ["Archive", "KnownDataset", "known_dataset", "known_datasets"]

_KUAIRAND = "https://zenodo.org/records/10439422"


class _Known(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Archive(_Known):
    """A gzipped tar file that anybody may fetch."""

    url: str
    page: str
    """Where a person finds the file in a browser."""
    size: int
    """Bytes, packed."""
    md5: str
    """As its publishers give it."""
    folder: str
    """What it unpacks to."""
    unpacked: int
    """Bytes, about."""

    @property
    def filename(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[-1]


class KnownDataset(_Known):
    """One entry of ``infnet data list``."""

    name: str
    """Also the name of its spec, for ``infnet prepare``."""
    what: str
    rows: int | None
    """Impressions; None where the user decides."""
    licence: str
    how: Literal["download", "form", "synthesize"]
    """``form``: only to those who accept a licence on a web page."""
    archive: Archive | None = None
    page: str | None = None
    file: str = ""
    """What to take from a page behind a form."""


def _kuairand(name: str, rows: int, what: str, *, size: int, md5: str, unpacked: int) -> KnownDataset:
    folder = f"KuaiRand-{name}"
    url = f"{_KUAIRAND}/files/{folder}.tar.gz"
    return KnownDataset(
        name=folder.lower(),
        what=what,
        rows=rows,
        licence="CC BY-SA 4.0; cite Gao et al., CIKM 2022",
        how="download",
        archive=Archive(url=url, page=_KUAIRAND, size=size, md5=md5, folder=folder, unpacked=unpacked),
    )


def _tenrec(file: str, name: str, rows: int, what: str) -> KnownDataset:
    return KnownDataset(
        name=name,
        what=what,
        rows=rows,
        licence="CC BY-NC 4.0, after accepting its agreement; cite Yuan et al., NeurIPS 2022",
        how="form",
        page="https://static.qblv.qq.com/qblv/h5/algo-frontend/tenrec_dataset.html",
        file=file,
    )


# Sizes and MD5 sums as published with the record and in the README of github.com/chongminggao/KuaiRand.
_DATASETS = (
    KnownDataset(
        name="synthetic",
        what="built-in world with known true probabilities, in KuaiRand's layout",
        rows=None,
        licence="none needed",
        how="synthesize",
    ),
    _kuairand(
        "Pure",
        2_622_668,
        "short videos, 27,285 users, 7,583 videos; 1.2 M of the rows exposed at random",
        size=47_432_272,
        md5="0820331067a3784d9691136f772b35a7",
        unpacked=200_000_000,
    ),
    _kuairand(
        "1K",
        11_756_073,
        "short videos, complete histories of 1,000 users, 4.4 M videos",
        size=1_135_436_720,
        md5="6b0b9c8222d67fcd4c676218edca3f1f",
        unpacked=4_700_000_000,
    ),
    _kuairand(
        "27K",
        323_464_444,
        "short videos, complete histories of 27,285 users, 32 M videos",
        size=9_892_191_178,
        md5="3e3c799a24e2d23a4d2c757fbf9adf59",
        unpacked=50_000_000_000,
    ),
    _tenrec("QB-video.csv", "qb-video", 2_442_299, "Tenrec: videos in QQ Browser, 34,240 users, 130,637 videos"),
    _tenrec("QK-video.csv", "qk-video", 493_458_970, "Tenrec: videos in QQ Kandian, 5.0 M users, 3.8 M videos"),
)


def known_datasets() -> tuple[KnownDataset, ...]:
    """All of them, smallest step first."""
    return _DATASETS


def known_dataset(name: str) -> KnownDataset:
    """One by name, capitals or not.

    Raises:
        SpecError: There is none of that name; the message suggests the nearest.
    """
    by_name = {dataset.name: dataset for dataset in _DATASETS}
    if name.lower() not in by_name:
        raise SpecError(f"unknown dataset '{name}'{did_you_mean(name.lower(), by_name)}")
    return by_name[name.lower()]
