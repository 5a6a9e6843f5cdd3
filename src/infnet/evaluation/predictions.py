"""What a model said about the rows of a split, beside what happened."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infnet.errors import ArtifactError, DataError

__all__ = ["Predictions"]

_KINDS = ("binary", "regression")


@dataclass(frozen=True)
class Predictions:
    """n rows, T tasks.

    Raises:
        DataError: Shapes disagree, a task is named twice, or a kind is unknown.
    """

    tasks: tuple[str, ...]
    """(T,) names, in column order."""
    kinds: tuple[str, ...]
    """(T,) ``binary`` or ``regression``."""
    labels: NDArray[np.floating[Any]]
    """(n, T), NaN where unobserved."""
    scores: NDArray[np.floating[Any]]
    """(n, T): probabilities, or values in the label's unit."""
    users: NDArray[np.integer[Any]]
    """(n,) user index of the dataset."""

    def __post_init__(self) -> None:
        wanted = (len(self.users), len(self.tasks))
        for what, array in (("labels", self.labels), ("scores", self.scores)):
            if array.shape != wanted:
                raise DataError(f"predictions: {what} have the shape {array.shape}, wanted (users, tasks) = {wanted}")
        if len(self.kinds) != len(self.tasks) or not set(self.kinds) <= set(_KINDS):
            raise DataError(f"predictions: kinds are {self.kinds}, wanted one of {_KINDS} for each of {self.tasks}")
        if len(set(self.tasks)) != len(self.tasks):
            raise DataError(f"predictions: tasks {self.tasks} name one twice; give each its own name")

    def __len__(self) -> int:
        return len(self.users)

    def save(self, path: Path) -> None:
        """Write to one ``.npz`` file, whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as file:
                np.savez(
                    file,
                    tasks=np.array(self.tasks, dtype=np.str_),
                    kinds=np.array(self.kinds, dtype=np.str_),
                    labels=self.labels,
                    scores=self.scores,
                    users=self.users,
                )
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: It is no such file, or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                tasks, kinds = (tuple(str(name) for name in arrays[key]) for key in ("tasks", "kinds"))
                return cls(tasks, kinds, arrays["labels"], arrays["scores"], arrays["users"])
        except FileNotFoundError as error:
            raise ArtifactError(f"{path}: is not there; save predictions first") from error
        except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile, DataError) as error:
            raise ArtifactError(f"{path}: holds no predictions ({error}); predict again") from error
