"""What metrics accept: arrays of one length with finite scores and labels of 0 and 1, or a clear refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infnet.errors import DataError

__all__ = ["binary_labels", "check_same_length", "finite_numbers", "probabilities", "user_ids"]


def binary_labels(labels: ArrayLike) -> NDArray[np.bool_]:
    """Labels (n,) of any number type as bool.

    Raises:
        DataError: One is neither 0 nor 1, such as the NaN of an unobserved label.
    """
    array = _column(labels, "labels")
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind not in "iuf":
        raise DataError(f"labels are of type {array.dtype}, wanted 0 and 1; cast them to numbers")
    positive: NDArray[np.bool_] = np.not_equal(array, 0)
    bad = positive & (array != 1)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"labels row {row} is {array[row]}, wanted 0 or 1; drop unobserved rows, map other values")
    return positive


def finite_numbers(values: ArrayLike, what: str = "scores") -> NDArray[Any]:
    """Numbers (n,), float or integer as they came.

    Raises:
        DataError: One is infinite or NaN.
    """
    array = _column(values, what)
    if array.dtype.kind == "b":
        return array.view(np.uint8)
    if array.dtype.kind not in "iuf":
        raise DataError(f"{what} are of type {array.dtype}, wanted real numbers; cast them to float32 or float64")
    if array.dtype.kind == "f":
        finite = np.isfinite(array)
        if not finite.all():
            row = int(finite.argmin())
            raise DataError(f"{what} row {row} is {array[row]}, wanted a finite number; has the model diverged?")
    return array


def probabilities(values: ArrayLike) -> NDArray[np.float64]:
    """Probabilities (n,) in double precision.

    Raises:
        DataError: One is not within [0, 1].
    """
    array = finite_numbers(values, "probabilities").astype(np.float64, copy=False)
    outside = (array < 0) | (array > 1)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(f"probabilities row {row} is {array[row]}, wanted 0 to 1; apply the sigmoid to logits first")
    return array


def user_ids(users: ArrayLike) -> NDArray[Any]:
    """User ids (n,), int64, or uint64 as they came.

    Raises:
        DataError: They are not integers.
    """
    array = _column(users, "users")
    if array.size and array.dtype.kind not in "iu":
        raise DataError(f"users are of type {array.dtype}, wanted integer ids; number them first")
    return array if array.dtype == np.uint64 else array.astype(np.int64, copy=False)


def check_same_length(**columns: NDArray[Any]) -> None:
    """Refuse columns of different lengths.

    Raises:
        DataError: The message names each with its length.
    """
    if len({len(column) for column in columns.values()}) > 1:
        found = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise DataError(f"found {found}, wanted as many of each; pass one entry per row")


def _column(values: ArrayLike, what: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{what} have the shape {array.shape}, wanted one dimension (n,); pass one task at a time")
    return array
