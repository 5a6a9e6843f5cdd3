import torch

from infnet.layers.embedding import EmbeddingTable
from infnet.layers.tokens import FieldTokenizer, RowProjection
from random_batches import make_batch, make_layout


def test_rows_are_read_as_they_stand():
    table = EmbeddingTable(9, 3)
    rows = torch.tensor([4, 0, 8])
    assert torch.equal(table(rows), table.weight[rows])
    assert table.width == 3


def test_the_gradient_is_sparse_and_holds_each_row_the_batch_touches_once():
    layout = make_layout(tags=True)
    batch = make_batch(layout, 6, 3)
    table, rows = EmbeddingTable(layout.num_rows, 4), RowProjection(4, 4)
    embedded = rows(table, batch)
    for side in ("user", "item"):  # many entities read the same rows
        FieldTokenizer(layout, (side,), 4)(embedded, getattr(batch, side)).square().sum().backward(retain_graph=True)
        gradient = table.weight.grad
        assert gradient.is_sparse
        assert gradient._indices()[0].tolist() == batch.rows.tolist()
        assert gradient._values().shape == (len(batch.rows), 4)
        table.weight.grad = None


def test_the_cost_of_a_gradient_does_not_grow_with_the_table():
    table = EmbeddingTable(200_000, 2)
    table(torch.tensor([5, 199_999])).sum().backward()
    assert table.weight.grad._nnz() == 2


def test_initial_values_spread_as_asked():
    torch.manual_seed(0)
    for std in (0.01, 0.3):
        weight = EmbeddingTable(2000, 8, std).weight
        assert abs(weight.std().item() / std - 1) < 0.05
        assert abs(weight.mean().item()) < 0.05 * std
