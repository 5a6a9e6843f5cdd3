"""The exception tree: what can go wrong, and whose turn it is to mend it.

Every message is one line that says where (file, line, field), what was found, what was wanted, and the way out.
The command line prints the message alone and exits with 2 for :class:`InputError`, with 1 for anything else.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ArtifactError",
    "DataError",
    "InfnetError",
    "InputError",
    "ServiceError",
    "SpecError",
    "StoreError",
    "TrainingError",
    "did_you_mean",
]


class InfnetError(Exception):
    """Base of everything this package raises on purpose."""


class InputError(InfnetError):
    """What was given cannot be used; the caller can mend it. Exit code 2."""


class SpecError(InputError):
    """A declaration (dataset spec, model config, command-line setting) is wrong."""


class DataError(InputError):
    """A data file, a column or a value is not what the spec declares."""


class ArtifactError(InputError):
    """A file that this package wrote (prepared dataset, run, checkpoint) is damaged or of another version."""


class TrainingError(InfnetError):
    """Training cannot go on, such as a loss that is no number. Exit code 1."""


class ServiceError(InfnetError):
    """A service that is asked over the network does not answer, or not as it should. Exit code 1."""


class StoreError(InfnetError):
    """A feature store or an event log does not answer or does not take what it is given. Exit code 1."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'video_id'?"`` for a near miss, otherwise the known names; for the end of an error message."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known are: {', '.join(names)}" if names else ""
