"""Figures from blocks whose times are known."""

import pytest

from precaudit.measuring.records import ARMS, Block, Feed, Observation, Profiled
from precaudit.measuring.summary import joules_per_step, performance, quartiles, ratios, steady, wait_share
from precaudit.model import TensorCores


def rounds(*pairs, steps=4):
    """A float32 and a plan block a round, of these step times in milliseconds; the first round is warm-up."""
    found = [Block("float32", 0, 1, 9.0), Block("plan", 0, 1, 9.0)]
    for number, (wide, narrow) in enumerate(pairs, 1):
        found += [
            Block("float32", number, steps, wide * steps / 1e3),
            Block("plan", number, steps, narrow * steps / 1e3),
        ]
    return found


def test_medians_and_paired_ratios():
    found = performance(Observation("cuda", blocks=tuple(rounds((10, 5), (20, 8), (12, 6)))), "H100")
    assert found.step_seconds == {
        "float32": pytest.approx(0.012),
        "tf32": None,
        "amp": None,
        "plan": pytest.approx(0.006),
    }
    assert found.speedup["plan"] == pytest.approx(2.0)
    assert found.speedup_quartiles["plan"] == pytest.approx([2.0, 2.25])
    assert found.timed_steps == {"float32": 12, "tf32": None, "amp": None, "plan": 12}
    assert (found.gpu, found.data_wait_share) == ("H100", None)
    assert "3 rounds" in found.method


def test_common_drift_does_not_change_ratios():
    drifting = rounds(*[(10 * 1.2**i, 5 * 1.2**i) for i in range(8)])
    assert quartiles(ratios(steady(drifting), "plan")) == pytest.approx([2.0, 2.0])


def test_short_blocks_count_only_where_there_are_too_few_long_ones():
    short = [b for b in rounds((10, 1), steps=1) if b.round]
    long = [Block(b.arm, b.round + 1, b.steps, b.seconds) for b in rounds((10, 5), (10, 5), (10, 5)) if b.round]
    assert {block.steps for block in steady([*short, *long])} == {4}
    assert {block.steps for block in steady([*short, *long[:4]])} == {1, 4}


def test_long_energy_round_does_not_exclude_others():
    growing = [Block(arm, i, n, n / 100) for i, n in enumerate((1, 2, 4, 8, 8, 8, 200)) for arm in ("float32", "plan")]
    assert [block.steps for block in steady(growing) if block.arm == "plan"] == [4, 8, 8, 8, 200]


def test_without_a_whole_round_nothing_is_measured():
    found = performance(Observation("cpu", blocks=(Block("float32", 0, 1, 1.0),)), None)
    assert found.step_seconds == dict.fromkeys(ARMS)
    assert found.method.startswith("not measured")


def test_two_rounds_have_no_spread():
    found = performance(Observation("cpu", blocks=tuple(rounds((10, 5), (10, 5)))), None)
    assert found.speedup["plan"] == pytest.approx(2.0)
    assert found.speedup_quartiles["plan"] is None


def test_energy_is_of_long_blocks_only():
    blocks = [Block("plan", 1, 10, 0.5, None, 900.0), Block("plan", 2, 100, 1.5, None, 450.0), Block("plan", 3, 9, 2.0)]
    blocks += [Block("plan", 4, 100, 1.5, None, 9e9, skipped=1), Block("float32", 2, 100, 1.5, None, 9e9)]
    assert joules_per_step(blocks, "plan") == pytest.approx(4.5)
    assert joules_per_step(blocks[:1], "plan") is None
    found = performance(Observation("cuda", blocks=tuple(rounds((1, 1))), energy="NVML total"), "H100")
    assert "no 1 s of steps in a row" in found.energy_method
    assert performance(Observation("cpu"), None).energy_method == "not measured: no GPU"


def test_the_counters_share_is_of_blocks_that_were_watched():
    blocks = [Block("plan", 1, 9, 2.0), Block("plan", 2, 9, 2.0, tensor_share=0.3)]
    found = performance(Observation("cuda", blocks=tuple(blocks), counters="GPM counters"), "H100")
    assert found.tensor_pipe_share == {"float32": None, "tf32": None, "amp": None, "plan": 0.3}
    assert found.counters_method == "GPM counters"
    assert performance(Observation("cpu"), None).counters_method == "not measured: no GPU"


def test_peak_memory_is_the_most_of_any_block():
    blocks = [Block("float32", i, 1, 0.01, peak) for i, peak in ((1, 5), (2, 7), (3, None))]
    blocks += [Block("plan", i, 1, 0.01, peak) for i, peak in ((1, 9), (2, 3))]
    found = performance(Observation("cuda", blocks=tuple(blocks)), "H100").peak_memory_bytes
    assert found == {"float32": 7, "tf32": None, "amp": None, "plan": 9}


@pytest.mark.parametrize(("device", "where"), [("cuda", "on cuda"), ("cpu", "on cpu with 3 threads")])
def test_the_method_says_where_and_how_the_times_were_measured(device, where):
    method = performance(Observation(device, threads=3, blocks=tuple(rounds((10, 5), (10, 5)))), None).method
    assert method.startswith("2 precisions by turns in one training run, median of 2 rounds")
    assert method.endswith(where)


def test_waiting_for_data():
    assert wait_share(Feed(waits=(0.001, 0.002, 0.5)), 0.01) == pytest.approx(0.2)
    assert wait_share(Feed(waits=(5.0,)), 0.01) == 1.0
    assert wait_share(Feed(), 0.01) is wait_share(Feed(waits=(1.0,)), None) is None


def test_the_share_of_a_step_in_which_the_gpu_works():
    kernels = Profiled(TensorCores(measured=True), (), steps=2, seconds=0.006)
    unmeasured = Profiled(TensorCores(), (), 2, 0.0)
    found = Observation("cuda", blocks=tuple(rounds((10, 5))), profiled={"float32": kernels, "plan": unmeasured})
    assert performance(found, "H100").gpu_busy_share == {"float32": pytest.approx(0.3)}
