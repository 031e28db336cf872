import torch

from precaudit.instrument.graph import nodes_of


def test_each_node_behind_several_roots_is_met_once():
    x = torch.ones(2, requires_grad=True)
    shared = x.exp()
    total, product = (shared + shared.detach()).sum(), shared * shared
    names = [node.name().removesuffix("Backward0") for node in nodes_of([total, product, x, torch.ones(1)])]
    assert sorted(names) == ["Add", "Exp", "Mul", "Sum", "torch::autograd::AccumulateGrad"]


def test_a_walk_goes_no_further_than_is_asked_for():
    loss = torch.ones(2, requires_grad=True).exp().sum()
    assert next(nodes_of([loss])) is loss.grad_fn
