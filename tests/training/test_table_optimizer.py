import pytest
import torch
from torch import nn
from torch.testing import assert_close

from infnet.training.table_optimizer import TableOptimizer, touched_rows

V, D = 11, 3


def sparse(rows, values, num_rows=V):
    return torch.sparse_coo_tensor(torch.tensor(rows)[None], values, (num_rows, D), check_invariants=True)


def table(seed=0):
    torch.manual_seed(seed)
    return nn.Parameter(torch.randn(V, D))


DENSE = {
    "adam": lambda p, l2: torch.optim.Adam(p, lr=0.1, weight_decay=l2),
    "adamw": lambda p, l2: torch.optim.AdamW(p, lr=0.1, weight_decay=l2),
    "adagrad": lambda p, l2: torch.optim.Adagrad(p, lr=0.1, weight_decay=l2, eps=1e-8),
}


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("l2", [0.0, 0.05])
def test_touching_every_row_is_the_dense_algorithm(kind, l2):
    ours, theirs = table(), table()
    lazy, dense = TableOptimizer(ours, kind, l2=l2), DENSE[kind]([theirs], l2)
    for _ in range(6):
        gradient = torch.randn(V, D)
        order = torch.randperm(V)
        ours.grad, theirs.grad = sparse(order.tolist(), gradient[order]), gradient
        lazy.step(0.1)
        dense.step()
    assert_close(ours, theirs)


def test_adam_between_visits_is_that_of_sparse_adam():
    ours, theirs = table(), table()
    lazy, other = TableOptimizer(ours, "adam", eps=1e-12), torch.optim.SparseAdam([theirs], lr=0.1, eps=1e-12)
    for rows in ([0, 3, 5], [3, 9], [1], [0, 1, 2, 3]):
        values = torch.randn(len(rows), D)
        ours.grad, theirs.grad = sparse(rows, values.clone()), sparse(rows, values)
        lazy.step(0.1)
        other.step()
    assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch's own Adagrad
def test_adagrad_of_partial_batches_is_that_of_torch():
    ours, theirs = table(), table()
    lazy, other = TableOptimizer(ours, "adagrad", eps=1e-10), torch.optim.Adagrad([theirs], lr=0.1)
    for rows in ([0, 3, 5], [3, 9], [1], [0, 1, 2, 3]):
        values = torch.randn(len(rows), D)
        ours.grad, theirs.grad = sparse(rows, values.clone()), sparse(rows, values)
        lazy.step(0.1)
        other.step()
    assert_close(ours, theirs)


@pytest.mark.parametrize("kind", DENSE)
def test_rows_not_in_the_batch_stay_as_they_are_even_under_l2(kind):
    weight = table()
    before = weight.detach().clone()
    optimizer = TableOptimizer(weight, kind, l2=0.5)
    weight.grad = sparse([2, 7], torch.zeros(2, D))
    optimizer.step(0.1)
    moved = (weight.detach() != before).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [2, 7]
    assert (weight.detach()[[2, 7]].norm(dim=1) < before[[2, 7]].norm(dim=1)).all()
    for moment in optimizer.moments.values():
        untouched = [row for row in range(V) if row not in (2, 7)]
        assert not moment[untouched].any()


def test_gradients_of_a_row_listed_twice_add_up():
    rows, values = touched_rows(sparse([4, 1, 4], torch.tensor([[1.0] * D, [2.0] * D, [3.0] * D])))
    by_row = dict(zip(rows.tolist(), values[:, 0].tolist(), strict=True))
    assert by_row == {4: 4.0, 1: 2.0}


def test_distinct_rows_are_handed_through_without_a_copy():
    values = torch.randn(3, D)
    gradient = sparse([9, 0, 4], values)
    rows, found = touched_rows(gradient)
    assert rows.tolist() == [9, 0, 4]
    assert found.data_ptr() == gradient._values().data_ptr()


@pytest.mark.parametrize("kind", DENSE)
def test_a_restored_optimizer_goes_on_bit_by_bit(kind):
    torch.manual_seed(3)
    gradients = [torch.randn(2, D) for _ in range(4)]

    def run(weight, optimizer, steps):
        for step in steps:
            weight.grad = sparse([step, step + 3], gradients[step].clone())
            optimizer.step(0.1)

    whole = table()
    run(whole, TableOptimizer(whole, kind), range(4))
    first = table()
    begun = TableOptimizer(first, kind)
    run(first, begun, range(2))
    second = nn.Parameter(first.detach().clone())
    resumed = TableOptimizer(second, kind)
    resumed.load_state_dict({name: t.clone() for name, t in begun.state_dict().items()})
    run(second, resumed, range(2, 4))
    assert torch.equal(whole, second)


def test_without_a_gradient_nothing_moves():
    weight = table()
    before = weight.detach().clone()
    optimizer = TableOptimizer(weight)
    optimizer.step(0.1)
    assert torch.equal(weight, before)
    assert optimizer.step_count == 0
