"""Samples as a prepared dataset, each row with the features it was served with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

import infnet
from infnet.data.dataset import Dataset, EntityTable, History
from infnet.data.encoders import side_features
from infnet.data.layout import FORMAT_VERSION, Layout, Manifest
from infnet.data.prepare import fingerprint_of
from infnet.export.catalogue import Catalogue, Entities, write_entities, write_history
from infnet.features import Side
from infnet.updating.reading import ReadSamples
from infnet.updating.samples import label_column

__all__ = ["TRAIN", "VALID", "write_partition"]

TRAIN, VALID = "train", "valid"


def write_partition(directory: Path, samples: ReadSamples, catalogue: Catalogue, layout: Layout) -> Dataset:
    """Write samples as a prepared dataset with the splits ``train`` and ``valid``.

    A user of this dataset is a user as one request saw them: request i is user i + 1, whose features are those that
    were served (the catalogue's, if no others were) and whose histories are those that the request read, less items
    that the catalogue does not know. Rows are thus in order of time.

    Args:
        directory: Empty.
        samples: The rows.
        catalogue: Its encoder encodes them; its items are those of the dataset.
        layout: Of the encoder.
    """
    return _Partition(directory, samples, catalogue, layout).write()


class _Partition:
    def __init__(self, directory: Path, samples: ReadSamples, catalogue: Catalogue, layout: Layout) -> None:
        self._directory, self._samples, self._catalogue, self._layout = directory, samples, catalogue, layout
        self._encoder = catalogue.encoder
        self._requests, self._rows = samples.samples.requests, samples.samples.rows

    def write(self) -> Dataset:
        directory, catalogue, layout = self._directory, self._catalogue, self._layout
        self._encoder.save(directory)
        spec = yaml.safe_dump(catalogue.spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        (directory / "spec.yaml").write_text(spec, encoding="utf-8")
        users = Entities(self._samples.users, self._users())
        for name, entities in (("users", users), ("items", catalogue.items)):
            (directory / name).mkdir()
            entities.keys.alias("key").to_frame().write_parquet(directory / name / "keys.parquet", statistics=False)
            write_entities(entities.table, directory / name)
        for feature, values in catalogue.item_values.items():
            (directory / "items" / "values").mkdir(exist_ok=True)
            np.save(directory / "items" / "values" / f"{feature}.npy", values)
        (directory / "history").mkdir()
        histories = [self._history(behaviour.name, behaviour.length) for behaviour in layout.behaviours]
        for behaviour, history in zip(layout.behaviours, histories, strict=True):
            write_history(history, directory / "history", behaviour.name)
        is_valid = self._rows["is_valid"].to_numpy()
        columns = self._columns(histories)
        for split, chosen in ((TRAIN, ~is_valid), (VALID, is_valid)):
            (directory / split).mkdir()
            for name, column in columns.items():
                np.save(directory / split / f"{name}.npy", column[chosen])
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            package_version=infnet.__version__,
            name=catalogue.spec.name,
            layout=layout,
            num_users=users.num,
            num_items=catalogue.items.num,
            splits={TRAIN: int((~is_valid).sum()), VALID: int(is_valid.sum())},
            fingerprint=fingerprint_of(directory),
        )
        (directory / "manifest.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        return Dataset.open(directory)

    def _columns(self, histories: Sequence[History]) -> dict[str, NDArray[Any]]:
        """By name, the columns of all rows."""
        request, rows = self._samples.request, self._rows
        times = self._requests["time_ms"].to_numpy()[request]
        items = self._catalogue.items.find(self._samples.items)
        ends = [history.starts[request + 2] for history in histories]
        context, context_dense = self._encoded("context", self._samples.context, len(self._requests))
        candidate, candidate_dense = self._encoded("candidate", self._samples.candidate, len(rows), items, times)
        return {
            "user": (request + 1).astype(np.int32),
            "item": items.astype(np.int32),
            "time": times,
            "labels": self._labels(),
            "ends": np.stack([*ends, np.zeros(len(rows), dtype=np.int64)], axis=1)[:, :-1],
            "context": context[request],
            "context_dense": context_dense[request],
            "candidate": candidate,
            "candidate_dense": candidate_dense,
        }

    def _labels(self) -> NDArray[np.float32]:
        clips = {task.name: task.clip for task in self._catalogue.spec.tasks}
        labels = np.full((len(self._rows), len(self._layout.tasks)), np.nan, dtype=np.float32)
        for index, task in enumerate(self._layout.tasks):
            found = self._rows[label_column(task.name)].cast(pl.Float32).fill_null(float("nan")).to_numpy()
            labels[:, index] = np.minimum(found, np.float32(clips.get(task.name) or np.inf))
        return labels

    def _users(self) -> EntityTable:
        """The features of every request's user."""
        known, samples = self._catalogue.users, self._samples
        index = np.append(0, known.find(samples.users))
        served = np.flatnonzero(samples.has_values)
        described = {name: values.gather(served) for name, values in samples.user.items()}
        ids, dense = self._encoded("user", described, len(served))
        table = EntityTable(known.table.ids[index], known.table.dense[index])
        table.ids[served + 1], table.dense[served + 1] = ids, dense
        return table

    def _encoded(
        self,
        side: Side,
        values: Mapping[str, pl.Series],
        num: int,
        items: NDArray[np.int64] | None = None,
        times: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids and dense values of one side; features without values read those of the items at these times."""
        ids, dense = [np.zeros((num, 0), np.int32)], [np.zeros((num, 0), np.float32)]
        for feature in side_features(list(self._encoder.features.values()), side):
            if feature.name in values:
                encoded = self._encoder.encode_read(feature.name, values[feature.name])
            else:
                assert items is not None
                assert times is not None
                of_items = self._catalogue.item_values[feature.name][items]
                encoded = feature.encode_at(of_items, times, self._encoder.fitted(feature.name))
            if feature.storage == "dense":
                dense.append(encoded.astype(np.float32, copy=False))
            else:
                ids.append(encoded.astype(np.int32, copy=False))
        return np.concatenate(ids, axis=1), np.concatenate(dense, axis=1)

    def _history(self, behaviour: str, length: int) -> History:
        """The past events of every request, oldest first; those of the unknown user, 0, are none."""
        num = len(self._requests)
        names = f"{behaviour}_items", f"{behaviour}_times"
        if not {*names} <= {*self._requests.columns}:
            return History(np.zeros(num + 2, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64))
        lists = self._requests.select(request=pl.int_range(pl.len()), item=names[0], time=names[1])
        events = lists.filter(pl.col("item").list.len() > 0).explode("item", "time")
        request, index = events["request"].to_numpy(), self._catalogue.items.find(events["item"])
        known = index > 0
        request, index, times = request[known], index[known], events["time"].to_numpy()[known]
        first = np.searchsorted(request, np.arange(num))
        here = np.arange(len(request)) - first[request] < length
        request, index, times = request[here], index[here], times[here]
        starts = np.append([0, 0], np.cumsum(np.bincount(request, minlength=num)))
        oldest_first = starts[request + 1] + starts[request + 2] - 1 - np.arange(len(request))
        return History(starts, index[oldest_first].astype(np.int32), times[oldest_first])
