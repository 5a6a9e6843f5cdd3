from contextlib import suppress
from datetime import date

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from infnet.errors import InputError, SpecError
from infnet.features import CategoryFeature, IdFeature
from infnet.schema import DatasetSpec, load_spec, parse_spec

SHOP = """\
name: shop
timezone: Asia/Shanghai
log:
  files: ["log*.csv"]
  user: user_id
  item: item_id
  time: time_ms
features:
  - {kind: id, name: user_id, side: user}
  - {kind: id, name: item_id, side: item}
  - kind: category
    name: author
    side: item
    column: author_id
behaviours:
  - name: click
    filter: is_click == 1
    length: 50
tasks:
  - {name: click, label: is_click}
  - {name: watch_time, label: watch_s, kind: regression}
split:
  valid_from: 2022-05-05
  test_from: 2022-05-06
"""
DATES = "  valid_from: 2022-05-05\n  test_from: 2022-05-06\n"


def with_change(old, new):
    assert SHOP.count(old) == 1, "the change must hit one place"
    return SHOP.replace(old, new)


def refusal(text):
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "shop.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("shop.yaml, line ")
    return message.removeprefix("shop.yaml, ")


def test_a_spec_says_what_was_declared_and_fills_in_the_rest():
    spec = parse_spec(SHOP)
    assert [type(feature) for feature in spec.features] == [IdFeature, IdFeature, CategoryFeature]
    assert spec.features[2].column == "author_id"
    assert spec.behaviour_fields(spec.behaviours[0]) == ["item_id"]
    assert [task.resolved_loss for task in spec.tasks] == ["bce", "mse"]
    assert spec.split.test_from == date(2022, 5, 6)


def test_what_is_written_from_a_spec_reads_as_the_same_spec():
    spec = parse_spec(SHOP)
    written = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)
    assert parse_spec(written) == spec


@pytest.mark.parametrize(
    ("old", "new", "line", "suggestion"),
    [
        ("features:", "featurs:", 8, "'featurs'; did you mean 'features'?"),
        ("  user: user_id", "  usr: user_id", 5, "'log.usr'; did you mean 'user'?"),
        ("kind: category", "kind: categori", 11, "'categori'; did you mean 'category'?"),
        ("    column: author_id", "    colum: author_id", 14, "'features.2.colum'; did you mean 'column'?"),
        ("    column: author_id", "    min_cuont: 2", 14, "'features.2.min_cuont'; did you mean 'min_count'?"),
        ("    length: 50", "    lenght: 50", 18, "'behaviours.0.lenght'; did you mean 'length'?"),
        ("label: watch_s", "lable: watch_s", 21, "'tasks.1.lable'; did you mean 'label'?"),
        ("  test_from:", "  test_form:", 24, "'split.test_form'; did you mean 'test_from'?"),
        ("Asia/Shanghai", "Asia/Shanghia", 2, "'Asia/Shanghia'; did you mean 'Asia/Shanghai'?"),
    ],
)
def test_a_misspelling_is_named_with_its_line_and_the_nearest_name(old, new, line, suggestion):
    message = refusal(with_change(old, new))
    assert message.startswith(f"line {line}: ")
    assert message.endswith(suggestion)


@pytest.mark.parametrize(
    ("old", "new", "line", "found"),
    [
        ("    side: item\n", "    side: itm\n", 13, "found 'itm'"),
        ("length: 50", "length: 0", 18, "found 0"),
        ("length: 50", "length: fifty", 18, "found 'fifty'"),
        ("kind: regression", "kind: regresion", 21, "found 'regresion'"),
        ("valid_from: 2022-05-05", "valid_from: in May", 23, "found 'in May'"),
        ('["log*.csv"]', "[]", 4, "found []"),
        ("name: shop", "name: the shop", 1, "found 'the shop'"),
        ("name: watch_time", "name: watch-time", 21, "found 'watch-time'"),
        ("time: time_ms", "time: time_ms\n  time_unit: h", 8, "found 'h'"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(old, new, line, found):
    message = refusal(with_change(old, new))
    assert message.startswith(f"line {line}: ")
    assert message.endswith(found)


@pytest.mark.parametrize(
    ("gone", "line", "field"),
    [
        ("  time: time_ms\n", 3, "log.time"),
        ("    filter: is_click == 1\n", 16, "behaviours.0.filter"),
        ("name: shop\n", 1, "name"),
        ("    name: author\n", 11, "features.2.name"),
    ],
)
def test_a_missing_setting_is_named_with_the_line_of_what_lacks_it(gone, line, field):
    assert refusal(with_change(gone, "")) == f"line {line}: {field}: Field required"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: author\n", "name: item_id\n", "line 12: features.2.name: feature 'item_id' is declared twice"),
        ("name: watch_time", "name: click", "line 21: tasks.1.name: task 'click' is declared twice"),
        (
            "tasks:\n",
            "  - {name: click, filter: x > 1, length: 5}\ntasks:\n",
            "line 19: behaviours.1.name: behaviour 'click' is declared twice",
        ),
        ("name: shop\n", "name: shop\nname: mall\n", "line 2: 'name' stands in line 1 already"),
        ("{name: click, label: is_click}", "{name: a, label: b, name: c}", "line 20: 'name' stands in line 20 already"),
    ],
)
def test_what_is_declared_twice_is_refused_at_the_second_time(old, new, message):
    assert refusal(with_change(old, new)).startswith(message)


def test_one_name_may_serve_a_feature_a_behaviour_and_a_task():
    spec = parse_spec(with_change("name: author\n", "name: click\n"))
    assert spec.features[2].name == spec.behaviours[0].name == spec.tasks[0].name


@pytest.mark.parametrize(
    ("fields", "ending"),
    [
        ("[autor]", "which is no categorical item feature; did you mean 'author'?"),
        ("[item_id, user_id]", "which is no categorical item feature; known are: author, item_id"),
    ],
)
def test_a_behaviour_of_an_unknown_field_is_refused_with_what_it_may_name(fields, ending):
    message = refusal(with_change("    length: 50", f"    length: 50\n    fields: {fields}"))
    assert message.startswith("line 19: behaviours.0.fields.")
    assert message.endswith(ending)


def test_a_behaviour_cannot_be_made_of_dense_features():
    text = with_change("  - kind: category\n", "  - kind: value\n")
    message = refusal(text.replace("    length: 50", "    length: 50\n    fields: [author]"))
    assert "builds its tokens from 'author'" in message


def test_a_behaviour_needs_something_to_build_tokens_from():
    message = refusal(with_change("  - {kind: id, name: item_id, side: item}\n", ""))
    assert message == "line 15: behaviours.0: behaviour 'click' needs fields: declare an item feature of kind id"


@pytest.mark.parametrize(
    ("declared", "wanted"),
    [
        ("{name: user_id, side: user}", "a feature needs a kind; known are: age, category,"),
        ("user_id", "a feature needs a kind"),
        ("{kind: [id], name: user_id, side: user}", "unknown feature kind"),
        ("{kind: null, name: user_id, side: user}", "unknown feature kind 'None'"),
    ],
)
def test_a_feature_without_a_usable_kind_is_refused_with_the_kinds_there_are(declared, wanted):
    message = refusal(with_change("{kind: id, name: user_id, side: user}", declared))
    assert message.startswith("line 9: features[0]: ")
    assert wanted in message


def test_an_id_belongs_to_a_user_or_an_item():
    message = refusal(with_change("name: user_id, side: user", "name: user_id, side: context"))
    assert message == "line 9: features.0.side: feature 'user_id' of kind id is of side user or item, not context"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("loss: mse", "task 'click' is binary, so its loss is bce, not mse"),
        ("clip: 3", "task 'click' is binary; clip is for regression"),
        ("kind: regression, loss: bce", "task 'click' is a regression; its loss is mse, huber or log_mse"),
    ],
)
def test_a_loss_that_does_not_fit_its_task_is_refused(options, wanted):
    message = refusal(with_change("label: is_click}", f"label: is_click, {options}}}"))
    assert message == f"line 20: tasks.0: {wanted}"


def test_no_task_is_called_like_the_average_over_tasks():
    message = refusal(with_change("name: watch_time", "name: mean"))
    assert message.startswith("line 21: tasks.1.name: task 'mean' needs another name")


@pytest.mark.parametrize(
    ("split", "wanted"),
    [
        ("  valid_from: 2022-05-05\n", "valid_from earlier than test_from"),
        ("  test_from: 2022-05-06\n", "valid_from earlier than test_from"),
        ("  valid_from: 2022-05-06\n  test_from: 2022-05-06\n", "valid_from earlier than test_from"),
        ("  random: true\n", "either valid_from and test_from, or fractions"),
        (DATES + "  fractions: [0.1, 0.1]\n", "either valid_from and test_from, or fractions"),
        (DATES + "  per_user: true\n", "per_user and random go with fractions"),
        (DATES + "  random: true\n", "per_user and random go with fractions"),
        ("  fractions: [0.5, 0.5]\n", "sum to less than 1"),
        ("  fractions: [0.0, 0.5]\n", "must each be over 0"),
        ("  fractions: [0.5, -0.1]\n", "must each be over 0"),
        (DATES + "  extra: {train: is_rand == 1}\n", "extra split 'train' needs another name"),
        (DATES + "  extra: {../up: is_rand == 1}\n", "extra split '../up' needs another name"),
    ],
)
def test_a_split_that_is_none_is_refused(split, wanted):
    message = refusal(with_change(DATES, split))
    assert message.startswith("line 22: split: ")
    assert wanted in message


@pytest.mark.parametrize("options", ["", "  per_user: true\n", "  random: true\n", "  extra: {random: is_rand == 1}\n"])
def test_fractions_stand_in_for_dates(options):
    split = parse_spec(with_change(DATES, "  fractions: [0.1, 0.2]\n" + options)).split
    assert split.fractions == (0.1, 0.2)
    assert split.valid_from is None


def test_a_log_without_time_is_split_by_fractions():
    timeless = with_change("time: time_ms", "time: null")
    assert refusal(timeless) == "line 22: split: a log without a time column is split by fractions, not by dates"
    assert parse_spec(timeless.replace(DATES, "  fractions: [0.1, 0.1]\n")).log.time is None


def test_another_split_keeps_everything_else():
    spec = parse_spec(with_change(DATES, DATES + "  extra: {random: is_rand == 1}\n"))
    moved = spec.with_split(date(2022, 5, 1), date(2022, 5, 2))
    assert (moved.split.valid_from, moved.split.test_from) == (date(2022, 5, 1), date(2022, 5, 2))
    assert moved.split.extra == spec.split.extra
    assert moved.model_dump(exclude={"split"}) == spec.model_dump(exclude={"split"})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (with_change("name: shop", "name: [shop"), 2),
        (with_change("name: shop", "\tname: shop"), 1),
        (with_change("  user: user_id", "  user: user_id: 3"), 5),
        (with_change("  user: user_id", "  user: *nobody"), 5),
        (with_change("name: shop", "name: shop\x00"), 1),
        (with_change("  user: user_id", "  user: a\x07b"), 5),
        (SHOP + "---\nname: second\n", 25),
        (with_change("name: shop", "name: !!python/object:os.system {}"), 1),
    ],
)
def test_text_that_is_no_yaml_is_refused_with_its_line(text, line):
    assert refusal(text).startswith(f"line {line}: not valid YAML: ")


@pytest.mark.parametrize("text", ["", "just words", "- a\n- list\n", "3", "null"])
def test_yaml_that_is_no_mapping_is_refused(text):
    assert refusal(text) == "line 1: a spec is a mapping with name, log, features, tasks and split"


def test_an_alias_that_contains_itself_is_refused():
    assert "a feature needs a kind" in refusal("features: &loop [*loop]\n")


@given(
    text=st.one_of(st.text(), st.dictionaries(st.sampled_from(["name", "log", "features"]), st.none()).map(yaml.dump))
)
def test_no_text_makes_it_fail_in_another_way(text):
    with pytest.raises(InputError):
        parse_spec(text)


@given(
    key=st.sampled_from(["name", "timezone", "log", "user", "item", "features", "behaviours", "tasks", "split"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text("abc", max_size=3),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "kind"]), inner, max_size=2)
        ),
        max_leaves=5,
    ),
)
def test_no_value_in_any_place_makes_it_fail_in_another_way(key, value):
    raw = yaml.safe_load(SHOP) | {key: value}
    with suppress(InputError):
        assert isinstance(parse_spec(yaml.safe_dump(raw, sort_keys=False)), DatasetSpec)


def test_a_file_is_read_and_named_in_what_is_wrong_with_it(tmp_path):
    file = tmp_path / "shop.yaml"
    file.write_text(SHOP, encoding="utf-8")
    assert load_spec(file) == parse_spec(SHOP)

    file.write_text(with_change("length: 50", "length: -1"), encoding="utf-8")
    with pytest.raises(SpecError, match=r"shop\.yaml, line 18: behaviours\.0\.length"):
        load_spec(file)

    file.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(SpecError, match=r"shop\.yaml: is not UTF-8 text"):
        load_spec(file)

    with pytest.raises(SpecError, match=r"none\.yaml: cannot be read"):
        load_spec(tmp_path / "none.yaml")
