"""The rules by names from public documentation, profiler output, the traces in ../shared/traces, and public code: a
name's `source` says where its kernel can be read."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precaudit.hardware.generations import generation_of
from precaudit.tensorcores.traces.evidence import classify_ptx, second_opinion
from precaudit.tensorcores.traces.kernel_names import readable
from precaudit.tensorcores.traces.kernel_rules import NOT_NVIDIA, RULES, classify

V100, T4, A100, L4, H100, B200, RTX5090 = (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)

SM90 = "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel"
CUTLASS_80 = "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x64_64x6_tn_align8>(Params)"


def known_names() -> list[dict[str, str]]:
    with (Path(__file__).parent / "kernel_names.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize("row", known_names(), ids=lambda row: f"{row['rule']}-{row['capability']}-{row['name'][:40]}")
def test_name(row):
    major, minor = row["capability"].split(".")
    found = classify(row["name"], (int(major), int(minor)))
    assert (found.rule, found.tensor_core, found.generation or "") == (row["rule"], row["class"], row["generation"])
    if row["operands"]:
        assert found.operands == row["operands"]


@pytest.mark.parametrize("rule", ["cute-dsl-atom", "cute-dsl-mma"])
def test_a_cute_dsl_kernel_is_known_by_its_atom_where_a_library_gives_it_another_prefix(rule):
    """As cuDNN's frontend does, by `set_name_prefix`."""
    row = next(row for row in known_names() if row["rule"] == rule)
    renamed = row["name"].replace("kernel_cutlass_kernel___main__", "cudnn_")
    assert renamed != row["name"]
    found = classify(renamed, tuple(map(int, row["capability"].split("."))))
    assert (found.rule, found.tensor_core) == (rule, row["class"])


def test_every_rule_has_a_name_and_an_id_of_its_own():
    ids = [rule.id for rule in RULES]
    assert len(ids) == len(set(ids))
    assert set(ids) <= {row["rule"] for row in known_names()}


def test_names_that_only_resemble_instructions():
    for name in ("summary_SUMMARY_kernel", "MAGMMATCH", "gammma_hmmm"):
        assert classify(name, B200).rule == "no-rule"


@given(st.text(), st.one_of(st.none(), st.tuples(st.integers(), st.integers())), st.booleans())
def test_never_raises(name, capability, nvidia):
    assert classify(name, capability, nvidia=nvidia).tensor_core in ("native", "legacy", "none", "unknown")


fragments = st.sampled_from(
    ["cutlass_", "sm", "80", "90", "120", "xmma_", "tensor16x8x16", "s16816", "gemm", "nvjet_", "hmma", "_", "volta"]
)


@given(st.lists(fragments, max_size=12).map("".join), st.sampled_from([V100, T4, A100, L4, H100, B200, RTX5090, None]))
def test_fragments_of_real_names_never_raise_and_agree_with_the_generation(name, capability):
    found = classify(name, capability)
    if found.tensor_core in ("native", "legacy"):
        assert found.generation is not None
        assert capability is not None
    if capability == V100:
        assert found.tensor_core != "legacy"


def test_very_long_names_are_classified_quickly():
    assert classify("sm90::" * 100_000, H100).rule == "no-rule"


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_nn", "cublas"),
        ("void allspark::ampere_hgemm_W8A16_perc_f16_f16_MtilexNtilex32_hmma16816_multistage_AN<__nv_bfloat16>", None),
    ],
)
def test_the_library_that_a_newer_release_is_to_be_had_of(name, library):
    assert classify(name, H100).library == library


def test_a_tensor_core_kernel_on_an_unknown_gpu_is_unknown():
    found = classify(SM90, None)
    assert (found.tensor_core, found.generation) == ("unknown", "hopper")


EVERY_GENERATION = [
    "fp8_blockwise_gemm_kernel",
    "void tensorrt_llm::kernels::cutlass_kernels::fp8_gemm<x>()",
]


@pytest.mark.parametrize("name", EVERY_GENERATION)
def test_fp8_is_native_where_a_gpu_has_one_path_for_it(name):
    assert [classify(name, gpu).tensor_core for gpu in (L4, RTX5090)] == ["native"] * 2
    assert [classify(name, gpu).tensor_core for gpu in (H100, B200)] == ["unknown"] * 2
    assert classify(name, T4).tensor_core == "unknown"  # its Tensor Cores take no FP8: what they do, if any, isn't told


def test_fp4_on_a_b200_has_one_path():
    assert classify("bmm_Bfloat16_E2m1_Fp32_t128x8x256", B200).tensor_core == "native"
    assert classify("bmm_Bfloat16_E2m1_Fp32_t128x8x256", H100).tensor_core == "unknown"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "_ZN2at6native12_GLOBAL__N_128vectorized_layer_norm_kernelIN3c108BFloat16EfLb1EEE",
            "vectorized_layer_norm_kernel<",
        ),
        ("_ZN7cutlass6KernelI6KernelLi4EEE", "cutlass::Kernel<::KernelLi4E"),
        ("ampere_sgemm_128x64_tn", "ampere_sgemm_128x64_tn"),
        ("_Z99short", "short"),
        ("_Z", ""),
    ],
)
def test_words_of_mangled_names(name, words):
    assert words in readable(name)


@pytest.mark.parametrize(
    "name",
    [
        "void ck_tile::kentry<1, ck_tile::FmhaFwdKernel>",
        "_ZN7ck_tile6kentryILi1EEE",
        "__amd_rocclr_copyBuffer",
        "Custom_Cijk_Alik_Bljk_BBS_BH_Bias_UserArgs_MT256x256x64_MI16x16x1_gfx950",
    ],
)
def test_another_vendors_names(name):
    assert classify(name, H100).rule == NOT_NVIDIA.rule


def test_another_vendors_gpu():
    found = classify(CUTLASS_80, (9, 4), nvidia=False)
    assert (found.rule, found.tensor_core, found.matmul) == (NOT_NVIDIA.rule, "unknown", True)


@pytest.mark.parametrize(
    ("capability", "generation"),
    [((7, 0), "volta"), ((7, 5), "turing"), ((8, 6), "ampere"), ((8, 9), "ada"), ((9, 0), "hopper"), ((6, 1), None)],
)
def test_generations(capability, generation):
    assert generation_of(capability) == generation


@pytest.mark.parametrize(
    ("ptx", "tensor_core", "generation"),
    [
        ("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f1}", "native", "hopper"),
        ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1}", "legacy", "ampere"),
        ("fma.rn.f32 %f1, %f2, %f3, %f4;", "none", None),
    ],
)
def test_ptx(ptx, tensor_core, generation):
    found = classify_ptx("matmul_kernel", f".target sm_90a\n{ptx}\n", H100)
    assert (found.tensor_core, found.generation) == (tensor_core, generation)


def test_throughput_overrules_an_ambiguous_name():
    unknown = classify("triton_tem_fused_mm_0", H100)
    assert second_opinion(unknown, 800.0, 67.0, 989.0).tensor_core == "native"
    proven = second_opinion(unknown, 300.0, 67.0, 989.0)
    assert (proven.tensor_core, proven.rule) == ("unknown", "throughput")
    assert second_opinion(unknown, 40.0, 67.0, 989.0) == unknown
    assert second_opinion(unknown, None, 67.0, 989.0) == unknown
    winograd = classify("volta_scudnn_winograd_128x128_ldg1_ldg4_relu_tile148t_nt_v1", V100)
    assert second_opinion(winograd, 28.0, 15.7, None) == winograd  # it multiplies 2.25 times less than that counts


def counted_kernels() -> list[dict[str, str]]:
    with (Path(__file__).parent / "h100_counters.tsv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_names_agree_with_the_counters_of_a_gpu():
    """188 kernels that `ncu` counted on an H100: warpgroup instructions are the native path, and a tensor pipe that is
    busy for more than 64 cycles a warp without them is the legacy one (float64 has no other)."""
    wrong = {}
    for row in counted_kernels():
        busy = float(row["tensor_cycles_per_warp"]) > 64 or float(row["warpgroup_instructions_per_warp"]) > 0
        native = float(row["warpgroup_instructions_per_warp"]) > 0 or "f64f64" in row["name"] or "d884" in row["name"]
        truth = ("native" if native else "legacy") if busy else "none"
        if (said := classify(row["name"], (9, 0)).tensor_core) != truth:
            wrong[row["name"]] = (said, truth)
    assert not wrong
    assert len(counted_kernels()) >= 100
