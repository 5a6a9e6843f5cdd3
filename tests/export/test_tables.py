import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infnet.errors import ArtifactError
from infnet.export.tables import Table

SHAPE = (9, 2, 3)
PRECISIONS = ("float32", "bf16", "int8")
each_precision = pytest.mark.parametrize("precision", PRECISIONS)
values = hnp.arrays(
    np.float32, SHAPE, elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False) | st.just(0.0), fill=st.nothing()
)


@pytest.fixture(scope="module")
def table_of(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "new" / "table"

    def make(array, precision="float32", cuts=(4,)):
        blocks = torch.from_numpy(np.array(array)).tensor_split(cuts)
        Table.write(path, blocks, array.shape, precision)
        return Table.open(path, precision)

    return make


def all_rows(table):
    return table.take(np.arange(table.shape[0]))


@given(values, st.sampled_from([(), (4,), (1, 1, 8)]))
def test_float32_comes_back_bit_for_bit_however_it_was_cut(table_of, array, cuts):
    found = all_rows(table_of(array, cuts=cuts))
    assert np.array_equal(found.view(np.uint32), array.view(np.uint32))


@given(values)
def test_bf16_is_within_one_part_in_256(table_of, array):
    found = all_rows(table_of(array, "bf16"))
    assert found.dtype == np.float32
    assert (np.abs(found - array) <= np.abs(array) * 2**-8).all()


@given(values, st.sampled_from([1.0, 1e-3, 1e-12]))
def test_int8_is_within_half_a_step_of_each_vectors_own_scale(table_of, array, size):
    array = array * np.float32(size)
    found = all_rows(table_of(array, "int8"))
    half_step = np.abs(array).max(axis=-1, keepdims=True) / 127 / 2
    assert found.dtype == np.float32
    assert (np.abs(found - array) <= half_step * 1.0001 + 1e-30).all()


@each_precision
def test_vectors_of_zeros_stay_zeros(table_of, precision):
    array = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    array[2], array[4, 1] = 0, 0
    found = all_rows(table_of(array, precision))
    assert np.array_equal((found == 0).all(axis=-1), (array == 0).all(axis=-1))


@each_precision
def test_one_vector_of_each_row_is_that_of_all(table_of, precision):
    table = table_of(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), precision)
    whole = all_rows(table)
    assert len(np.unique(whole)) > 50
    for rows in ([], [8, 0, 0, 8], [[1, 7, 7], [0, 3, 1]]):
        places = np.array(rows, dtype=np.int64)
        assert np.array_equal(table.take(places), whole[places])
        for vector in range(SHAPE[1]):
            assert np.array_equal(table.take(places.astype(np.int32), vector), whole[places, vector])


def test_compressed_tables_are_smaller_by_what_they_leave_out(table_of):
    array = np.ones((10, 2, 16), np.float32)
    sizes = {precision: table_of(array, precision).num_bytes for precision in PRECISIONS}
    assert sizes == {"float32": 1280, "bf16": 640, "int8": 320 + 80}


@pytest.mark.parametrize(("written", "opened"), [("float32", "bf16"), ("bf16", "int8"), ("int8", "float32")])
def test_a_table_of_another_precision_is_refused(tmp_path, written, opened):
    Table.write(tmp_path / "t", [torch.ones(SHAPE)], SHAPE, written)
    with pytest.raises(ArtifactError, match=rf"t\.npy: holds .* wanted {opened}"):
        Table.open(tmp_path / "t", opened)


@pytest.mark.parametrize("damage", ["missing", "cut", "scales", "objects"])
def test_a_damaged_table_is_refused_by_name(tmp_path, damage):
    Table.write(tmp_path / "t", [torch.ones(SHAPE)], SHAPE, "int8")
    file, scales = tmp_path / "t.npy", tmp_path / "t.scales.npy"
    if damage == "missing":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "scales":
        np.save(scales, np.ones((9, 3), np.float32))
    else:
        np.save(file, np.array([{}] * 9), allow_pickle=True)
    named = scales if damage == "scales" else file
    with pytest.raises(ArtifactError, match=named.name) as error:
        Table.open(tmp_path / "t", "int8")
    assert "\n" not in str(error.value)
