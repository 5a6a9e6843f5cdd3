"""What ``bundle.json`` says of a bundle."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from infnet.data.layout import Layout
from infnet.export.tables import Precision

__all__ = ["BUNDLE_VERSION", "MANIFEST", "BackendName", "BundleManifest", "FileRecord", "Lineage"]

BUNDLE_VERSION = 2
MANIFEST = "bundle.json"
BackendName = Literal["onnx", "torch"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileRecord(_Record):
    """What a file has to be."""

    size: int
    sha256: str


class Lineage(_Record):
    """How a bundle came to be after the run."""

    parent: str | None = None
    """Version of the bundle that it is an update of; None for that of a run."""
    updates: int = 0
    """From the run's bundle to this one."""
    samples_part: int = 0
    """The newest partition of samples it has learnt from; 0 for none."""


class BundleManifest(_Record):
    """``bundle.json``.

    Beside it lie:

    - ``spec.yaml``; ``encoder/encoders.json`` and ``encoder/vocabularies/NAME.parquet``: raw values to ids
    - ``model.safetensors``: all parameters but the embedding table; ``serving.safetensors``: those the engine needs
    - ``whole.onnx`` and ``padded.onnx``: the graph for one request, and for several with padded histories
    - ``tables/``: ``embedding``, ``tokens``, ``events`` and those that the network names (:class:`EngineTables`)
    - ``items/keys.npy`` and ``users/keys.npy`` (:class:`KeyIndex`); ``items/values/FEATURE.npy``; ``users/ids.npy`` and
      ``users/dense.npy``; ``history/BEHAVIOUR.*.npy``, each user's last events when the dataset ended
    - ``calibration.json``, if predictions are calibrated (:class:`infnet.export.calibration.BundleCalibration`)
    - ``items/prior.npy`` (num_items,) float32: see :attr:`Bundle.prior`
    - what training needs to go on, unless it was left out (:class:`infnet.export.learning.LearningState`):
      ``checkpoint.safetensors``, ``train.yaml``, ``seen.npy``, ``items/counts.npy``, ``items/ids.npy``,
      ``items/dense.npy``, ``waiting.parquet``, and the graphs without values, ``traced/whole.onnx`` and
      ``traced/padded.onnx``
    """

    format_version: int
    package_version: str
    name: str
    """Of the dataset."""
    model: str
    settings: dict[str, Any]
    layout: Layout
    num_users: int
    num_items: int
    """Both with the unknown one."""
    item_tables: tuple[str, ...]
    """What the network reads of an item beside its tokens, in its order."""
    reads_targets: bool
    """Whether it reads candidates' items as events."""
    precision: Precision
    int8_dense: bool
    """Whether the graphs' products with weights are int8."""
    fingerprint: str
    """Of the dataset that the run was trained on."""
    run: dict[str, Any]
    """Seed, versions, and validation metrics of the run it was made from."""
    trained_to_ms: int
    """Time of the newest row it was trained on, ms since 1970."""
    lineage: Lineage
    parity: dict[str, float]
    """Per back end, the largest difference to the training model over the largest logit, both in float32."""
    loss: dict[str, float]
    """Per binary task, validation AUC that compression costs; empty without compression."""
    request_ms: dict[str, float]
    """Per back end, milliseconds of one request of 500 candidates on one thread where the run's bundle was made."""
    backend: BackendName
    """The faster one."""
    files: dict[str, FileRecord]

    @property
    def version(self) -> str:
        """Names this bundle's contents."""
        text = "".join(f"{name}{record.sha256}" for name, record in sorted(self.files.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]
