"""An event log as the service writes it, of pairs of request and sample."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sample_partitions import BEHAVIOURS, TASKS

from infnet.serving.events import ServedHistory
from joined_log import LogFiles, a_request, an_event

__all__ = ["ServiceLog"]


class ServiceLog:
    """Grows by pairs of :func:`sample_partitions.log_samples`: a join makes of it what ``write_part`` makes of them.

    Attributes:
        path: Of the log.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = LogFiles(path)

    def add(self, pairs: Iterable[tuple[dict[str, Any], dict[str, Any]]]) -> ServiceLog:
        """Every pair as a request of one item, its impression and what followed."""
        for request, sample in pairs:
            histories = {b: ServedHistory(request[f"{b}_items"], request[f"{b}_times"]) for b in BEHAVIOURS}
            self._files.serve(
                a_request(
                    request["request_id"],
                    [sample["item_id"]],
                    request["time_ms"],
                    user_id=request["user_id"],
                    version=request["version"],
                    context=json.loads(request["context"]),
                    user=None if request["user"] is None else json.loads(request["user"]),
                    histories=histories,
                    values={name: [value] for name, value in json.loads(sample["values"]).items()},
                    predictions={task: [0.5] for task in TASKS},
                )
            )
            ids, shown_ms = (request["request_id"], sample["item_id"]), sample["impression_ms"]
            self._files.tell(an_event(*ids, "impression", shown_ms))
            for task in TASKS:
                if value := sample[f"label_{task}"]:
                    self._files.tell(an_event(*ids, task, shown_ms + 100, value=value))
        return self
