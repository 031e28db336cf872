import math
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from histogram_reference import EIGHT_BITS, FLOATING, every_pattern, random_patterns, reference, same, stats_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from precaudit.histograms import Accumulator, Addition, add_all, collect, fits, observe, take_peak
from precaudit.histograms.cpu import CHUNK, CpuSums
from precaudit.histograms.memory import flat
from precaudit.histograms.plain import PlainSums
from precaudit.model import FormatFit, TensorStats

CPU = torch.device("cpu")
SPECIAL = (0.0, -0.0, 1.0, -1.0, 65504.0, 65520.0, 2.0**-24, 2.0**-25, 1e-40, 2.0**-149, 3e38, 5e-324, 1e308)
NONFINITE = (float("inf"), float("-inf"), float("nan"))


def accumulated(*tensors: torch.Tensor) -> TensorStats:
    accumulator = Accumulator()
    for tensor in tensors:
        accumulator.add(tensor)
    return accumulator.stats()


# ---------------------------------------------------------------- every value of every format


@pytest.mark.parametrize("kernel", [CpuSums, lambda dtype: PlainSums(dtype, CPU)], ids=["numba", "torch"])
@pytest.mark.parametrize("dtype", FLOATING)
def test_kernels_count_all_bit_patterns(kernel: Callable, dtype: torch.dtype):
    values = every_pattern(dtype) if dtype.itemsize == 2 else random_patterns(dtype, 20_000)
    sums = kernel(dtype)
    expected = reference(values)
    assert [sums.add(values) for _ in range(2)] == [expected.nonfinite] * 2
    assert same(stats_of(sums), expected.merge(expected))


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_all_values_of_eight_bits(dtype: torch.dtype):
    assert same(observe(every_pattern(dtype)), reference(every_pattern(dtype)))


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("numel", [1, 63, 64, 65, 127, 128, 8191, 8192, 8193, 17000])
def test_blocks_of_close_and_of_far_exponents(dtype: torch.dtype, numel: int):
    close = torch.randn(numel, dtype=torch.float64)
    far = close * torch.exp2(torch.randint(-40, 15, (numel,)).double())
    for values in (close, far, close.clamp(min=0), torch.zeros(numel)):
        assert same(observe(values.to(dtype)), reference(values.to(dtype)))


@pytest.mark.parametrize("odd", [0.0, -0.0, 1e-45, -1e-39, math.inf, math.nan, 2.0**-127 * 1.5])
@pytest.mark.parametrize("scale", [2.0**-31, 1.0, 2.0, 2.0**31, 2.0**97, 2.0**127])
def test_zeros_and_nonfinite_values_are_not_counted_as_exponents(scale: float, odd: float):
    """Zeros and subnormals have exponent 0, what isn't finite has 255, modulo 32 as any other."""
    values = torch.full((300,), scale)
    values[::7], values[5] = odd, 1.5 * scale
    assert same(observe(values), reference(values))


@pytest.mark.parametrize("dtype", FLOATING)
def test_few_odd_values_among_many(dtype: torch.dtype):
    values = torch.randn(10_000).to(dtype)
    values[[3, 5000, 9999]] = torch.tensor(NONFINITE, dtype=dtype)
    values[4097] = torch.finfo(dtype).smallest_normal / 2
    assert same(observe(values), reference(values))


# ---------------------------------------------------------------- shapes, strides and wrappers


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(FLOATING))
    shape = draw(st.lists(st.integers(0, 7), max_size=4))
    odd = st.sampled_from(SPECIAL + NONFINITE)
    numel = int(torch.Size(shape).numel())
    values = draw(st.lists(st.floats(width=64) | odd, min_size=numel, max_size=numel))
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype).reshape(shape)
    return draw(st.sampled_from(VIEWS))(tensor)


VIEWS = (
    lambda t: t,
    lambda t: t.mT if t.ndim > 1 else t,
    lambda t: t[..., ::2] if t.ndim else t,
    lambda t: t[1:] if t.ndim else t,
    lambda t: t.unsqueeze(0).expand(3, *t.shape),
    lambda t: t.permute(tuple(reversed(range(t.ndim)))),
    lambda t: t.flip(0) if t.ndim else t,
    lambda t: torch._neg_view(t),
    lambda t: t.clone().requires_grad_(),
    lambda t: torch.nn.Parameter(t),
)


@settings(max_examples=150, deadline=None)
@given(tensors())
def test_every_memory_layout_counts_the_same(tensor: torch.Tensor):
    assert same(observe(tensor), reference(tensor))


@settings(max_examples=60, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=4))
def test_adding_and_merging_are_concatenation(parts: list[torch.Tensor]):
    together = reference(*parts)
    merged = TensorStats()
    for part in parts:
        merged = merged.merge(observe(part))
    assert same(accumulated(*parts), together)
    assert same(merged, together)


def test_channels_last_is_read_as_it_lies():
    values = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    view = flat(values)
    assert view is not None
    assert view.data_ptr() == values.data_ptr()
    assert same(observe(values), reference(values))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_counts_as_two_parts(dtype: torch.dtype):
    values = torch.randn(50, dtype=dtype)
    parts = reference(torch.view_as_real(values))
    assert same(observe(values), parts)
    assert same(observe(values.conj()), parts)
    assert same(observe(values.conj().imag), reference(values.imag))
    assert same(observe(values.t().conj()[::2]), reference(torch.view_as_real(values[::2])))


@pytest.mark.filterwarnings("ignore:Sparse", "ignore:The PyTorch API of nested tensors")
def test_layouts_that_store_values_elsewhere():
    dense = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 1e-40]])
    stored = reference(dense[dense != 0])
    with torch.sparse.check_sparse_tensor_invariants():
        assert same(observe(dense.to_sparse()), stored)
        assert same(observe(dense.to_sparse_csr()), stored)
        assert same(observe(dense.to_sparse_csc()), stored)
        assert same(observe(dense.to_sparse_bsr((1, 1))), stored)
        assert same(observe(dense.to_sparse_bsc((1, 1))), stored)
    ragged = [torch.randn(2), torch.randn(5)]
    assert same(observe(torch.nested.nested_tensor(ragged)), reference(*ragged))
    assert same(observe(torch.nested.nested_tensor(ragged, layout=torch.jagged)), reference(*ragged))
    if torch.backends.mkldnn.is_available():
        assert same(observe(dense.to_mkldnn()), reference(dense))


def test_functorch_wrappers_are_unwrapped():
    seen = []

    def watch(x: torch.Tensor) -> torch.Tensor:
        seen.append(observe(x))
        return (x * x).sum()

    values = torch.randn(4, 3)
    torch.func.vmap(watch)(values)
    torch.func.grad(watch)(values)
    torch.func.vmap(torch.func.grad(watch))(values)
    assert all(same(stats, reference(values)) for stats in seen)
    assert len(seen) == 3


@pytest.mark.filterwarnings("error")
def test_empty_tensors_count_nothing():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.zeros(3)
    freed = torch.zeros(3, 4)
    row = freed[1]
    freed.untyped_storage().resize_(0)
    accumulator = Accumulator()
    for empty in (fake, torch.zeros(3, device="meta"), freed, row, torch.empty(0), torch.empty(3, 0).t()):
        assert accumulator.add(empty) == 0
    assert accumulator.stats() == TensorStats()
    assert same(observe(torch._efficientzerotensor(3)), reference(torch.zeros(3)))


def test_subclasses():
    class Named(torch.Tensor):
        pass

    class Hidden(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
            raise AssertionError("the script's own code was called")

    class Opaque(torch.Tensor):
        @staticmethod
        def __new__(cls, numel: int):
            return torch.Tensor._make_wrapper_subclass(cls, (numel,))

        @classmethod
        def __torch_dispatch__(cls, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
            raise NotImplementedError(function)

    values = torch.randn(10)
    assert same(observe(values.as_subclass(Named)), reference(values))
    assert same(observe(torch.Tensor._make_subclass(Hidden, values)), reference(values))
    assert observe(Opaque(3)) == TensorStats()


def test_counting_is_hidden_from_function_modes():
    class Strict(TorchFunctionMode):
        def __torch_function__(self, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
            raise AssertionError(f"{function} was seen")

    values, accumulator = torch.randn(4, 3), Accumulator()
    views = (values, values.t(), values[:, 1:], values.to(torch.float8_e5m2), values.to_sparse())
    with Strict():
        for view in views:
            accumulator.add(view)
        accumulator.add_difference(values, values)
        accumulator.add_difference(views[1], views[1])
        stats = accumulator.stats()
    assert stats.numel == sum(view.numel() for view in views) + 2 * values.numel()


def test_dtensor_counts_its_shard():
    import torch.distributed as dist
    from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        values = torch.randn(4, 3)
        mesh = init_device_mesh("cpu", (1,))
        assert same(observe(distribute_tensor(values, mesh, [Replicate()])), reference(values))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.float4_e2m1fn_x2])
def test_dtypes_without_exponents_are_refused(dtype: torch.dtype):
    with pytest.raises(TypeError, match="cannot be counted"):
        observe(torch.zeros(2, dtype=torch.uint8).view(dtype) if dtype.itemsize == 1 else torch.zeros(2, dtype=dtype))


# ---------------------------------------------------------------- one slot


def test_dtypes_mix_in_one_slot():
    parts = [torch.randn(100).to(dtype) for dtype in FLOATING] + [torch.randn(100).to(torch.float8_e5m2)]
    assert same(accumulated(*parts), reference(*parts))


def test_stats_may_be_asked_between_additions():
    first, second = torch.randn(100), torch.randn(200_000)
    accumulator = Accumulator()
    assert accumulator.stats() == TensorStats()
    accumulator.add(first)
    assert same(accumulator.stats(), reference(first))
    accumulator.add(second)
    assert same(accumulator.stats(), reference(first, second))


@pytest.mark.parametrize("dtype", FLOATING)
@pytest.mark.parametrize("k", [-12, 3, 16])
def test_loss_scale_is_removed_exactly(dtype: torch.dtype, k: int):
    values = torch.randn(1000).clamp(-4, 4).to(dtype)
    values = values[(values == 0) | (values.abs() > 0.01)]
    accumulator = Accumulator()
    accumulator.add(values * 2.0**k if k == 3 else values.double() * 2.0**k, log2_scale=k)
    accumulator.add(values)
    assert same(accumulator.stats(), reference(values, values))


def test_scale_beyond_the_range_of_floats():
    accumulator = Accumulator()
    accumulator.add(torch.tensor([1e300], dtype=torch.float64), log2_scale=-200)
    stats = accumulator.stats()
    assert stats.amax == stats.sum_squares == float("inf")
    assert stats.exponents == reference(torch.tensor([1e300], dtype=torch.float64)).exponents.shift(200)


@settings(max_examples=60, deadline=None)
@given(tensors())
def test_difference_is_the_tensor_of_differences(new: torch.Tensor):
    old = (new.detach().double() * 0.75 + 1e-3).to(new.dtype)
    accumulator, expected = Accumulator(), observe(new.detach() - old)
    assert accumulator.add_difference(new, old) == expected.nonfinite
    assert accumulator.stats() == expected


@pytest.mark.parametrize("numel", [100, 4097, 3 * CHUNK + 5])
def test_difference_is_taken_on_the_way(numel: int):
    new, old = torch.randn(numel), torch.randn(numel)
    accumulator = Accumulator()
    accumulator.add_difference(new, old, log2_scale=2)
    assert accumulator.stats() == observe(new - old).shift(-2)
    accumulator.add_difference(torch._neg_view(new), old)
    assert same(accumulator.stats(), observe(new - old).shift(-2).merge(observe(-new - old)))


@settings(max_examples=60, deadline=None)
@given(tensors())
def test_a_copy_has_the_values_of_the_tensor(values: torch.Tensor):
    values = values.detach()
    copy, accumulator = torch.full_like(values, 7.0), Accumulator()
    accumulator.add_and_copy(values, copy)
    assert same(accumulator.stats(), observe(values))
    assert torch.equal(copy.isnan(), values.isnan())
    assert torch.equal(copy[~copy.isnan()], values[~values.isnan()])


@pytest.mark.parametrize("numel", [1, 127, 128, 8192, 8193, 3 * CHUNK + 5])
@pytest.mark.parametrize("offset", [0, 1, 8])
def test_copy_at_any_offset_stays_within_bounds(numel: int, offset: int):
    values, memory = torch.randn(numel), torch.full((offset + numel + 64,), 7.0)
    values[0] = math.nan
    accumulator = Accumulator()
    accumulator.add_and_copy(values, memory[offset : offset + numel])
    assert same(accumulator.stats(), observe(values))
    assert torch.equal(memory[offset : offset + numel].view(torch.int32), values.view(torch.int32))
    assert (memory[:offset] == 7).all()
    assert (memory[offset + numel :] == 7).all()


def test_difference_of_other_dtypes():
    new, old = torch.randn(50).to(torch.float8_e4m3fn), torch.randn(50).to(torch.float8_e4m3fn)
    accumulator = Accumulator()
    accumulator.add_difference(new, old)
    accumulator.add_difference(new.to(torch.complex64), old.to(torch.complex64))
    accumulator.add_difference(new.bfloat16(), old.float())
    real = reference(new.float() - old.float())
    assert same(accumulator.stats(), real.merge(real).merge(real.merge(reference(torch.zeros(50)))))


def test_many_slots_are_collected_at_once():
    slots, expected = [Accumulator() for _ in range(4)], []
    for i, slot in enumerate(slots[:3]):
        values = torch.randn(10 * i)
        slot.add(values)
        expected.append(reference(values))
    held_by_torch = PlainSums(torch.float32, CPU)
    held_by_torch.add(torch._neg_view(torch.ones(3)))
    slots[3]._sums[torch.float32, CPU, 1] = held_by_torch
    collected = collect(slots)
    assert all(map(same, collected, [*expected, reference(torch.full((3,), 0.5))]))
    assert collected == [slot.stats() for slot in slots]


def test_many_additions_count_as_each_by_itself():
    new, old = torch.randn(100), torch.randn(100)
    slots = [Accumulator(), Accumulator()]
    add_all([Addition(slots[0], new), Addition(slots[1], new, old), Addition(slots[0], old * 4, None, 2)])
    assert same(slots[0].stats(), reference(new, old))
    assert same(slots[1].stats(), reference(new - old))


def test_peak_is_of_what_came_since_it_was_taken():
    slots = [Accumulator(), Accumulator(), Accumulator()]
    for slot in slots[1:]:
        slot._sums[torch.float32, CPU, 0] = PlainSums(torch.float32, CPU)
    slots[0].add(torch.randn(5 * CHUNK))
    slots[0].add(torch.tensor([-64.0, float("inf")]), log2_scale=2)
    slots[1].add(torch.tensor([3.0], dtype=torch.float64))
    slots[1].add(torch.tensor([9.0]))
    slots[2].add(torch.tensor([-20.0]))
    assert take_peak(slots).value() == 20.0
    slots[2].add(torch.tensor([1.0]))
    slots[0].add(torch.tensor([-64.0]), log2_scale=2)
    assert take_peak(slots).value() == 16.0
    assert take_peak(slots).value() == 0.0
    slots[1].add(torch.tensor([-0.5, 0.25]))
    assert take_peak(slots).value() == 0.5
    assert slots[0].stats().amax == 16.0
    assert slots[1].stats().amax == 9.0
    assert take_peak([]).value() == 0.0


def test_fits_names_formats():
    stats = observe(torch.tensor([1.0, 1e-30, 1e30]))
    fit = fits(stats, ["float16", "bf16"])
    assert fit["bf16"] == FormatFit(0.0, 0.0, 0.0)
    assert fit["float16"].overflow_rate == fit["float16"].underflow_rate == 1 / 3


# ---------------------------------------------------------------- threads, processes, torch's state


@pytest.mark.parametrize("dtype", FLOATING)
def test_large_tensors_count_alike_on_any_number_of_threads(dtype: torch.dtype):
    values = random_patterns(dtype, 5 * CHUNK + 123)
    pieces = TensorStats()
    for piece in values.split(CHUNK):
        pieces = pieces.merge(observe(piece))
    before = torch.get_num_threads()
    try:
        stats = []
        for threads in (1, 4):
            torch.set_num_threads(threads)
            stats.append(observe(values))
    finally:
        torch.set_num_threads(before)
    assert stats[0] == stats[1]
    assert same(stats[0], pieces)


def test_threads_count_in_separate_slots():
    values = [torch.randn(4 * CHUNK) * 2.0**i for i in range(4)]
    expected = [observe(v) for v in values]
    measured: dict[int, TensorStats] = {}
    workers = [threading.Thread(target=lambda i=i, v=v: measured.update({i: observe(v)})) for i, v in enumerate(values)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [measured[i] for i in range(4)] == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_forked_child_counts_on():
    values = torch.randn(4 * CHUNK)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = observe(values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
            child = os.fork()
        if not child:
            os._exit(0 if observe(values) == expected else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert observe(values) == expected
    finally:
        torch.set_num_threads(before)


def test_torch_settings_are_unchanged():
    values = torch.randn(3, 100, requires_grad=True)
    observed = values.exp()

    def state() -> tuple:
        return (
            torch.get_rng_state().tolist(),
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            observed._version,
            observed.grad_fn,
            values.grad,
        )

    before, copy = state(), observed.detach().clone()
    accumulator = Accumulator()
    accumulator.add(observed)
    accumulator.add(observed.t()[::2])
    accumulator.add_difference(observed, values)
    accumulator.add_and_copy(observed, torch.empty_like(observed))
    accumulator.stats()
    assert state() == before
    assert torch.equal(observed, copy)


def test_inference_mode_and_ordinary_mode_share_a_slot():
    accumulator, values = Accumulator(), torch.randn(10)
    plain = PlainSums(torch.float32, CPU)
    with torch.inference_mode():
        inferred = values * 1.0
        accumulator.add(inferred)
        plain.add(inferred)
    accumulator.add(values)
    accumulator.add(inferred)
    plain.add(values)
    assert same(accumulator.stats(), reference(values, values, values))


def run_python(code: str, **environment: str) -> str:
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": here, **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kernels_are_imported_when_first_needed():
    code = "import sys, precaudit.histograms; print([m for m in ('numba', 'triton') if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_without_numba_torch_counts_the_same():
    run_python(
        "import sys; sys.modules['numba'] = None\n"
        "from histogram_reference import *\n"
        "from precaudit.histograms import Accumulator, observe\n"
        "for dtype in FLOATING:\n"
        "    values = random_patterns(dtype, 5000)\n"
        "    assert same(observe(values), reference(values)), dtype\n"
        "new, old, copy = torch.randn(50), torch.randn(50), torch.zeros(50)\n"
        "changed, copied = Accumulator(), Accumulator()\n"
        "changed.add_difference(new, old); copied.add_and_copy(new, copy)\n"
        "assert same(changed.stats(), reference(new - old))\n"
        "assert same(copied.stats(), reference(new)) and torch.equal(copy, new)\n"
    )


def test_sum_of_squares_is_of_finite_values():
    values = torch.tensor([3.0, 4.0, float("inf"), float("nan")])
    stats = observe(values)
    assert replace(stats, exponents=reference(values).exponents) == reference(values)
    assert stats.rms == pytest.approx((25 / 2) ** 0.5)
