"""What `precaudit trace` writes, beside what it wrote the last time somebody looked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from golden_files import assert_golden
from trace_builder import ADD, NVJET, SGEMM, document, launched, mm, module, op, write

from precaudit.reporting import format_of
from precaudit.tensorcores.traces.analysis import analyse
from precaudit.tensorcores.traces.rendering import RENDERERS, rows, short_name
from precaudit.tensorcores.traces.trace import read_trace

OLD = "cutlass_75_tensorop_bf16_s1688gemm_bf16_128x128_nn_align1"
HOSTILE = "<img src=x onerror=alert(1)>|\u202e\x1b[31m::error::"


@pytest.fixture
def analysis(tmp_path):
    events = [
        module("GPT_0", 0, 900),
        module("Linear_1", 10, 80),
        mm(12, 50, 4096, 4096, 1024),
        *launched(NVJET, 15, 60, 1),
        module("Linear_2", 100, 80),
        mm(102, 50, 4096, 50257, 1024),
        *launched(OLD, 105, 7000, 2),
        mm(202, 50, 512, 512, 512, "float"),
        *launched(SGEMM, 205, 200, 3),
        module(HOSTILE, 300, 80),
        op("aten::add", 302, 20),
        *launched(ADD, 305, 300, 4),
        *launched(HOSTILE, 350, 100, 5),
    ]
    found = analyse(read_trace(write(tmp_path, document(events))))
    return replace(found, source="runs/step-10.json.gz")


@pytest.mark.parametrize("extension", [".txt", ".md", ".html", ".json"])
def test_golden(analysis, extension):
    assert_golden(f"trace{extension}", rendered(analysis, extension))


def rendered(analysis, extension=".txt"):
    return RENDERERS[format_of(Path(f"x{extension}"))](analysis)


def said(tmp_path, *events, extension=".txt", **described):
    found = analyse(read_trace(write(tmp_path, document(list(events), **described))))
    return rendered(found, extension)


@pytest.mark.parametrize("extension", [".txt", ".md", ".html"])
def test_without_layers_no_time_is_said_to_belong_to_one(tmp_path, extension):
    bare = said(tmp_path, *launched(SGEMM, 0, 50, 1), extension=extension)
    assert "Kernel time that belongs to no operation: 100%." in bare
    owned = said(tmp_path, module("Linear_1", 0, 80), *launched(SGEMM, 5, 50, 1), extension=extension)
    assert "belongs to no layer and no other known part of a step: 0%" in owned


def test_a_rule_that_is_cut_says_so(tmp_path):
    text = said(tmp_path, *launched("cudnn::winograd::generateWinogradTilesKernel", 0, 50, 1))
    assert "transf…ed-conv" in text


@pytest.mark.parametrize("extension", [".txt", ".md", ".html"])
def test_what_to_do_stands_before_the_tables(tmp_path, extension):
    text = said(tmp_path, *launched(SGEMM, 0, 50, 1), extension=extension)
    assert text.index("of the GPU time on") < text.index("What to do") < text.index("PA403") < text.index("Kernels")


def test_tensor_cores_by_an_unknown_path_count_in_the_first_line(tmp_path):
    text = said(tmp_path, *launched("fused_moe_kernel", 0, 30, 1), *launched("strange_kernel", 50, 70, 2))
    first = " ".join(text.split("\n\n")[1].split())
    assert first.startswith(
        "30.0% of the GPU time on Tensor Cores (30.0% by a path that isn't known), 70.0% unknown: 0.1 ms of"
    )


@pytest.mark.parametrize("extension", [".txt", ".md", ".html"])
def test_no_class_is_given_to_another_vendors_kernels(tmp_path, extension):
    amd = {"id": 0, "name": "AMD Instinct MI300X", "computeMajor": 9, "computeMinor": 4}
    text = said(tmp_path, *launched(ADD, 0, 50, 1), extension=extension, device=amd)
    assert "Not an NVIDIA GPU" in text
    assert "Nothing can be said: the rules are for NVIDIA" in text
    assert "names don" not in text


def test_shares_of_the_rows_add_up_to_all(analysis):
    assert sum(row.share for row in rows(analysis)) == pytest.approx(1)
    assert sum(layer.share for layer in analysis.tensor_cores.layers) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (SGEMM, "cutlass_80_simt_sgemm_128x32_8x5_nn_align1"),
        (ADD, "vectorized_elementwise_kernel"),
        (NVJET, NVJET),
        ("void (anonymous namespace)::softmax_warp_forward<float, 8>(float*)", "softmax_warp_forward"),
        ("_ZN2at6native13reduce_kernelILi512ELi1EEEvT1_", "reduce_kernel"),
        ("<lambda>", "<lambda>"),
        ("", ""),
    ],
)
def test_short_names(name, short):
    assert short_name(name) == short


@pytest.mark.parametrize(
    "kernel", ["", "flash_fwd_splitkv_mla_kernel", f"void cutlass::device_kernel<KernelTmaWarp{OLD}>"]
)
def test_tables_keep_to_eighty_columns(tmp_path, kernel):
    scopes = [module(f"transformer.layers.{i}.self_attention.query_key_value", 1000 * i, 900) for i in range(3)]
    launches = [event for i in range(3) for event in launched(kernel, 1000 * i + 10, 500, i)]
    products = [mm(1000 * i + 2, 800, 4096, 4096, 4096) for i in range(3)]
    found = analyse(read_trace(write(tmp_path, document([*scopes, *products, *launches]))))
    text = rendered(replace(found, source="trace.json"))
    assert "….0.self_…_key_value" in text
    assert "  … is transformer.layers\n" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_page_shortens_names_and_counts_omitted_rows(tmp_path):
    events = [event for i in range(201) for event in launched(f"kernel_{i}_{'x' * 500}", 10 * i, 5, i)]
    page = rendered(analyse(read_trace(write(tmp_path, document(events)))), ".html")
    assert f">{'x' * 200}" not in page
    assert "<p>1 more kernel</p>" in page


def test_generations_of_gpus_have_capitals(tmp_path):
    text = " ".join(said(tmp_path, mm(0, 50, 4096, 4096, 4096), *launched(OLD.replace("75", "80"), 5, 90, 1)).split())
    assert "runs Ampere instructions" in text
    assert "on a GPU of generation Hopper" in text
