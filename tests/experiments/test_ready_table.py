"""User tables that somebody else made: what they must hold, who counts, and how errors say it."""

import polars as pl
import pytest

from infnet.errors import DataError
from infnet.experiments.metrics import parse_metric
from infnet.experiments.ready_table import ReadyTable
from infnet.experiments.spec import Experiment

ORDERS = parse_metric("orders")
EXPERIMENT = Experiment.model_validate(
    {"name": "e", "variants": [{"name": "control"}, {"name": "new"}], "forced": {"tester": "new"}}
)


@pytest.fixture
def table(tmp_path):
    def write(text, name="t.csv"):
        (tmp_path / name).write_text(text)
        return ReadyTable.read(tmp_path / name)

    return write


def test_csv_and_parquet_say_the_same(tmp_path, table):
    csv = table("user_id,variant,orders,city\n1,control,2,x\n2,new,0.5,\n")
    csv.rows.write_parquet(tmp_path / "t.parquet")
    for one in (csv, ReadyTable.read(tmp_path / "t.parquet")):
        found = one.users(EXPERIMENT, [ORDERS], ["city"])
        assert found.users["orders"].to_list() == [2.0, 0.5]
        assert found.users["city"].to_list() == ["x", "(none)"]
        assert found.counts(EXPERIMENT) == {"control": 1, "new": 1}


def test_ids_are_texts_and_a_column_may_become_a_fraction_late(table):
    rows = "".join(f"{user},control,1\n" for user in range(300))
    found = table(f"user_id,variant,orders\n{rows}007,control,1.5\n").users(EXPERIMENT, [ORDERS]).users
    assert found.height == 301
    assert found["user_id"].to_list()[-1] == "007"


def test_every_column_of_numbers_is_a_metric_by_default(table):
    found = table("user_id,variant,orders,watch.value,orders_before,first_ms,city\n1,new,1,2,3,4,x\n")
    assert [metric.name for metric in found.default_metrics()] == ["orders", "watch.value"]


def test_who_does_not_count_is_left_out_and_told(table):
    found = table(
        "user_id,variant,orders\nanna,new,1\notto,control,1\notto,new,1\nfritz,nwe,1\n"
        "tester,new,1\ntester,control,1\neve,control,1\n"
    ).users(EXPERIMENT, [ORDERS])
    assert found.users["user_id"].to_list() == ["anna", "eve"]
    assert (found.crossed, found.unknown, found.forced) == (1, {"nwe": 1}, 1)


def test_without_an_experiment_every_user_counts_once(table):
    found = table("user_id,variant,orders\nanna,new,1\notto,control,1\notto,new,1\n").users(None, [ORDERS])
    assert found.users.select("user_id", "variant").rows() == [("anna", "all"), ("otto", "all")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,variant\n1,a\n", "t.csv: has no column 'user_id'; did you mean 'user'?"),
        ("user_id,varient\n1,a\n", "t.csv: has no column 'variant'; did you mean 'varient'?"),
        ("user_id,variant\n1,a\n2,\n", "t.csv: column 'variant' is empty in row 2; fill or drop it"),
        ("user_id,variant\n", "t.csv: has no rows; wanted one per user"),
        ("user_id,variant\n1,a\n1,b\n1,a\n", "t.csv: user '1' has two rows in one variant; sum them up to one"),
        ("", "t.csv: cannot be read (empty CSV); give a Parquet or CSV file"),
    ],
)
def test_what_is_no_user_table_is_told(tmp_path, table, text, message):
    with pytest.raises(DataError) as error:
        table(text)
    assert str(error.value).removeprefix(f"{tmp_path}/") == message


@pytest.mark.parametrize(
    ("column", "segments", "message"),
    [
        ("orders", ["town"], "t.csv: has no column 'town' to split by; known are: city, orders, user_id, variant"),
        ("oders", [], "t.csv: has no column 'oders', which a metric needs; did you mean 'orders'?"),
        ("city", [], "t.csv: column 'city' holds String, wanted numbers"),
    ],
)
def test_a_column_that_is_needed_is_named(tmp_path, table, column, segments, message):
    ready = table("user_id,variant,orders,city\n1,control,1,x\n2,new,2,y\n")
    with pytest.raises(DataError) as error:
        ready.users(EXPERIMENT, [parse_metric(column)], segments)
    assert str(error.value).removeprefix(f"{tmp_path}/") == message


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_a_number_that_is_none_is_named_with_its_row(tmp_path, bad):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"user_id": ["1", "2"], "variant": ["control", "new"], "orders": [1.0, bad]}).write_parquet(path)
    with pytest.raises(DataError, match=r"column 'orders' is no finite number in row 2; write 0 for none"):
        ReadyTable.read(path).users(EXPERIMENT, [ORDERS])
