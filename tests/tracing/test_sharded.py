"""Parameters that are spread over ranks: counted shard by shard, under the names of the layers that they make up."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from training_styles import numbers

from precaudit.tracing.auditing import Auditing


@pytest.fixture(autouse=True)
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def gathered_for_a_forward(model):
    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


def kept_in_shards(model):
    weight = distribute_tensor(model.weight.detach(), init_device_mesh("cpu", (1,)), [Shard(0)])
    model.weight = nn.Parameter(weight)
    model.register_forward_pre_hook(lambda module, args: (distribute_tensor(args[0], weight.device_mesh),))
    model.register_forward_hook(lambda module, args, output: output.full_tensor())
    return model


@pytest.mark.parametrize("spread", [gathered_for_a_forward, kept_in_shards])
def test_weights_and_their_updates_are_those_of_the_optimizer_s_shards(spread):
    torch.manual_seed(0)
    model = spread(nn.Linear(4, 3, bias=False))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    auditing = Auditing(model, (optimizer,), 1)
    auditing.start()
    for step in range(2):
        model(numbers(step, 5, 4)).square().mean().backward()
        optimizer.step()
    auditing.stop()
    (layer,) = auditing.trace().layers
    counted = {(record.role, record.name): record.stats.numel for record in layer.tensors}
    assert counted["weight", "weight"] == counted["update", "weight"] == counted["weight_grad", "weight"] == 24
    assert counted["optimizer_state", "weight.exp_avg"] == 24
