"""Named settings judged on several validation days in turn, for choices that one day is too small to decide.

    python benchmarks/days.py RAW --spec kuairand-pure --history FILE --out runs/days \\
        --days 2022-05-01 2022-05-02 2022-05-03 2022-05-04 --set train.clip_norm=null

For each day and seed a setting is trained on the days before and judged on that day; later days are never read.
Prints a Markdown table of means over days and seeds, with the standard deviation of a single run (n - 1), most of which
is the difference between days.
"""

from __future__ import annotations

import argparse
import sys
from copy import copy
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from accuracy import open_data, table, train_and_judge
from infnet.errors import InfnetError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="raw files")
    parser.add_argument("--spec", required=True, help="YAML file or name of a known dataset")
    parser.add_argument("--history", type=Path)
    parser.add_argument("--delay-s", type=float, help="seconds after which events are seen, if not the spec's")
    parser.add_argument("--out", type=Path, required=True, help="directory of the prepared days and the runs")
    parser.add_argument("--days", type=date.fromisoformat, nargs="+", required=True)
    parser.add_argument("--settings", nargs="+", default=["default", "shared_bottom"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every run; repeatable")
    options = parser.parse_args(arguments)
    results: list[dict[str, Any]] = []
    for day in options.days:
        of_day = copy(options)
        of_day.out, of_day.split = options.out / day.isoformat(), "valid"
        of_day.valid_from, of_day.test_from = day, day + timedelta(days=1)
        dataset = open_data(of_day)
        results += [
            train_and_judge(dataset, setting, seed, of_day) for seed in options.seeds for setting in options.settings
        ]
    print(f"{len(options.days)} days, seeds {', '.join(map(str, options.seeds))}\n")
    print(table(results))


if __name__ == "__main__":
    try:
        main()
    except InfnetError as error:
        sys.exit(f"Error: {error}")
