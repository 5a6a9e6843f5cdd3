"""A prepared dataset, opened by memory map."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from infnet.data.batch import RequestBatch
from infnet.data.batches import BatchBuilder
from infnet.data.layout import FORMAT_VERSION, Layout, Manifest
from infnet.data.sessions import Requests, SessionGrouping, group_sessions
from infnet.errors import ArtifactError, SpecError, did_you_mean

_S = TypeVar("_S", bound=np.generic)

__all__ = ["Dataset", "EntityTable", "History", "SplitRows"]


@dataclass(frozen=True)
class EntityTable:
    """Encoded features of all users or all items; row 0 is the unknown entity."""

    ids: NDArray[np.int32]
    """(n, id_width)."""
    dense: NDArray[np.float32]
    """(n, dense_width)."""


@dataclass(frozen=True)
class History:
    """One behaviour's events, user by user, oldest first."""

    starts: NDArray[np.int64]
    """(n_users + 1,)."""
    items: NDArray[np.int32]
    """(n_events,)."""
    times: NDArray[np.int64]
    """(n_events,) ms."""


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split, by user, then time."""

    user: NDArray[np.int32]
    item: NDArray[np.int32]
    time: NDArray[np.int64]
    labels: NDArray[np.float32]
    """(n, T), NaN where unobserved."""
    ends: NDArray[np.int64]
    """(n, F): where each history ends, exclusive."""
    context: NDArray[np.int32]
    context_dense: NDArray[np.float32]
    candidate: NDArray[np.int32]
    candidate_dense: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.user)


class Dataset:
    """A directory that preparation wrote; see :class:`infnet.data.layout.Manifest` for its files.

    Attributes:
        path: The directory.
        manifest: Its description, with the layout that models are built from.
        users, items: Entity tables.
        histories: One per behaviour, in the layout's order.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        layout = manifest.layout
        self.users = self._entities("users", manifest.num_users, layout.id_width("user"), layout.dense_width("user"))
        self.items = self._entities("items", manifest.num_items, layout.id_width("item"), layout.dense_width("item"))
        self.histories = tuple(self._history(b.name) for b in layout.behaviours)
        self._splits = {name: self._split(name, rows) for name, rows in manifest.splits.items()}

    @classmethod
    def open(cls, path: Path | str) -> Dataset:
        """Open a prepared dataset; its arrays are read from disk as they are used.

        Raises:
            ArtifactError: It is no prepared dataset, is damaged, or another version of this package wrote it.
        """
        path = Path(path)
        try:
            manifest = Manifest.model_validate_json((path / "manifest.json").read_bytes())
        except OSError as error:
            raise ArtifactError(
                f"{path}: is no prepared dataset (manifest.json: {error.strerror}); make one with 'infnet prepare'"
            ) from error
        except ValidationError as error:
            found = _format_version(path / "manifest.json")
            if found is not None and found != FORMAT_VERSION:
                raise _wrong_version(path, found) from error
            first = error.errors()[0]
            raise ArtifactError(
                f"{path / 'manifest.json'}: {'.'.join(map(str, first['loc'])) or 'file'} is damaged ({first['msg']}); "
                "prepare it again"
            ) from error
        if manifest.format_version != FORMAT_VERSION:
            raise _wrong_version(path, manifest.format_version)
        return cls(path, manifest)

    @property
    def layout(self) -> Layout:
        """What models need to know."""
        return self.manifest.layout

    def with_history_lengths(self, lengths: Sequence[int]) -> Dataset:
        """The same files with other history lengths, one per behaviour; what was trained on one view fits that alone.

        Raises:
            SpecError: There are not as many as behaviours, or one is less than 1.
        """
        behaviours = self.layout.behaviours
        if len(lengths) != len(behaviours) or any(length < 1 for length in lengths):
            names = ", ".join(behaviour.name for behaviour in behaviours) or "none"
            raise SpecError(f"history lengths are {list(lengths)}, wanted at least 1 for each behaviour ({names})")
        shown = [b.model_copy(update={"length": length}) for b, length in zip(behaviours, lengths, strict=True)]
        layout = self.layout.model_copy(update={"behaviours": tuple(shown)})
        return Dataset(self.path, self.manifest.model_copy(update={"layout": layout}))

    def rows(self, split: str) -> SplitRows:
        """The rows of a split.

        Raises:
            ArtifactError: There is no such split.
        """
        if split not in self._splits:
            raise ArtifactError(f"{self.path}: has no split '{split}'{did_you_mean(split, self._splits)}")
        return self._splits[split]

    def num_rows(self, split: str) -> int:
        """Rows in a split."""
        return len(self.rows(split))

    def num_batches(
        self,
        split: str,
        batch_size: int,
        sessions: SessionGrouping | None = None,
        *,
        seed: int | None = None,
        epoch: int = 0,
    ) -> int:
        """Batches in one pass over a split; of sessions, that depends a little on how the pass is shuffled."""
        if sessions is None:
            return math.ceil(self.num_rows(split) / batch_size)
        return len(self._requests(split, sessions).batches(batch_size, seed, epoch))

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        skip: int = 0,
        sessions: SessionGrouping | None = None,
        gaps: bool = False,
    ) -> Iterator[RequestBatch]:
        """One pass over a split, about ``batch_size`` rows at a time.

        Args:
            split: Name of the split.
            batch_size: Rows a batch; with ``sessions``, at most.
            seed: Shuffle, in an order that depends on ``(seed, epoch)`` alone; None keeps the order of the rows.
            epoch: Which pass this is.
            skip: Start after this many batches.
            sessions: Group a user's rows of one session into one request (N > 1); None makes each row a request.
            gaps: Fill in the time since every event, as models with ``layout.has_gaps`` need; else only as declared.
        """
        builder = BatchBuilder(self, self.rows(split), gaps=gaps)
        for rows in self._requests(split, sessions).batches(batch_size, seed, epoch)[skip:]:
            yield builder.build(rows)

    def _requests(self, split: str, sessions: SessionGrouping | None) -> Requests:
        rows = self.rows(split)
        if sessions is None:
            return Requests(np.arange(len(rows) + 1))
        return group_sessions(rows.user, rows.time, (rows.context, rows.context_dense), sessions)

    def _entities(self, name: str, num: int, id_width: int, dense_width: int) -> EntityTable:
        return EntityTable(
            self._array(f"{name}/ids.npy", np.int32, (num, id_width)),
            self._array(f"{name}/dense.npy", np.float32, (num, dense_width)),
        )

    def _history(self, name: str) -> History:
        starts = self._array(f"history/{name}.starts.npy", np.int64, (self.manifest.num_users + 1,))
        num = int(starts[-1])
        return History(
            starts,
            self._array(f"history/{name}.items.npy", np.int32, (num,)),
            self._array(f"history/{name}.times.npy", np.int64, (num,)),
        )

    def _split(self, name: str, num: int) -> SplitRows:
        layout = self.manifest.layout
        return SplitRows(
            user=self._array(f"{name}/user.npy", np.int32, (num,)),
            item=self._array(f"{name}/item.npy", np.int32, (num,)),
            time=self._array(f"{name}/time.npy", np.int64, (num,)),
            labels=self._array(f"{name}/labels.npy", np.float32, (num, len(layout.tasks))),
            ends=self._array(f"{name}/ends.npy", np.int64, (num, len(layout.behaviours))),
            context=self._array(f"{name}/context.npy", np.int32, (num, layout.id_width("context"))),
            context_dense=self._array(f"{name}/context_dense.npy", np.float32, (num, layout.dense_width("context"))),
            candidate=self._array(f"{name}/candidate.npy", np.int32, (num, layout.id_width("candidate"))),
            candidate_dense=self._array(
                f"{name}/candidate_dense.npy", np.float32, (num, layout.dense_width("candidate"))
            ),
        )

    def _array(self, name: str, dtype: type[_S], shape: tuple[int, ...]) -> NDArray[_S]:
        if 0 in shape:
            return np.zeros(shape, dtype)
        file = self.path / name
        try:
            array = np.load(file, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"{file}: cannot be read ({error}); prepare the dataset again") from error
        if array.dtype != dtype or array.shape != shape:
            raise ArtifactError(
                f"{file}: holds {array.dtype} {array.shape}, wanted {np.dtype(dtype)} {shape}; prepare it again"
            )
        # A plain view: indexing np.memmap itself goes through a slow Python subclass.
        return array.view(np.ndarray)


def _format_version(file: Path) -> int | None:
    try:
        version = json.loads(file.read_bytes()).get("format_version")
    except (OSError, ValueError, AttributeError):
        return None
    return version if isinstance(version, int) else None


def _wrong_version(path: Path, found: int) -> ArtifactError:
    return ArtifactError(
        f"{path}: was prepared in format {found}, this package reads format {FORMAT_VERSION}; "
        "prepare it again with this version, or install the one that wrote it"
    )
