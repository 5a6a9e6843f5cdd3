"""Python imports this at its start where the directory is in PYTHONPATH: its clock is then off by as many seconds as
the file that CLOCK_OFFSET names says, whenever it is asked."""

import os
import time

_path = os.environ["CLOCK_OFFSET"]
_time, _time_ns = time.time, time.time_ns


def _offset_s() -> int:
    with open(_path, encoding="ascii") as file:
        return int(file.read() or 0)


time.time = lambda: _time() + _offset_s()
time.time_ns = lambda: _time_ns() + _offset_s() * 1_000_000_000
