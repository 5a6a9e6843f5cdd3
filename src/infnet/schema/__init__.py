"""What a log means: features, behaviours, tasks, keys and split, as one validated YAML file.

Every other module reads these declarations; none of them re-declares one.
"""

from infnet.schema.reading import load_spec, parse_spec
from infnet.schema.spec import Behaviour, DatasetSpec, LogTable, SideTable, Split, Task

__all__ = [
    "Behaviour",
    "DatasetSpec",
    "LogTable",
    "SideTable",
    "Split",
    "Task",
    "load_spec",
    "parse_spec",
]
