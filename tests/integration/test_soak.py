"""Three minutes of steady traffic; benchmarks/soak.py goes on for thirty."""

import soak


def test_memory_and_descriptors_stay_where_they_are(bundle, tmp_path):
    found = soak.main(["--out", str(tmp_path), "--minutes", "3", "--bundle", str(bundle.path)])
    assert set(found["statuses"]) == {"rank 200", "events 200"}
    assert min(found["statuses"].values()) > 500
    assert found["error_lines"] == 0
    assert found["is_flat"], found["readings"]
    assert found["descriptors_at_the_end"] <= found["descriptors_after_two_thirds"] + 3
