"""A bundle: the one directory that crosses from training to serving. Loading one executes nothing."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load_file

from infnet.data.dataset import EntityTable, History
from infnet.data.encoders import Encoder
from infnet.data.layout import Layout
from infnet.errors import ArtifactError, SpecError
from infnet.export.calibration import CALIBRATION, BundleCalibration
from infnet.export.catalogue import Catalogue, Entities
from infnet.export.engine import Engine, EngineTables
from infnet.export.folded import FoldedINFNet
from infnet.export.graph import Backend, OnnxBackend, TorchBackend
from infnet.export.keys import KeyIndex
from infnet.export.learning import LEARNING_FILES, LearningState
from infnet.export.manifest import BUNDLE_VERSION, MANIFEST, BackendName, BundleManifest, FileRecord
from infnet.export.networks import GeneralNetwork, ServingNetwork
from infnet.export.tables import Precision, Table, open_array
from infnet.features import Side
from infnet.models.base import RankingModel, build_model
from infnet.models.infnet import INFNet
from infnet.schema import load_spec
from infnet.training.checkpoint import load_checkpoint, load_parameters
from infnet.training.config import load_config

__all__ = [
    "BUNDLE_VERSION",
    "MANIFEST",
    "BackendName",
    "Bundle",
    "BundleManifest",
    "FileRecord",
    "serving_network",
    "sha256_of",
    "table_precision",
]

_SMALL = 64 * 2**20
"""Bytes of a file up to which every opening reads it to check its contents."""


_REQUIRED = (
    *("whole.onnx", "padded.onnx", "model.safetensors", "serving.safetensors", "encoder/encoders.json"),
    *("tables/embedding.npy", "tables/tokens.npy", "items/keys.npy", "items/prior.npy", "users/keys.npy"),
)


class Bundle:
    """A bundle, opened by memory map.

    Attributes:
        path: The directory.
        manifest: Its description.
        users, items: From keys to indices.
    """

    def __init__(self, path: Path, manifest: BundleManifest) -> None:
        self.path, self.manifest = path, manifest
        self.users = self._keys("users")
        self.items = self._keys("items")

    @classmethod
    def open(cls, path: Path | str, *, verify: Literal["quick", "full"] = "quick") -> Bundle:
        """Open a bundle.

        Args:
            path: The directory.
            verify: ``quick`` checks that every file is there in its size, and the contents of those up to 64 MiB;
                ``full`` reads everything.

        Raises:
            ArtifactError: It is no bundle, is damaged, or another version of this package wrote it.
        """
        path = Path(path)
        file = path / MANIFEST
        try:
            text = file.read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"{path}: is no bundle ({MANIFEST}: {error.strerror}); make one with 'infnet export'"
            ) from error
        try:
            manifest = BundleManifest.model_validate_json(text)
        except ValidationError as error:
            found = _version_of(text)
            if found is not None and found != BUNDLE_VERSION:
                raise _wrong_version(path, found) from error
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "file"
            raise ArtifactError(f"{file}: {where} is damaged ({first['msg']}); export the run again") from error
        if manifest.format_version != BUNDLE_VERSION:
            raise _wrong_version(path, manifest.format_version)
        for name in _REQUIRED:
            if name not in manifest.files:
                raise ArtifactError(f"{file}: lists no {name}; export the run again")
        for name, record in manifest.files.items():
            _check_file(path / name, record, reads=verify == "full" or record.size <= _SMALL)
        return cls(path, manifest)

    @property
    def layout(self) -> Layout:
        """Of the dataset, with histories as long as the model saw them."""
        return self.manifest.layout

    @cached_property
    def encoder(self) -> Encoder:
        """Raw values to embedding rows."""
        return Encoder.load(self.path / "encoder")

    @cached_property
    def calibration(self) -> BundleCalibration | None:
        """Of its predictions; None if they are the model's own.

        Raises:
            ArtifactError: It is damaged.
        """
        if CALIBRATION not in self.manifest.files:
            return None
        try:
            return BundleCalibration.model_validate_json((self.path / CALIBRATION).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "file"
            raise ArtifactError(
                f"{self.path / CALIBRATION}: {where} is damaged ({first['msg']}); export the run again"
            ) from error

    @cached_property
    def user_features(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids (num_users, id_width) and dense values (num_users, dense_width); row 0 is the unknown user."""
        return self._features("users", "user", self.manifest.num_users)

    @cached_property
    def histories(self) -> tuple[History, ...]:
        """Per behaviour each user's last events, oldest first."""
        found = []
        for behaviour in self.layout.behaviours:
            starts = self._array(f"history/{behaviour.name}.starts.npy", np.int64, (self.manifest.num_users + 1,))
            shape = (int(starts[-1]),)
            items = self._array(f"history/{behaviour.name}.items.npy", np.int32, shape)
            times = self._array(f"history/{behaviour.name}.times.npy", np.int64, shape)
            found.append(History(starts, items, times))
        return tuple(found)

    def item_values(self, feature: str) -> NDArray[np.float64] | None:
        """(num_items,) what a candidate's feature reads of its item; None if it reads the request alone."""
        name = f"items/values/{feature}.npy"
        if name not in self.manifest.files:
            return None
        return self._array(name, np.float64, (self.manifest.num_items,))

    @cached_property
    def prior(self) -> NDArray[np.float32]:
        """(num_items,) each item's rate of the first binary task in training, a score of the item for anyone.

        Rates of items that were shown rarely are drawn towards that of all; the unknown item's, index 0, is that.
        """
        scores: NDArray[np.float32] = self._array("items/prior.npy", np.float32, (self.manifest.num_items,))
        return scores

    @property
    def can_learn(self) -> bool:
        """Whether it carries what training needs to go on."""
        return all(name in self.manifest.files for name in LEARNING_FILES)

    def catalogue(self) -> Catalogue:
        """Its users, items, histories and encoder.

        Raises:
            ArtifactError: It was exported without what training needs, or is damaged.
        """
        self._require_learning()
        features = self.encoder.features.values()
        found = {f.name: self.item_values(f.name) for f in features if f.reads == "item"}
        return Catalogue(
            spec=load_spec(self.path / "spec.yaml"),
            encoder=self.encoder,
            users=Entities(self.users.texts(), EntityTable(*self.user_features)),
            items=Entities(self.items.texts(), EntityTable(*self._features("items", "item", self.manifest.num_items))),
            item_values={name: values for name, values in found.items() if values is not None},
            histories=self.histories,
        )

    def learning(self) -> LearningState:
        """What training needs to go on.

        Raises:
            ArtifactError: The bundle was exported without it, or is damaged.
        """
        self._require_learning()
        file = self.path / "waiting.parquet"
        try:
            waiting = pl.read_parquet(file)
        except pl.exceptions.PolarsError as error:
            raise ArtifactError(f"{file}: cannot be read ({error}); export the run again") from error
        return LearningState(
            config=load_config(self.path / "train.yaml"),
            tensors=load_checkpoint(self.path / "checkpoint.safetensors").tensors,
            seen=self._array("seen.npy", np.int64, (self.layout.num_rows,)),
            waiting=waiting,
        )

    def item_counts(self) -> NDArray[np.int64]:
        """What :attr:`prior` is made of: (num_items, 2) rows and positives.

        Raises:
            ArtifactError: The bundle was exported without what training needs, or is damaged.
        """
        self._require_learning()
        counts: NDArray[np.int64] = self._array("items/counts.npy", np.int64, (self.manifest.num_items, 2))
        return counts

    def traced(self, name: str) -> bytes:
        """The graph ``whole`` or ``padded`` without values (:func:`infnet.export.graph.trace_graph`)."""
        return (self.path / "traced" / f"{name}.onnx").read_bytes()

    def load_model(self) -> RankingModel:
        """The model in evaluation mode, without its embedding table (one row stands in for it)."""
        manifest, path = self.manifest, self.path / "model.safetensors"
        model = build_model(manifest.model, self.layout.model_copy(update={"num_rows": 1}), manifest.settings)
        checkpoint = load_checkpoint(path)
        checkpoint.tensors["embedding.weight"] = model.embedding.weight.detach()
        load_parameters(model, checkpoint, path)
        return model.eval()

    def engine(self, backend: BackendName | None = None, *, threads: int = 1) -> Engine:
        """What scores encoded requests.

        Args:
            backend: The manifest's by default.
            threads: Of one request, in ONNX Runtime; PyTorch has its own, process-wide setting.
        """
        return Engine(self.layout, self.engine_tables, self._backend(backend or self.manifest.backend, threads))

    def _backend(self, name: BackendName, threads: int) -> Backend:
        if name == "torch":
            model = self.load_model()
            return TorchBackend(serving_network(model, padded=False), serving_network(model, padded=True))
        if name != "onnx":
            raise SpecError(f"backend is '{name}', wanted onnx or torch")
        whole, padded = ((self.path / f"{kind}.onnx").read_bytes() for kind in ("whole", "padded"))
        return OnnxBackend(whole, padded, threads)

    @cached_property
    def engine_tables(self) -> EngineTables:
        """What the engine reads row by row."""
        manifest, directory = self.manifest, self.path / "tables"
        dense: dict[str, NDArray[np.float32]] = load_file(self.path / "serving.safetensors")
        precision = manifest.precision
        return EngineTables(
            embedding=Table.open(directory / "embedding", precision),
            tokens=Table.open(directory / "tokens", precision),
            events=Table.open(directory / "events", precision) if self.layout.behaviours else None,
            items={
                name: Table.open(directory / name, table_precision(name, precision)) for name in manifest.item_tables
            },
            reads_targets=manifest.reads_targets,
            dense=dense,
        )

    def _require_learning(self) -> None:
        if not self.can_learn:
            raise ArtifactError(
                f"{self.path}: was exported with --no-checkpoint and cannot be updated; export the run again without it"
            )

    def _features(self, directory: str, side: Side, num: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        ids = self._array(f"{directory}/ids.npy", np.int32, (num, self.layout.id_width(side)))
        return ids, self._array(f"{directory}/dense.npy", np.float32, (num, self.layout.dense_width(side)))

    def _keys(self, side: str) -> KeyIndex:
        keys: Any = open_array(self.path / side / "keys.npy")
        return KeyIndex(keys)

    def _array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        if 0 in shape:
            return np.zeros(shape, dtype)
        array = open_array(self.path / name)
        if array.dtype != dtype or array.shape != shape:
            raise ArtifactError(
                f"{self.path / name}: holds {array.dtype} {array.shape}, wanted {np.dtype(dtype)} {shape}; "
                "export the run again"
            )
        return array


def serving_network(model: RankingModel, *, padded: bool) -> ServingNetwork:
    """The network that serves a model.

    Raises:
        SpecError: There is none for it.
    """
    return FoldedINFNet(model, padded=padded) if isinstance(model, INFNet) else GeneralNetwork(model, padded=padded)


def table_precision(name: str, precision: Precision) -> Precision:
    """How a table is kept in a bundle of some precision: the masses of softmaxes are few, and exact."""
    return "float32" if name == "mass" else precision


def sha256_of(path: Path) -> str:
    """Of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path, record: FileRecord, *, reads: bool) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ArtifactError(f"{path}: is missing; copy the bundle again, or export the run again") from error
    if size != record.size:
        raise ArtifactError(f"{path}: has {size} bytes, wanted {record.size}; copy the bundle again, or export again")
    if reads and sha256_of(path) != record.sha256:
        raise ArtifactError(f"{path}: its contents do not match its checksum; copy the bundle again, or export again")


def _version_of(text: bytes) -> int | None:
    try:
        version = json.loads(text).get("format_version")
    except (ValueError, AttributeError):
        return None
    return version if isinstance(version, int) else None


def _wrong_version(path: Path, found: int) -> ArtifactError:
    return ArtifactError(
        f"{path}: is a bundle of format {found}, this package reads format {BUNDLE_VERSION}; "
        "export the run again with this version, or install the one that wrote it"
    )
