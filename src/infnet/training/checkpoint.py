"""A checkpoint: tensors and JSON in one safetensors file, written whole or not at all, checked when read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from infnet.errors import ArtifactError, TrainingError

__all__ = [
    "CHECKPOINT_VERSION",
    "Checkpoint",
    "load_checkpoint",
    "load_parameters",
    "save_checkpoint",
    "write_atomically",
]

CHECKPOINT_VERSION = 1

_KEY = "infnet"
"""Of the one entry in the metadata of the file."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """Anything that JSON holds; floats come back bit for bit."""


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint over any older one at ``path``; whenever the process dies, one of the two is there, whole.

    Args:
        path: The file, of type ``.safetensors``.
        tensors: By name, on any device.
        state: Anything that JSON holds.

    Raises:
        TrainingError: The disk does not take it; the older checkpoint stays.
    """
    held: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        held[name] = own.clone() if place in places else own  # tied parameters are written twice
        places.add(place)
    text = json.dumps(state, sort_keys=True)
    about = {"version": CHECKPOINT_VERSION, "sha256": _digest(text, held), "state": text}
    with _replacing(path) as temporary:
        try:
            save_file(held, temporary, {_KEY: json.dumps(about)})  # of several keys the order would vary
        except SafetensorError as error:
            raise TrainingError(
                f"{path}: cannot be written ({error}); free space there, then go on from the checkpoint before"
            ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and check its contents against its checksum. Executes nothing it reads.

    Raises:
        ArtifactError: The file is missing, damaged or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        if not path.exists():
            raise ArtifactError(
                f"{path}: there is no checkpoint; train, or resume the run that should hold it"
            ) from None
        raise ArtifactError(f"{path}: cannot be read ({error}); check the disk and its permissions") from error
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if about.get("version") != CHECKPOINT_VERSION:
        raise ArtifactError(
            f"{path}: is a checkpoint of format {about.get('version', 'unknown')}, this package reads format "
            f"{CHECKPOINT_VERSION}; use the version that wrote it, or train again"
        )
    text = about.get("state", "")
    if _digest(text, tensors) != about.get("sha256"):
        raise _damaged(path, "its contents do not match its checksum")
    return Checkpoint(tensors, json.loads(text))


def load_parameters(model: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Copy a checkpoint's tensors into a model of the same shape.

    Raises:
        ArtifactError: Names or shapes differ.
    """
    own = model.state_dict()
    for name in sorted(own.keys() ^ checkpoint.tensors.keys()):
        where = "the model, not the checkpoint" if name in own else "the checkpoint, not the model"
        raise ArtifactError(f"{path}: parameter {name} is in {where}; use the version that wrote it, or train again")
    for name, tensor in own.items():
        found = checkpoint.tensors[name]
        if found.shape != tensor.shape:
            raise ArtifactError(
                f"{path}: {name} has the shape {tuple(found.shape)}, the model wants {tuple(tensor.shape)}; "
                "use the version that wrote it, or train again"
            )
    model.load_state_dict(checkpoint.tensors)


def write_atomically(path: Path, content: str) -> None:
    """Write a text file so that it is there whole or not at all."""
    with _replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``; what was written there takes its place once it is safely on disk."""
    temporary = path.with_name(f".{path.name}.tmp")  # a killed process leaves one at most
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return  # elsewhere a directory cannot be opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path}: the checkpoint is damaged ({what}); restore it from a copy, or train again")


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
