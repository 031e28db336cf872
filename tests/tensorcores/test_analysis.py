from __future__ import annotations

import pytest
from trace_builder import ADD, H100, NVJET, SGEMM, document, launched, mm, module, op, write

from precaudit.tensorcores.shapes.alignment import Padding, misaligned
from precaudit.tensorcores.traces.analysis import analyse
from precaudit.tensorcores.traces.trace import read_trace

AMPERE = "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_nn"
UNKNOWN = "my_matmul_kernel"


NVJET_FP4 = "nvjet_sm100_oohsh_128x256_256x5_2x2_2cta_h_bz_Avec16UE4M3_Bvec16UE4M3_TNT"
DGEMM = "cutlass_80_tensorop_d884gemm_64x64_16x4_nn_align1"


def analysed(folder, events, target=None, **metadata):
    return analyse(read_trace(write(folder, document(events, **metadata))), target)


def test_shares_of_gpu_time(tmp_path):
    kernels = [(NVJET, 50), (AMPERE, 20), (ADD, 25), ("strange_kernel", 5)]
    events = [event for i, (name, time) in enumerate(kernels) for event in launched(name, 100 * i, time, i)]
    analysis = analysed(tmp_path, events)
    share = analysis.tensor_cores.time_share
    assert (share.native, share.legacy, share.none, share.unknown) == pytest.approx((0.5, 0.2, 0.25, 0.05))
    assert analysis.seconds == pytest.approx(100e-6)
    assert analysis.tensor_cores.unattributed_share == 1.0
    assert sum(k.seconds for k in analysis.tensor_cores.kernels) == pytest.approx(analysis.seconds)


def test_the_rate_of_a_product_is_its_flops_over_the_time_of_its_kernels(tmp_path):
    """Helpers such as a layout change don't compute: the product's FLOPs belong to the kernels that do."""
    m, n, k = 4096, 4096, 4096
    events = [module("Linear_0", 0, 100), mm(0, 50, m, n, k), *launched(NVJET, 5, 250, 1), *launched(ADD, 20, 50, 2)]
    kernels = {kernel.name: kernel for kernel in analysed(tmp_path, events).tensor_cores.kernels}
    rate = 2 * m * n * k / 250e-6 / 1e12
    assert kernels[NVJET].tflops == pytest.approx(rate)
    assert kernels[NVJET].peak_share == pytest.approx(rate / 989.5)
    assert kernels[ADD].tflops is None
    (layer,) = analysed(tmp_path, events).tensor_cores.layers
    assert (layer.fqn, layer.calls) == ("Linear_0", 2)
    assert layer.time.tflops == pytest.approx(rate)


def test_a_kernel_without_a_format_in_its_name_is_rated_by_its_products_format(tmp_path):
    events = [module("Linear_0", 0, 100), mm(0, 50, 4096, 4096, 4096), *launched("triton_tem_fused_mm_1", 5, 250, 1)]
    cores = analysed(tmp_path, events).tensor_cores
    (kernel,), (layer,) = cores.kernels, cores.layers
    assert kernel.operands is None
    assert kernel.peak_share == layer.time.peak_share == pytest.approx(kernel.tflops / 989.5)


def test_products_of_an_unknown_format_are_not_called_float32(tmp_path):
    events = [module("Linear_0", 0, 100), op("aten::mm", 1, 50), *launched("gemmk1_kernel", 5, 250, 1)]
    (finding,) = analysed(tmp_path, events).findings
    assert finding.rule == "PA404"
    assert "in a format that the trace doesn't tell" in finding.message


def test_flops_of_a_split_product_are_divided_by_time(tmp_path):
    events = [mm(0, 50, 4096, 4096, 4096), *launched(NVJET, 5, 100, 1), *launched(AMPERE, 20, 150, 2)]
    kernels = analysed(tmp_path, events).tensor_cores.kernels
    assert len({round(kernel.tflops, 6) for kernel in kernels}) == 1


def test_a_rate_above_the_vector_peak_proves_tensor_cores(tmp_path):
    def share(microseconds):
        events = [mm(0, 50, 4096, 4096, 4096), *launched(UNKNOWN, 5, microseconds, 1)]
        (kernel,) = analysed(tmp_path, events).tensor_cores.kernels
        return kernel.tensor_core, kernel.rule

    assert share(160) == ("native", "throughput")  # 859 TFLOP/s of 989
    assert share(400) == ("unknown", "throughput")  # 344: Tensor Cores, the path can't be told
    assert share(5000) == ("unknown", "no-rule")  # 27


def test_the_rate_of_a_transformed_convolution_proves_nothing(tmp_path):
    """Winograd's F(4x4, 3x3) leaves a quarter of the multiplications: 40 TFLOP/s of the op's, 10 of the kernel's."""
    event = op("aten::cudnn_convolution", 0, 50)
    event["args"] = {
        "Input Dims": [[32, 256, 56, 56], [256, 256, 3, 3]],
        "Input type": ["float", "float"],
        "Concrete Inputs": ["", "", "[1, 1]", "[1, 1]", "[1, 1]", "1"],
    }
    transform = "void cudnn::winograd_nonfused::winogradForwardData4x4<float, float>(Params)"
    events = [event, *launched(transform, 5, 500, 1), *launched("volta_sgemm_128x64_nn", 8, 2500, 2)]
    v100 = {"id": 0, "name": "Tesla V100-SXM2-16GB", "computeMajor": 7, "computeMinor": 0}
    analysis = analyse(read_trace(write(tmp_path, document(events, v100))))
    assert (analysis.used, analysis.tensor_cores.time_share.none) == (0.0, 1.0)
    assert analysis.tensor_cores.kernels[0].tflops == pytest.approx(39.5, abs=0.1)


def test_the_common_rate_of_different_kernels_proves_nothing(tmp_path):
    """A gradient on vector units beside a faster one in TF32: 29 TFLOP/s together, above an A100's vector units."""
    event = op("aten::convolution_backward", 0, 50)
    event["args"] = {
        "Input Dims": [[32, 256, 56, 56], [32, 256, 56, 56], [256, 256, 3, 3]],
        "Input type": ["float"] * 3,
        "Concrete Inputs": ["", "", "", "[0]", *["[1, 1]"] * 3, "False", "[0, 0]", "1", "[True, True, False]"],
    }
    dgrad = "cutlass_tensorop_s1688dgrad_optimized_tf32_128x128_16x4_nhwc_align4"
    wgrad = "void cudnn::cnn::wgrad_alg0_engine<float, 512, 6, 5, 3, 3, 3, false, 512>(int)"
    events = [event, *launched(dgrad, 5, 1200, 1), *launched(wgrad, 8, 7000, 2)]
    a100 = {"id": 0, "name": "NVIDIA A100-SXM4-80GB", "computeMajor": 8, "computeMinor": 0}
    slow, fast = analyse(read_trace(write(tmp_path, document(events, a100)))).tensor_cores.kernels
    assert [(kernel.tensor_core, kernel.tflops) for kernel in (slow, fast)] == [
        ("none", pytest.approx(28.9, abs=0.1)),
        ("native", pytest.approx(28.9, abs=0.1)),
    ]


def test_a_tensor_core_kernel_at_a_vector_rate_is_flagged(tmp_path):
    events = [mm(0, 50, 4096, 4096, 4096), *launched(NVJET, 5, 9000, 1)]
    notes = analysed(tmp_path, events).tensor_cores.notes
    assert any("15.3 TFLOP/s" in note and "rule nvjet is wrong" in note for note in notes)


def test_communication_is_reported_separately(tmp_path):
    reduce = "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
    events = [*launched(NVJET, 0, 30, 1), *launched(ADD, 40, 10, 2), *launched(reduce, 60, 60, 3)]
    notes = analysed(tmp_path, events).tensor_cores.notes
    assert any(
        "60.0% of the kernel time is communication" in note and "75.0% ran on Tensor Cores" in note for note in notes
    )
    assert not any("communication" in note for note in analysed(tmp_path, launched(reduce, 0, 5, 1)).tensor_cores.notes)


def test_eligible_flops(tmp_path):
    events = [
        mm(0, 50, 64, 64, 64),
        *launched(NVJET, 5, 10, 1),
        mm(100, 50, 64, 64, 64, "float"),
        *launched(SGEMM, 105, 10, 2),
    ]
    assert analysed(tmp_path, events).tensor_cores.eligible_flops_share == pytest.approx(0.5)


def test_advice_names_the_dimension_to_pad(tmp_path):
    old = "cutlass_75_tensorop_bf16_s1688gemm_bf16_128x128_nn_align1"
    events = [module("Linear_7", 0, 99), mm(1, 50, 512, 5185, 1024), *launched(old, 5, 300, 1)]
    (finding,) = analysed(tmp_path, events).findings
    assert (finding.rule, finding.fqn) == ("PA401", "Linear_7")
    assert "N = 5185 is not a multiple of 8" in finding.message
    assert finding.suggestion == "Pad N from 5185 to 5248"
    assert finding.evidence["share"] == 1.0


def test_what_runs_as_tf32_is_aligned_as_tf32(tmp_path):
    old = "cutlass_80_tensorop_s1688gemm_128x128_16x5_nn_align1"
    (finding,) = analysed(tmp_path, [mm(1, 50, 512, 5185, 1024, "float"), *launched(old, 5, 300, 1)]).findings
    assert "N = 5185 is not a multiple of 4 (tf32): legacy kernels" in finding.message
    assert finding.suggestion == "Pad N from 5185 to 5216"


def test_padding_that_adds_much_work_is_only_mentioned(tmp_path):
    old = "cutlass_75_tensorop_bf16_s1688gemm_bf16_128x128_nn_align1"
    (finding,) = analysed(tmp_path, [mm(1, 50, 512, 3, 1024), *launched(old, 5, 300, 1)]).findings
    assert finding.suggestion == "Measure before you pad N from 3 to 8: it adds 167% to the product's work"


@pytest.mark.parametrize(
    ("rows", "columns", "microseconds", "advised"),
    [(1024, 50257, 1000, 1), (1024, 50257, 400, 0), (1024, 50304, 1000, 0), (2**20, 3, 90, 0), (64, 63, 100, 0)],
)
def test_unaligned_sizes_that_cost_speed_on_the_one_path_of_a_gpu(tmp_path, rows, columns, microseconds, advised):
    """Ampere's instructions take any size: at 25% of an A100's peak, a cheap padding may be what it lacks."""
    kernel = "ampere_bf16_s1688gemm_bf16_128x128_ldg8_f2f_stages_32x1_nn"
    events = [mm(1, 50, rows, columns, 768), *launched(kernel, 5, microseconds, 1)]
    a100 = {"id": 0, "name": "NVIDIA A100-SXM4-80GB", "computeMajor": 8, "computeMinor": 0}
    findings = analyse(read_trace(write(tmp_path, document(events, a100)))).findings
    assert [finding.rule for finding in findings] == ["PA401"] * advised
    if advised:
        assert "N = 50257 is not a multiple of 8 (bf16): native kernels at 25% of their peak" in findings[0].message
        assert findings[0].suggestion == "Pad N from 50257 to 50304"


@pytest.mark.parametrize(
    ("kind", "kernel", "rule", "words"),
    [
        ("c10::BFloat16", AMPERE, "PA402", "newer cuBLAS"),
        ("c10::BFloat16", "void pytorch_flash::flash_fwd_kernel<64>", "PA402", "CUDNN_ATTENTION"),
        ("c10::BFloat16", "fmha_cutlassF_bf16_aligned_64x128_rf_sm80", "PA402", "CUDNN_ATTENTION"),
        ("c10::BFloat16", "void marlin::Marlin<__half, 4, 256>(int4 const*)", "PA402", "Look for a release"),
        ("float", SGEMM, "PA403", "allow TF32"),
        ("double", "volta_dgemm_64x64_nn", "PA403", "float64 needs a reason"),
        ("c10::BFloat16", "void gemv2T_kernel_val<int, int, __nv_bfloat16>", "PA404", "batch more rows"),
        ("float", "void gemv2T_kernel_val<int, int, float, float>", "PA404", "batch more rows"),
        ("c10::complex<float>", "cutlass_80_simt_cgemm_64x64", "PA403", "allow TF32"),
        ("c10::Half", "void tensorrt_llm::kernels::cudaCoreGemm<half>", "PA404", "look for kernels"),
    ],
)
def test_advice_by_cause(tmp_path, kind, kernel, rule, words):
    (finding,) = analysed(tmp_path, [mm(0, 50, 64, 64, 64, kind), *launched(kernel, 5, 100, 1)]).findings
    assert finding.rule == rule
    assert words.lower() in finding.suggestion.lower()


DEPTHWISE = "void cudnn::cnn::conv2d_grouped_direct_kernel<false, true, __nv_bfloat16, __nv_bfloat16, float>"


def test_a_depthwise_convolution_is_not_padded(tmp_path):
    event = op("aten::cudnn_convolution", 0, 50)
    event["args"] |= {
        "Input Dims": [[32, 256, 56, 56], [256, 1, 3, 3]],
        "Input type": ["c10::BFloat16"] * 2,
        "Input Strides": [],
        "Concrete Inputs": ["", "", "[1, 1]", "[1, 1]", "[1, 1]", "256"],
    }
    found = analysed(tmp_path, [event, *launched(DEPTHWISE, 5, 300, 1)])
    (finding,) = found.findings
    assert (finding.rule, found.tensor_cores.eligible_flops_share) == ("PA404", 0.0)
    assert finding.message.startswith("depthwise convolutions in bf16")
    assert "batch" not in finding.suggestion.lower()


@pytest.mark.parametrize(("kind", "kernel"), [("c10::Float4_e2m1fn_x2", NVJET_FP4), ("double", DGEMM)])
def test_a_format_without_a_listed_peak_has_no_peak_share(tmp_path, kind, kernel):
    used = analysed(tmp_path, [mm(0, 50, 512, 512, 512, kind), *launched(kernel, 5, 300, 1)]).tensor_cores
    assert (used.kernels[0].tensor_core, used.kernels[0].peak_share) == ("native", None)
    assert not any("vector units" in note for note in used.notes)


def test_another_vendors_product_has_the_flops_and_its_helpers_have_none(tmp_path):
    kernels = ("batched_transpose_16x32_half", "igemm_fwd_gtcx3_nhwc_bf16_bx0_ex1_bt128x128x32")
    launches = [event for i, name in enumerate(kernels) for event in launched(name, 5 + 20 * i, 100, i)]
    amd = {"id": 0, "name": "AMD Instinct MI300X", "computeMajor": 9, "computeMinor": 4}
    found = analysed(tmp_path, [mm(0, 90, 1024, 1024, 1024), *launches], device=amd).tensor_cores
    assert {k.name: k.tflops for k in found.kernels} == {kernels[0]: None, kernels[1]: pytest.approx(2 * 2**30 / 1e8)}


@pytest.mark.parametrize(
    ("other", "words"),
    [(ADD, ("element-wise", "Fuse them")), ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", ("between GPUs", "overlap"))],
)
def test_what_no_tensor_core_shortens_is_said_where_it_is_most_of_the_time(tmp_path, other, words):
    def findings(spent):
        return analysed(tmp_path, [*launched(NVJET, 0, 50, 1), *launched(other, 100, spent, 2)]).findings

    (finding,) = findings(60)
    assert (finding.rule, finding.evidence["share"]) == ("PA405", pytest.approx(60 / 110))
    assert words[0] in finding.message
    assert words[1] in finding.suggestion
    assert findings(50) == ()


def test_findings_of_products_and_of_other_kernels_are_ranked_together(tmp_path):
    slow = [mm(0, 50, 64, 64, 64), *launched(AMPERE, 5, 40, 1)]
    found = analysed(tmp_path, [*slow, *launched(ADD, 200, 60, 2)])
    assert [finding.rule for finding in found.findings] == ["PA405", "PA402"]


def test_native_kernels_need_no_advice(tmp_path):
    assert analysed(tmp_path, [mm(0, 50, 64, 63, 64), *launched(NVJET, 5, 100, 1)]).findings == ()


def test_a_trace_that_does_not_name_its_gpu(tmp_path):
    events = [*launched(NVJET, 0, 50, 1), *launched(AMPERE, 100, 50, 2)]
    unnamed = {"deviceProperties": None}
    found = analysed(tmp_path, [*launched("wgmma_kernel", 200, 100, 3), *events], **unnamed).tensor_cores
    assert any("taken to be of generation Hopper" in note for note in found.notes)
    assert found.time_share.legacy == pytest.approx(0.25)
    named = analysed(tmp_path, events, target="h100", **unnamed).tensor_cores
    assert (named.device, named.time_share.native) == ("H100", pytest.approx(0.5))
    nothing = analysed(tmp_path, launched(ADD, 0, 5, 1), **unnamed).tensor_cores
    assert nothing.device is None
    assert nothing.time_share.none == 1.0


def test_a_target_does_not_override_the_gpu_in_the_trace(tmp_path):
    found = analysed(tmp_path, launched(NVJET, 0, 50, 1), target="v100").tensor_cores
    assert found.device == "NVIDIA H100 80GB HBM3"
    assert any("names its GPU, NVIDIA H100 80GB HBM3: the target V100 is not used" in note for note in found.notes)
    assert not any("target" in note for note in analysed(tmp_path, launched(NVJET, 0, 5, 1), "h100").tensor_cores.notes)


@pytest.mark.parametrize(
    ("gpu", "capability", "used"),
    [
        ("Tesla P100-SXM2-16GB", (6, 0), 0.0),
        ("Tesla K80", (3, 7), 0.0),
        # of the T4's capability, on the TU116 and TU117: techpowerup.com/review/evga-gtx-1660-ti-xc-black/2.html
        ("NVIDIA GeForce GTX 1660 Ti", (7, 5), 0.0),
        ("Quadro T1000", (7, 5), 0.0),
        ("NVIDIA T600 Laptop GPU", (7, 5), 0.0),
        ("Tesla T4", (7, 5), 0.5),
        ("NVIDIA GeForce RTX 2060", (7, 5), 0.5),
        ("Quadro RTX 6000", (7, 5), 0.5),
        ("NVIDIA TITAN RTX", (7, 5), 0.5),
    ],
)
def test_kernels_on_a_gpu_without_tensor_cores_use_none(tmp_path, gpu, capability, used):
    """Whatever its kernels are called: cards of the GTX 16 series run Turing's, on other units."""
    kernels = ["turing_fp16_s1688gemm_fp16_128x128_ldg8_f2f_nn", "sgemm_sm35_ldg_nn_64x16x64x16x16"]
    events = [event for i, name in enumerate(kernels) for event in launched(name, 100 * i, 50, i)]
    device = {"id": 0, "name": gpu, "computeMajor": capability[0], "computeMinor": capability[1]}
    analysis = analyse(read_trace(write(tmp_path, document(events, device))))
    share = analysis.tensor_cores.time_share
    assert share.native + share.legacy == used
    if not used:
        assert share.none == 1
        assert not analysis.findings
        assert any("has no Tensor Cores" in note for note in analysis.tensor_cores.notes)


def test_a_target_that_is_older_than_the_kernels_is_questioned(tmp_path):
    found = analysed(tmp_path, launched("wgmma_kernel", 0, 5, 1), target="v100", deviceProperties=None).tensor_cores
    assert any("Kernels for Hopper GPUs don't run on V100" in note for note in found.notes)


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA Unheard-of", None])
def test_a_missing_capability_is_inferred_from_the_name_or_the_kernels(tmp_path, name):
    events = [*launched(NVJET, 0, 50, 1), *launched("wgmma_kernel", 100, 50, 2)]
    found = analysed(tmp_path, events, deviceProperties=[{"id": 0, "name": name}]).tensor_cores
    assert found.time_share.native == 1.0


def test_each_kernel_is_classified_for_its_own_gpu(tmp_path):
    listed = [
        {"id": 0, "name": "NVIDIA A100-SXM4-80GB", "computeMajor": 8, "computeMinor": 0},
        {"id": 1, "name": "NVIDIA H100 80GB HBM3", "computeMajor": 9, "computeMinor": 0},
    ]
    ampere = "ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn"
    events = []
    for i, device in enumerate((0, 1, 1)):
        call, kernel = launched(ampere, 100 * i + 5, 125, i + 1)
        kernel["args"]["device"] = device
        events += [mm(100 * i, 50, 4096, 4096, 4096), call, kernel]
    analysis = analysed(tmp_path, events, deviceProperties=listed)
    found = analysis.tensor_cores
    assert found.device == "NVIDIA H100 80GB HBM3 and NVIDIA A100-SXM4-80GB"
    assert {(k.tensor_core, k.calls): k.peak_share for k in found.kernels} == {
        ("legacy", 2): pytest.approx(2 * 4096**3 / 125e-6 / 989.5e12),
        ("native", 1): pytest.approx(2 * 4096**3 / 125e-6 / 312e12),
    }
    assert (found.time_share.native, found.time_share.legacy) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert [(f.rule, f.evidence["calls"]) for f in analysis.findings] == [("PA402", 2)]


def test_an_amd_gpu_is_named_as_such(tmp_path):
    device = [{"id": 0, "name": "AMD Instinct MI300X", "computeMajor": 9, "computeMinor": 4}]
    analysis = analysed(tmp_path, launched(NVJET, 0, 5, 1), deviceProperties=device)
    assert "not an NVIDIA GPU" in analysis.tensor_cores.method
    assert analysis.tensor_cores.time_share.unknown == 1.0
    assert analysis.findings == ()


@pytest.mark.parametrize(
    ("size", "kind", "target"),
    [
        (50257, "bf16", 50304),
        (1030, "float16", 1032),
        (30, "fp8", 32),
        (6, "tf32", 8),
        (30, "int8", 32),
        (64, "bf16", None),
    ],
)
def test_padding(size, kind, target):
    found = misaligned([("N", size)], kind)
    assert found == ([Padding("N", size, target)] if target else [])


WGMMA = ".target sm_90a\nwgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {%f1}\n"
FMA = ".target sm_90a\nfma.rn.f32 %f1, %f2, %f3, %f4;\n"


@pytest.mark.parametrize(
    ("ptx", "tensor_core", "rule"),
    [
        ({}, "unknown", "no-rule"),
        ({UNKNOWN: [WGMMA]}, "native", "ptx"),
        ({UNKNOWN: [WGMMA, WGMMA.replace("n128", "n256")]}, "native", "ptx"),
        ({UNKNOWN: [FMA]}, "none", "ptx"),
        ({UNKNOWN: [WGMMA, WGMMA.replace("bf16", "f16")]}, "native", "ptx"),
        ({UNKNOWN: [WGMMA, FMA]}, "unknown", "no-rule"),
        ({"another_kernel": [WGMMA]}, "unknown", "no-rule"),
    ],
)
def test_the_ptx_of_a_triton_kernel_overrides_its_name(ptx, tensor_core, rule, tmp_path):
    trace = read_trace(write(tmp_path, document(launched(UNKNOWN, 5, 100, 1))))
    (kernel,) = analyse(trace, ptx=ptx).tensor_cores.kernels
    assert (kernel.tensor_core, kernel.rule) == (tensor_core, rule)


def test_a_triton_kernel_without_mma_instructions_is_no_product(tmp_path):
    """As Liger's norms and losses are: nothing in them could run on Tensor Cores."""
    trace = read_trace(write(tmp_path, document(launched("liger_cross_entropy_kernel", 5, 100, 1))))
    analysis = analyse(trace, ptx={"liger_cross_entropy_kernel": [FMA + "cvt.f32.bf16 %f1, %h1;\n"]})
    assert analysis.tensor_cores.kernels[0].tensor_core == "none"
    assert {finding.rule for finding in analysis.findings} == {"PA405"}
    trace = read_trace(write(tmp_path, document(launched("triton_tem_fused_mm_0", 5, 100, 1))))
    assert [f.rule for f in analyse(trace, ptx={"triton_tem_fused_mm_0": [FMA]}).findings] == ["PA403"]


def test_a_layers_share_of_peak_is_that_of_its_products(tmp_path):
    events = [module("Linear_0", 0, 100), mm(0, 50, 4096, 4096, 4096), *launched(NVJET, 5, 250, 1)]
    analysis = analysed(tmp_path, events)
    (layer,), (kernel,) = analysis.tensor_cores.layers, analysis.tensor_cores.kernels
    assert layer.time.peak_share == pytest.approx(kernel.peak_share)


def test_kernels_of_another_vendor_identify_it(tmp_path):
    events = launched("Cijk_Alik_Bljk_BBS_BH_MT256x128x64", 0, 5, 1)
    used = analysed(tmp_path, events, deviceProperties=[]).tensor_cores
    assert used.device == "unnamed AMD GPU"
    assert "not an NVIDIA GPU" in used.method


def test_kernels_without_launches_are_not_called_early(tmp_path):
    _, kernel = launched(NVJET, 0, 5, 1)
    notes = " ".join(analysed(tmp_path, [kernel]).tensor_cores.notes)
    assert "no launch calls" in notes
    assert "before the recording" not in notes


BF16, TILE = "c10::BFloat16", "ALLOW_TF32=False,BLOCK_K=64,BLOCK_M=128,BLOCK_N=128,GROUP_M=8"


def inductors(name, types, constants="", warps=4, **arguments):
    """A kernel of Inductor's, by its oldest name, in the op that launches it."""
    event = op(name, 0, 10, **arguments)
    event["args"] |= {"Input type": types, "kernel_kwargs": constants, "num_warps": warps}
    return [event, *launched("triton__0d1d2d3d", 1, 100, 1)]


@pytest.mark.parametrize(
    ("name", "types", "constants", "warps", "said"),
    [
        ("triton_tem_fused_mm_0", [BF16] * 3, TILE, 4, ("native", "hopper")),
        ("triton_tem_fused_mm_0", [BF16] * 3, TILE.replace("M=128", "M=16"), 4, ("legacy", "ampere")),
        ("triton_tem_fused_addmm_0", [BF16] * 4, TILE, 2, ("legacy", "ampere")),
        ("triton_tem_fused_mm_0", [BF16] * 3, "", 4, ("unknown", None)),  # as versions write it that fix the tile
        ("triton_tem_fused_mm_0", ["float"] * 3, TILE, 4, ("none", None)),
        ("triton_tem_fused_mm_0", ["float"] * 3, TILE.replace("=False", "=True"), 4, ("native", "hopper")),
        ("triton_tem_fused_mm_0", [BF16, BF16, "float"], TILE, 4, ("unknown", None)),
        ("triton_tem_fused__to_copy_mm_0", [BF16] * 3, TILE, 4, ("unknown", None)),
        ("triton_tem_fused_convolution_0", [BF16] * 3, TILE, 4, ("unknown", None)),  # it may be depthwise
        ("triton_tem_fused_flex_attention_0", [BF16] * 3 + ["float"], TILE, 8, ("native", "hopper")),
        ("triton_poi_fused_add_0", [BF16] * 3, "XBLOCK=512", 4, ("none", None)),
    ],
)
def test_inductors_kernels_are_known_by_the_op_that_launches_them(tmp_path, name, types, constants, warps, said):
    (kernel,) = analysed(tmp_path, inductors(name, types, constants, warps)).tensor_cores.kernels
    assert (kernel.tensor_core, kernel.generation) == said


B200 = {"id": 0, "name": "NVIDIA B200", "computeMajor": 10, "computeMinor": 0}


@pytest.mark.parametrize("device", [H100, B200])
@pytest.mark.parametrize(
    ("rows", "columns", "warps", "newest"),
    [
        (128, 128, 8, True),
        (64, 16, 4, True),
        (64, 64, 8, True),
        (32, 128, 4, False),
        (16, 64, 4, False),
        (128, 64, 2, False),
    ],
)
def test_the_tile_of_a_template_tells_its_path(tmp_path, device, rows, columns, warps, newest):
    """As Triton 3.6 compiled tl.dot in these tiles for sm_90 and sm_100."""
    tile = f"ALLOW_TF32=False,BLOCK_K=32,BLOCK_M={rows},BLOCK_N={columns}"
    events = inductors("triton_tem_fused_mm_0", [BF16] * 3, tile, warps)
    (kernel,) = analyse(read_trace(write(tmp_path, document(events, device)))).tensor_cores.kernels
    assert kernel.tensor_core == ("native" if newest else "legacy")


def test_inductors_own_count_of_a_templates_flops_gives_its_rate(tmp_path):
    events = inductors("triton_tem_fused_mm_0", [BF16] * 3)
    events[0]["args"]["kernel_flop"] = 80e9
    (kernel,) = analysed(tmp_path, events).tensor_cores.kernels
    assert kernel.tflops == pytest.approx(800)
    assert kernel.tensor_core == "native"  # mma.sync reaches no three quarters of the peak
    events[0]["args"]["kernel_flop"] = 40e9
    usage = analysed(tmp_path, events).tensor_cores
    assert (usage.time_share.unknown, usage.eligible_flops_share) == (1, 1)


def test_tensor_cores_by_a_path_that_is_not_told_are_noted(tmp_path):
    events = [*launched("fused_moe_kernel", 0, 30, 1), *launched("strange_kernel", 50, 70, 2)]
    usage = analysed(tmp_path, events).tensor_cores
    assert usage.time_share.unknown == 1
    assert any("30.0% of the GPU time is on Tensor Cores" in note for note in usage.notes)
    assert any("wgmma or tcgen05 is native" in note for note in usage.notes)
    foreign = analysed(tmp_path, launched("bmm_Bfloat16_E4m3E4m3_Fp32_t128x8x128_s6", 0, 30, 1)).tensor_cores
    assert foreign.time_share.unknown == 1
    assert not any("Triton" in note for note in foreign.notes)
