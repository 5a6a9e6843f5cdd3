import json
import os

import numpy as np
import pytest
import torch

from infnet.data.dataset import Dataset
from infnet.data.sessions import SessionGrouping
from infnet.errors import ArtifactError, SpecError
from random_batches import make_layout
from random_dataset import write_random_dataset
from raw_logs import make_log, make_spec, prepare_frames
from small_dataset import write_dataset

NUM_ROWS = 203
SESSIONS = SessionGrouping(gap_s=300, max_candidates=4)
groupings = pytest.mark.parametrize("sessions", [None, SESSIONS], ids=["rows", "sessions"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    layout = make_layout(tags=True, dense=True, context=1, gap=True, tasks=2)
    return write_random_dataset(tmp_path_factory.mktemp("dataset"), layout, num_rows=NUM_ROWS)


def row_numbers(batches):
    """Per batch the numbers of its rows, in order; every row carries its number as the last label."""
    return [batch.labels[..., -1][batch.present].long().tolist() for batch in batches]


def flat(batches):
    return [row for batch in row_numbers(batches) for row in batch]


@groupings
@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_every_row_appears_once_per_epoch(dataset, sessions, seed, batch_size):
    if batch_size < SESSIONS.max_candidates and sessions is not None:
        sessions = SessionGrouping(gap_s=300, max_candidates=2)
    found = row_numbers(dataset.batches("train", batch_size, seed=seed, sessions=sessions))
    assert sorted(row for rows in found for row in rows) == list(range(NUM_ROWS))
    assert all(0 < len(rows) <= max(batch_size, 2) for rows in found)
    if sessions is None:
        assert {len(rows) for rows in found[:-1]} <= {batch_size}


@groupings
def test_rows_come_in_order_unless_they_are_shuffled(dataset, sessions):
    in_order = list(range(NUM_ROWS))
    assert flat(dataset.batches("train", 20, sessions=sessions)) == in_order
    assert flat(dataset.batches("train", 20, sessions=sessions, epoch=3)) == in_order
    assert flat(dataset.batches("train", 20, sessions=sessions, seed=0)) != in_order


@groupings
def test_shuffling_depends_on_seed_and_epoch_alone(dataset, sessions):
    def order(seed, epoch, opened=dataset):
        return row_numbers(opened.batches("train", 20, seed=seed, epoch=epoch, sessions=sessions))

    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = order(3, 1)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    list(dataset.batches("train", 7, seed=9))
    assert order(3, 1) == first
    assert order(3, 1, Dataset.open(dataset.path)) == first
    assert order(3, 0) != first != order(4, 1)


@groupings
@pytest.mark.parametrize("skip", [1, 5, 10_000])
def test_skipping_equals_dropping_batches(dataset, sessions, skip):
    arguments = {"seed": 3, "epoch": 2, "sessions": sessions}
    all_of_them = list(dataset.batches("train", 20, **arguments))
    late = list(dataset.batches("train", 20, skip=skip, **arguments))
    assert len(late) == max(0, len(all_of_them) - skip)
    for found, wanted in zip(late, all_of_them[skip:], strict=True):
        assert torch.equal(found.rows, wanted.rows)
        assert torch.equal(found.history, wanted.history)
        assert torch.equal(found.labels.nan_to_num(-1), wanted.labels.nan_to_num(-1))


@groupings
@pytest.mark.parametrize("batch_size", [1, 7, 64, NUM_ROWS])
def test_the_number_of_batches_is_known_beforehand(dataset, sessions, batch_size):
    for seed, epoch in ((None, 0), (0, 0), (0, 1), (0, 2), (5, 0)):
        made = len(list(dataset.batches("train", batch_size, seed=seed, epoch=epoch, sessions=sessions)))
        assert dataset.num_batches("train", batch_size, sessions, seed=seed, epoch=epoch) == made


def test_the_rows_of_a_page_share_user_and_context_and_follow_each_other_closely(dataset):
    rows = dataset.rows("train")
    sizes = []
    for batch in dataset.batches("train", 30, seed=1, sessions=SESSIONS):
        for numbers, present in zip(batch.labels[..., -1].tolist(), batch.present.tolist(), strict=True):
            page = [int(n) for n, here in zip(numbers, present, strict=True) if here]
            sizes.append(len(page))
            assert page == list(range(page[0], page[0] + len(page)))
            for column in (rows.user, rows.context, rows.context_dense):
                assert (column[page] == column[page[0]]).all()
            assert (np.diff(rows.time[page]) <= 300_000).all()
    assert max(sizes) > 1
    assert len(sizes) > 1


def test_dense_context_values_keep_rows_apart(tmp_path):
    layout = make_layout(context=0, dense=True, rich_sides=("context",), tasks=2)
    dataset = write_random_dataset(tmp_path, layout, num_rows=80)
    everything = SessionGrouping(gap_s=1e9, max_candidates=100)
    for batch in dataset.batches("train", 80, sessions=everything):
        for request in range(batch.num_requests):
            page = batch.labels[request, :, -1][batch.present[request]].long()
            values = torch.from_numpy(dataset.rows("train").context_dense[page.numpy()])
            assert torch.equal(values, batch.context.dense[request].expand_as(values))


def test_what_preparation_wrote_opens_and_gives_the_same_rows(tmp_path):
    prepared, _ = prepare_frames(make_spec(), tmp_path, {"log.csv": make_log()})
    dataset = Dataset.open(str(prepared.path))
    assert dataset.manifest.splits == {"train": 8, "valid": 8, "test": 8}
    for split in dataset.manifest.splits:
        rows = dataset.rows(split)
        assert len(rows) == dataset.num_rows(split) == 8
        found = [
            (prepared.users[u], prepared.items[i], t) for u, i, t in zip(rows.user, rows.item, rows.time, strict=True)
        ]
        assert found == prepared.rows(split)
        users = [user for batch in dataset.batches(split, 3) for user in batch.user_index.tolist()]
        assert [prepared.users[u] for u in users] == [user for user, _, _ in found]
    embedded = {prepared.vocabulary("user")[key] for key in prepared.users[1:]}
    assert embedded == {int(row) for b in dataset.batches("train", 3) for row in b.rows[b.user.ids[:, 0].long()]}


def refusal(path):
    with pytest.raises(ArtifactError) as caught:
        Dataset.open(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_what_is_no_dataset_is_refused_with_the_way_to_make_one(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("missing", "empty", "file"):
        message = refusal(tmp_path / name)
        assert "is no prepared dataset" in message
        assert "infnet prepare" in message


@pytest.fixture
def path(tmp_path):
    write_dataset(tmp_path / "data", {"train": 30, "valid": 10})
    return tmp_path / "data"


def rewrite_manifest(path, **changes):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize("text", [b"", b'{"format_version": 1, "na', b"[]", b"3", b"\xff\xfe", b"{}"])
def test_a_damaged_manifest_is_refused(path, text):
    (path / "manifest.json").write_bytes(text)
    message = refusal(path)
    assert "is damaged" in message
    assert message.endswith("prepare it again")


def test_a_manifest_with_a_damaged_part_names_it(path):
    rewrite_manifest(path, num_users="many")
    assert "num_users is damaged" in refusal(path)


@pytest.mark.parametrize("changes", [{"format_version": 999}, {"format_version": 999, "shards": 3}])
def test_a_dataset_of_another_format_is_refused_with_both_numbers(path, changes):
    rewrite_manifest(path, **changes)
    message = refusal(path)
    assert "was prepared in format 999, this package reads format 1" in message
    assert "prepare it again" in message


@pytest.mark.parametrize(
    "name",
    ["users/ids", "items/ids", "train/labels", "valid/time", "train/ends", "history/b0.starts", "history/b1.items"],
)
def test_a_file_that_is_missing_cut_short_or_something_else_is_refused_by_name(path, name):
    file = path / f"{name}.npy"
    whole, array = file.read_bytes(), np.load(file)

    def refused():
        message = refusal(path)
        assert f"{name}.npy" in message
        return message

    file.unlink()
    assert "cannot be read" in refused()
    for content in (b"", whole[:50], whole[:-3], b"text, not an array"):
        file.write_bytes(content)
        assert "prepare the dataset again" in refused()
    for other in (array[:-1], array.astype(np.float16), array[..., None], array.astype(array.dtype.newbyteorder())):
        np.save(file, other)
        assert f"wanted {array.dtype} {array.shape}" in refused()
    np.save(file, np.array([{"a": 1}]), allow_pickle=True)
    assert "cannot be read" in refused()
    file.write_bytes(whole)
    Dataset.open(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(path):
    (path / "train" / "item.npy").chmod(0)
    assert "item.npy" in refusal(path)


def test_an_unknown_split_is_refused_with_the_nearest(path):
    dataset = Dataset.open(path)
    for ask in (
        dataset.rows,
        dataset.num_rows,
        lambda s: dataset.num_batches(s, 8),
        lambda s: next(dataset.batches(s, 8)),
    ):
        with pytest.raises(ArtifactError, match=r"has no split 'vaild'; did you mean 'valid'\?$"):
            ask("vaild")
    with pytest.raises(ArtifactError, match=r"known are: train, valid$"):
        dataset.rows("other")


def test_a_split_without_rows_has_no_batches(tmp_path):
    dataset = write_dataset(tmp_path, {"train": 20, "valid": 0})
    for sessions in (None, SESSIONS):
        assert list(dataset.batches("valid", 8, seed=1, sessions=sessions)) == []
        assert dataset.num_batches("valid", 8, sessions) == 0


def test_a_view_with_shorter_histories_keeps_the_latest_events_and_everything_else(dataset):
    declared = [behaviour.length for behaviour in dataset.layout.behaviours]
    assert len(declared) > 1
    lengths = [max(1, length - 2 - index) for index, length in enumerate(declared)]
    view = dataset.with_history_lengths(lengths)
    assert [behaviour.length for behaviour in view.layout.behaviours] == lengths
    assert [behaviour.length for behaviour in dataset.layout.behaviours] == declared
    assert (view.path, view.manifest.fingerprint) == (dataset.path, dataset.manifest.fingerprint)
    for whole, short in zip(dataset.batches("train", 50, gaps=True), view.batches("train", 50, gaps=True), strict=True):
        begins = np.cumsum([0, *declared])
        kept = [begin + place for begin, length in zip(begins, lengths, strict=False) for place in range(length)]
        present = short.history_present
        assert torch.equal(whole.history_present[:, kept], present)
        assert torch.equal(whole.history_gap[:, kept], short.history_gap)
        for old, new in zip(events(whole)[:, kept][present], events(short)[present], strict=True):
            assert torch.equal(old, new)
        assert torch.equal(whole.labels.nan_to_num(-1), short.labels.nan_to_num(-1))


def events(batch):
    """(R, L, w) the embedding rows of each event's columns."""
    ids = batch.event_ids[batch.history.long()].long()
    return torch.where(ids < 0, ids, batch.rows[ids.clamp(min=0)])


@pytest.mark.parametrize("lengths", [[1], [1, 0], [1, 1, 1]])
def test_history_lengths_that_fit_no_behaviour_are_refused(dataset, lengths):
    with pytest.raises(SpecError, match=r"wanted at least 1 for each behaviour \(b0, b1\)"):
        dataset.with_history_lengths(lengths)
