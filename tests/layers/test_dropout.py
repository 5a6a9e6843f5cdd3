import torch

from infnet.layers.dropout import Dropout


def test_the_right_share_is_dropped_and_the_mean_stays():
    torch.manual_seed(0)
    out = Dropout(0.1)(torch.ones(1000, 1001))
    assert abs((out == 0).float().mean().item() - 0.1) < 0.002
    assert abs(out.mean().item() - 1.0) < 0.003
    assert len(out.unique()) == 2


def test_evaluation_changes_nothing():
    inputs = torch.randn(3, 5)
    assert Dropout(0.5).eval()(inputs) is inputs
    assert Dropout(0.0)(inputs) is inputs


def test_the_seed_decides():
    layer, inputs = Dropout(0.5), torch.ones(64, 7)
    torch.manual_seed(3)
    first, second = layer(inputs), layer(inputs)
    torch.manual_seed(3)
    assert torch.equal(layer(inputs), first)
    assert not torch.equal(first, second)


def test_dropped_values_pass_no_gradient():
    inputs = torch.ones(40, 5, dtype=torch.float64, requires_grad=True)
    out = Dropout(0.4)(inputs)
    out.sum().backward()
    assert torch.equal(inputs.grad, out.detach())
