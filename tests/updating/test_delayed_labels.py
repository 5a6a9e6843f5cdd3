"""Updates from samples whose late labels were first taken for negatives and corrected afterwards."""

import polars as pl
import pytest
from altered_bundles import with_windows
from sample_partitions import write_part

from infnet.export.bundle import Bundle
from infnet.updating.growth import grow
from infnet.updating.guard import GuardSettings
from infnet.updating.reading import ReadSamples
from infnet.updating.samples import collect_samples
from infnet.updating.update import UpdateSettings, update_bundle

SETTINGS = UpdateSettings(holdout=0.0, delayed="fake_negative", guard=GuardSettings(when_unsure="accept"))


@pytest.fixture
def late_clicks(bundle, tmp_path):
    """A bundle whose clicks come late."""
    return Bundle.open(with_windows(bundle, tmp_path / "late", click=3600, like=60, watch=60))


def shown(log, num, *, item="7", clicks=0, corrected=0):
    """So many impressions of an item, some clicked when the sample was made, others only afterwards."""
    pairs = [(request, sample | {"item_id": item, "label_click": 0.0}) for request, sample in log[:num]]
    pairs = [(request, sample | {"label_click": float(i < clicks)}) for i, (request, sample) in enumerate(pairs)]
    late = {"label_click": 1.0, "label_like": None, "label_watch": None, "is_correction": True}
    return pairs + [(request, sample | late) for request, sample in pairs[num - corrected :]]


@pytest.mark.parametrize("when", ["clicks", "corrected"])
def test_an_impression_counts_once_towards_the_rate_of_its_item(late_clicks, log, tmp_path, when):
    write_part(tmp_path / "samples", 1, shown(log, 60, **{when: 30}))
    update_bundle(late_clicks.path, tmp_path / "samples", tmp_path / "out", SETTINGS)
    made = Bundle.open(tmp_path / "out")
    (index,) = made.items.find(["7"])
    assert (made.item_counts()[index] - late_clicks.item_counts()[index]).tolist() == [60, 30]


@pytest.mark.parametrize("when", ["clicks", "corrected"])
def test_an_impression_counts_once_towards_the_row_of_a_value(late_clicks, log, tmp_path, when):
    catalogue = late_clicks.catalogue()
    write_part(tmp_path / "samples", 1, shown(log, 1, item="9001", **{when: 1}))
    samples = collect_samples(tmp_path / "samples", catalogue.spec, since_part=0, holdout=0.0, delayed="fake_negative")
    read = ReadSamples.read(samples, catalogue.encoder, catalogue.item_values)
    items = pl.DataFrame({"item": ["9001"], "author": ["a99"]})
    growth = grow(catalogue, late_clicks.learning(), read, items=items)
    assert growth.relisting.added == {"item": 1}  # an author needs two
    assert growth.relisting.waiting.select("value", "count").rows() == [("a99", 1)]
