"""Half tensors that a script makes by itself: operations on them round where CUDA's kernels do."""

import pytest
import torch
import torch.nn.functional as F

from precaudit.execution.kernels import HalfKernels

HALVES = (torch.float16, torch.bfloat16)
ROWS = torch.zeros(3000, dtype=torch.long)


@pytest.mark.parametrize(("dtype", "stuck"), [(torch.float16, 2048), (torch.bfloat16, 256)])
def test_a_count_stands_still_where_its_format_has_no_next_integer(dtype, stuck):
    with HalfKernels():
        counts = torch.zeros(2, dtype=dtype).scatter_add_(0, ROWS, torch.ones(len(ROWS), dtype=dtype))
    assert counts.tolist() == [stuck, 0]
    assert counts.dtype == dtype


@pytest.mark.parametrize("dtype", HALVES)
def test_random_numbers_are_float32s_rounded(dtype):
    torch.manual_seed(0)
    exact = [torch.randn(100), torch.rand(100)]
    torch.manual_seed(0)
    with HalfKernels():
        found = [torch.randn(100, dtype=dtype), torch.rand(100, dtype=dtype)]
    assert torch.equal(found[0], exact[0].to(dtype))
    assert ((found[1].float() - exact[1]).abs() <= torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_running_statistics_in_half_are_kept(dtype):
    x = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0)) + 2
    mean, var = torch.zeros(3), torch.ones(3)
    low = [mean.to(dtype), var.to(dtype)]
    out = F.instance_norm(x.to(dtype).float(), mean, var, use_input_stats=True, momentum=0.5)
    with HalfKernels():
        rounded = F.instance_norm(x.to(dtype), *low, use_input_stats=True, momentum=0.5)
    torch.testing.assert_close(rounded, out.to(dtype))
    torch.testing.assert_close(low, [mean.to(dtype), var.to(dtype)])


def test_other_tensors_are_left_alone():
    torch.manual_seed(0)
    exact = torch.randn(3)
    torch.manual_seed(0)
    with HalfKernels():
        assert torch.equal(torch.randn(3), exact)
        counts = torch.zeros(2).scatter_add_(0, ROWS, torch.ones(len(ROWS)))
    assert counts.tolist() == [len(ROWS), 0]
    with torch.no_grad():
        assert (torch.ones(2, dtype=torch.half) + 1).dtype == torch.half
