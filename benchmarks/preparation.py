"""What preparing a log costs as it grows: time per row and peak memory; prints a Markdown table.

    python benchmarks/preparation.py --millions 1 5 20
    python benchmarks/preparation.py RAW --spec kuairand-pure --options --valid-from 2022-05-05 --test-from 2022-05-06

Makes synthetic worlds of about so many million rows (Parquet) in a temporary directory below --work and prepares each;
or prepares the raw directories given. Every preparation is a process of its own, whose peak memory the system reports
when it ends. The time per row leaves out the second or two in which that process loads its libraries. Uses all cores,
as `infnet prepare` itself does; `POLARS_MAX_THREADS=1 taskset -c 0 python ..` holds it to one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# This process stays small: on Linux the peak of a child counts from the size of its parent when it is started.
INFNET = [sys.executable, "-m", "infnet"]
ROWS_PER_USER_AND_DAY = 9.4
NUM_DAYS = 14


@dataclass(frozen=True)
class Measured:
    """One preparation."""

    report: dict[str, Any]
    process_s: float
    peak_mb: float

    @property
    def rows(self) -> int:
        """Of the log."""
        return int(self.report["log"]["rows_read"])

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return float(sum(self.report["seconds"].values()))

    @property
    def us_per_row(self) -> float:
        """Microseconds."""
        return 1e6 * self.seconds / self.rows


def synthesize(millions: float, out: Path) -> None:
    """A world of about so many rows, four users to three items."""
    users = max(20, round(millions * 1e6 / NUM_DAYS / ROWS_PER_USER_AND_DAY))
    size = ["--users", str(users), "--items", str(users * 3 // 4), "--days", str(NUM_DAYS)]
    subprocess.run([*INFNET, "data", "synthesize", *size, "--out", str(out), "--json"], check=True, capture_output=True)


def prepare(spec: str, raw: Path, out: Path, options: list[str]) -> Measured:
    """Prepare in a process of its own."""
    command = [*INFNET, "prepare", spec, "--raw", str(raw), "--out", str(out), "--json", *options]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        child = subprocess.Popen(command, stdout=printed)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        process_s = time.perf_counter() - started
        if child.returncode:
            sys.exit(child.returncode)  # the message stands on stderr
        printed.seek(0)
        report = json.load(printed)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return Measured(report, process_s, usage.ru_maxrss / unit)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path, nargs="*", help="raw directories; synthetic worlds by default")
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 5, 20], help="rows of each world")
    parser.add_argument("--spec", default="synthetic", help="YAML file or name of a known dataset")
    parser.add_argument("--work", type=Path, help="where to put worlds and prepared datasets; they are removed again")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="further options of infnet prepare")
    options = parser.parse_args(arguments)
    measured: list[Measured] = []
    for source in options.raw or options.millions:
        with tempfile.TemporaryDirectory(dir=options.work) as directory:
            raw = source
            if not options.raw:
                raw = Path(directory) / "raw"
                synthesize(source, raw)
            measured.append(prepare(options.spec, raw, Path(directory) / "prepared", options.options))
    print(f"{options.spec}, {os.cpu_count()} cores\n")
    print("| rows | users | items | seconds | µs/row | of the first | process, s | peak memory, MB | slowest stages |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---|")
    for one in measured:
        stages = sorted(one.report["seconds"].items(), key=lambda stage: -stage[1])[:3]
        print(
            f"| {one.rows:,} | {one.report['users']:,} | {one.report['items']:,} | {one.seconds:.1f} "
            f"| {one.us_per_row:.2f} | {one.us_per_row / measured[0].us_per_row:.2f} | {one.process_s:.1f} "
            f"| {one.peak_mb:,.0f} | {', '.join(f'{name} {seconds:.1f}' for name, seconds in stages)} |"
        )


if __name__ == "__main__":
    main()
