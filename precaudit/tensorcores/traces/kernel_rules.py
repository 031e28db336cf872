"""Classification of kernels by name: a table of rules, of which the first match decides.

Relative to the GPU that ran it, a Tensor Core kernel is `native` (it uses instructions of that GPU's generation) or
`legacy` (those of an older one, which newer GPUs run well below their peak). `none` uses no Tensor Core, and `unknown`
means that the name does not tell.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from precaudit.hardware.generations import RANK, Capability, generation_of
from precaudit.tensorcores.traces.kernel_names import (
    library_of,
    operand_format,
    readable,
    shape_generation,
    stated_generation,
)

TensorCoreClass = Literal["native", "legacy", "none", "unknown"]


@dataclass(frozen=True)
class Classification:
    """The class of a kernel and why; `matmul` says that it computes products rather than moves or maps values, `used`
    that Tensor Cores do, also where the class is unknown because their path is."""

    tensor_core: TensorCoreClass
    rule: str
    generation: str | None = None
    operands: str | None = None
    library: str | None = None
    matmul: bool = False
    used: bool = False


@dataclass(frozen=True)
class KernelRule:
    """`uses` Tensor Cores: True, False, or None where the name can't tell.

    `generation` is what the pattern itself proves; where it is None the rest of the name is asked.
    """

    id: str
    pattern: re.Pattern[str]
    uses: bool | None
    generation: str | None = None
    matmul: bool = True


def _rule(rule_id: str, pattern: str, uses: bool | None, generation: str | None = None) -> KernelRule:
    return KernelRule(rule_id, re.compile(pattern), uses, generation)


def _others(rule_id: str, pattern: str) -> KernelRule:
    """Kernels that are no products of matrices: they copy, map, reduce or communicate."""
    return KernelRule(rule_id, re.compile(pattern), uses=False, matmul=False)


TRITON_DOT = "triton-dot"
# Beside one of these words what maps or moves values may be fused with a product.
_NO_PRODUCT = (
    r"(?!.*(?:gemm(?!a)|mma(?<!gemma)(?<!gamma)|attention|attn|fmha|flash_?(?:fwd|bwd|decod)|conv(?!ert)|mat(?:rix)?_?mul|(?<!bi)(?<!tri)linear|mlp"
    r"|fused_?moe|dot|dense|ffn|proj|einsum|lora|lm_?head|lstm|(?<!fast_)hadamard_|(?<!co)(?<!sy)mm(?![a-z])|gate_?up"
    r"|(?<![a-z])(?:mha|gqa|sdpa|gru|rnn|fc\d?)(?![a-z])|mla_(?:decode|prefill|fwd|bwd)))"
)
RULES: tuple[KernelRule, ...] = (
    _others(
        "helper",
        r"split[kK]_?[rR]educe|ReduceSplitK|reduce_1Block|globalKernel|OffsetsKernel|nchwToNhwc|nhwcToNchw|dot_do_o|convert_dq"
        r"|FwdCombine|reshape_and_cache|prepare_varlen|init_device_workspace|convertTensor_kernel|AddPaddingKernel"
        r"|clear_dkvaccum|convert_dkv|ForwardCombine|BwdSumOdO|FmhaKernelBwdConvert|MlaReductionKernel|mla_metadata"
        r"|cudnn::fusion::|kern_precompute|region_transform|flip_filter|compute_gemm_pointers|generic4Channel|SparseCompressor|nopHardwareDetection"
        r"|^(?!.*(?i:(?<!fb)gemm|matmul|(?:deep_|dpsk::)ep::)).*(?:(?<!chunk_)[Pp]reprocess|[Pp]ostprocess|combine(?!d)|[eE]lement[wW]ise|Functor"
        r"|im2col|col2im|vol2col|col2vol)",
    ),
    # What serves a low-precision product, beside it in the same namespace and with its formats in the name.
    _others(
        "gemm-helper",
        r"gemm_starts|group_gemm_args|prepare_grouped_gemm_data|scale_\d+x128_(?:reshape_)?kernel|expandInputRows"
        r"|computeStrides|doActivation|(?<!gemm_)(?:silu|gelu|swiglu\w*)_(?:and_)?mul_\w*quant"
        r"|finalizeMoeRouting|ExpertPrefixSum|BuildExpertMaps|_repack_kernel|transpose_fp32|pack_fp32_into|mqa_logits_metadata"
        r"|clean_logits|^_per_token_group_quant|^(?:void )?fbgemm_gpu::(?!.*(?:mma|attn|(?<!fb)gemm))|kInt8VectorQuant"
        r"|kdequant_mm|kDoubleRowColQuant|kgetColRowStats|reconstruct_(?:exllama|gptq)|grouped_gemm::cuda::utils::",
    ),
    _rule("xmma-ffma", r"xmma_.*_ffma", False),
    _rule("xmma-depthwise", r"xmma_depthwise_convolution_\w*f32f32_f32f32_f32", False),
    _rule("xmma-maxwell", r"sm(?:50|60|61)_xmma_(?!pooling|\w*HMMA)", False),
    _rule("simt", r"_simt_|OpClassSimt|MmaSimt|UniversalFMA|::Simt_", False),
    _rule(
        "tensorop",
        r"tensorop|OpClassTensorOp|MmaTensorOp|TensorOpMultiplicand|OpMultiplyAddFastF32|A\dT(?:884|1688|168\d\d)_",
        True,
    ),
    _rule("xmma-warpgroup", r"xmma_.*warpgroupsize", True, "hopper"),
    _rule("xmma-tensor", r"xmma_.*_(?:sp)?tensor\d+x\d+x\d+", True),
    _rule("mma-884", r"(?<![a-zA-Z0-9])[hsicdz]884(?![0-9])", True),
    _rule("imma-8816", r"(?<![a-zA-Z0-9])i88(?:16|32)(?!\d)", True, "turing"),  # those called volta_ too
    _rule(
        "mma-16816",
        r"(?<![a-zA-Z0-9])(?:[hsicdz](?:1684|1688|16816|16832|16864|8816|8832)|[hsi]161616)(?![0-9])",
        True,
    ),
    _rule("hmma", r"(?<![a-zA-Z])(?:hmma|imma|dmma|wmma)(?![a-zA-Z])|(?<![A-Z])HMMA(?![A-Z])", True),
    _rule("nvjet", r"^nvjet_", True, "gpu"),
    _rule("deep-gemm", r"deep_gemm::|dpsk::gemm::", True, "gpu"),  # has cute::UMMA among its arguments on Hopper too
    _rule("wgmma", r"[wW]gmma|(?<![A-Z])GMMA(?![A-Z])", True, "hopper"),
    _rule("tcgen05", r"utc[a-z0-9]*mma|tcgen05|(?<![A-Z])UMMA(?![A-Z])", True, "blackwell"),
    _rule("ptx-mma", r"(?<![a-zA-Z0-9])m16n8k(?:4|8|16|32|64)(?![0-9])", True),
    # Multiplies less than its op's FLOPs say.
    _rule("transformed-conv", r"fft[12]d|fft3d|winograd|gcgemm|pointwise_mult_and_sum_complex", False),
    _rule(
        "vector-gemm",
        r"(?:volta|turing|ampere|maxwell|pascal|hopper)_(?:fp16_|bf16_)?g?[sdczhi]gemm|[shi]cudnn"
        r"|magma_\w*[sdczh]gemm|fermi(?:Plus)?[CS]gemm|(?<![a-zA-Z0-9])[sdcz]gemm_(?:largek|\w*_vec)|gemm_kernel\dx\d_\w*core"
        r"|router_gemm_kernel(?:_float_output|_bf16_output)?<",
        False,
    ),
    _rule(
        "gemv",
        r"[Gg]emv(?!.*(?:tensor_?core|_tc_|(?<!ge)mma))|gemmk1|gemm_k1|(?<![a-zA-Z_])dot_kernel|gemmSN|4bit_inference_naive",
        False,
    ),
    _rule(
        "vector-quantised",  # dequantised in registers, multiplied by packed half-precision arithmetic
        r"cudaCoreGemm|weight_only::kernel<|gemm_half_q_half|moe_wna16_gemm_kernel|bgmv_(?:shrink|expand)|q4_matmul_kernel"
        r"|VecQuant\dMatMulKernel|Code(?:1x16|2x8)MatVec",
        False,
    ),
    _rule("vector-rnn", r"RNN_blockPersist_[fb]p_\w+<float", False),
    _rule(
        "vector-conv",
        r"dgrad_engine|wgrad_engine|wgrad_alg\d|dgrad_alg\d|convolve_sgemm|convolve_common_engine|convolveNd_"
        r"|dgrad2d_|wgrad2d_|dgrad1d|conv2d_grouped_direct|conv2d_c1_k1|conv_depthwise|DepthwiseConv|causal_conv1d_\w*kernel",
        False,
    ),
    _others(
        "fourier",
        r"(?:^|\W)(?:vector|regular|composite_2way|\w+_bluestein)_fft(?:_\w+)?<|(?:^|\W)[sd]p(?:Radix|Vector|RealComplex)\w*::",
    ),
    _others(
        "sparse",  # rows of their own lengths, by vector units
        r"(?:^|\W)cusparse::(?:cs[rc]|coo|load_balancing|partition)|dgl::aten::cuda::(?:SpMM|SDDMM)"
        r"|spmm_kernel<[\w:]+, \(ReductionType\)|segment_(?:csr|coo)_",
    ),
    _others(  # an outer product a step, no tl.dot
        "recurrent",
        r"fused_recurrent_\w*kernel|fused_sigmoid_gating_delta_rule|_state_passing_(?:fwd|bwd)_kernel"
        r"|^chunk_\w*_(?:intra_token_parallel|intra_sub_intra)(?:_\w+)?$",
    ),
    _rule("vector-attention", r"paged_attention_v[12]_\w*kernel|(?:Batch|Single)DecodeWith\w*KVCacheKernel<", False),
    _rule("flash-sm90", r"flash::compute_attn_ws|FlashAtt(?:entio)?n\w*Sm90|flash::enable_sm90", True, "hopper"),
    _rule("flash-sm100", r"FlashAtt(?:entio)?n\w*Sm10\d", True, "blackwell"),
    _rule("flash-mla-stated", r"(?<!\w)sm(?:90|100)\w?::[\w:]*(?:attn|mla)\w*_kernel", True),
    _rule("flash-mla", r"flash_fwd_splitkv_mla\w*kernel", True, "hopper"),
    _rule(
        "flash-2",
        r"(?:::|void )flash_(?:fwd|bwd)\w*kernel|^flash_(?:fwd|bwd)\w*kernel<|FlashAtt(?:entio)?n\w*Sm(?:80|120)",
        True,
        "ampere",
    ),
    _rule("flash-1", r"fmha_(?:fprop|dgrad)_fp16|fmha_(?:fwd|bwd)_\w*loop_kernel", True, "ampere"),
    _rule("flashinfer-sm90", r"flashinfer::PrefillWithKVCacheKernel|MLAPageAttentionHopperKernel", True, "hopper"),
    _rule("flashinfer", r"(?:Batch|Single)PrefillWith\w*KVCacheKernel|BatchMLAPagedAttentionKernel", True, "ampere"),
    _rule("sage-sm100", r"qk_int8_sv_f8_attn_kernel_sm100", True, "blackwell"),
    _rule("sage-sm90", r"qk_int8_sv_f8_attn_kernel", True, "hopper"),
    _rule("sage", r"qk_int_sv_f(?:8|16)_attn_kernel", True, "ampere"),
    _rule("cudnn-sdpa", r"cudnn_generated_(?:fort_native|oss)_sdpa_sm\d+_", True),
    _rule("cudnn-fusion", r"cudnn_generated_fort_native_sm\d+_\w*(?:matMul|conv[FDW])", True),
    _rule("fmha-vector", r"fmha_cutlass[FB]_(?:f32_\w*_sm(?:50|60|70|75)|\w+_sm(?:50|60))(?!\d)", False),
    _rule("fmha-cutlass", r"fmha_cutlass[FB]_(?:f16|bf16|f32)_", True),
    _rule("attention-cutlass", r"AttentionKernel<cutlass::(?:half_t|bfloat16_t), (?:cutlass::)?arch::Sm\d", True),
    _rule("fmha-sm100", r"fmhaSm10\d", True, "blackwell"),
    _rule("fmha-sm90", r"fmha_v2\w*_ws_sm90", True, "hopper"),
    _rule("fmha-v2-turing", r"(?:fmha|fused_multihead_attention)_v2\w*_sm(?:70|72|75)(?!\d)", True),
    _rule("fmha-v2", r"(?:fmha|fused_multihead_attention)_v2\w*_sm(?:80|86|87|89|90|120)", True, "ampere"),
    _rule("trtllm-bmm", r"^(?:bmm|gemm)_(?:Mx|Nv)?(?:E4m3|E2m1|E5m2|Bfloat16|Fp16|Fp32)", True),
    _rule("marlin", r"marlin::Marlin|Marlin(?:_24|MoE\w*)?<", True, "ampere"),
    _rule("awq", r"gemm_forward_4bit_cuda_m16n", True, "ampere"),
    _rule("low-latency-gemm", r"(?<!\w)fused_a_gemm_kernel<", True, "ampere"),
    _rule("fused-mlp", r"(?<!\w)kernel_mlp_fused<", True),
    _rule("cutlass-device", r"cutlass::(?:device_kernel|Kernel).*(?:sm|Sm)(?:80|89|90|1[0-2]\d)(?!\d)", True),
    _rule("cutlass-warp-specialized", r"cutlass::device_kernel.*KernelTmaWarpSpecialized", True, "hopper"),
    # The entry of CUTLASS 3, whose FP8 and FP4 products are written for each GPU.
    _rule(
        "cutlass-device-fp8", r"cutlass::device_kernel<(?=.*[gG]emm).*(?i:fp8|e4m3|e5m2|nvfp4|mxfp[48])", True, "gpu"
    ),
    _rule(
        "cute-dsl",
        r"^kernel_cutlass_(?=\w*(?:[gG]emm|GEMM|Attention|Fmha|FMHA))(?=\w*(?:(?:Sm|SM)(?:90|1[0-2]\d)|Hopper|Blackwell))",
        True,
    ),
    # As high as only tcgen05's instructions are.
    _rule("cute-dsl-atom", r"(?:^kernel_cutlass_|_MMAAtom_)\w*_ShapeMNK(?:128|256)\d", True, "blackwell"),
    _rule("cute-dsl-mma", r"(?:^kernel_cutlass_|_MMAAtom_)\w*_ShapeMNK168(?:8|16|32|64)_", True, "ampere"),
    _rule(  # public kernels around tl.dot, which multiplies float32 as TF32 unless told otherwise
        TRITON_DOT,
        r"^(?:fused_moe_kernel(?:_gptq_awq)?|_w8a8_(?:triton_)?block_\w*(?:matmul|mm)(?:_\w+)?|kernel_unified_attention(?:_[23]d)?"
        r"|_fwd_grouped_kernel_stage1(?:_rope)?|_attn_(?:fwd|bwd)(?:_dk_?dv|_dq)?|_?flash_(?:fwd|bwd)(?:_dk_?d?v|_dq)?_kernel|awq_gemm_kernel|_bsr_strided_addmm_kernel"
        r"|parallel_nsa_kernel_topk|_scatter2scatter|_groupXtY|gemm_fusion_dot(?:_general)?|_lora_(?:shrink|expand)_kernel"
        r"|_chunk_(?:scan|state)_(?:(?:fwd|varlen)|(?:chunk_state_)?bwd_d(?:x|b|c|cb|states))_kernel|_bmm_chunk_(?:fwd|bwd)_kernel"
        r"|(?!\w*(?:cumsum|cumprod|reduction|hgrn|token_parallel|sub_intra|rcum_inter|_dgk_|_hdh))"
        r"(?:chunk|fused_chunk|chunkwise|parallel)_(?:\w+_)?(?:fwd|bwd)_kernel(?:_\w+)?"
        r"|recompute_w_u_fwd_(?:\w+_)?kernel|prepare_wy_repr_bwd_(?:\w+_)?kernel|_matmul_ogs\w*?)(?:_\d\w*)?$",
        True,
    ),
    _others(  # as Inductor, XLA and FlagGems name what they generate
        "triton-pointwise",
        r"^triton_(?:poi|red|per|spl|for|mix|unk)_|^triton_softmax(?:_\d+)*$|_kernel_rank_\d+$",
    ),
    _rule(
        "low-precision-gemm",
        r"(?i)^(?!.*(?:(?<!de)quant|prepare|metadata|offsets))(?=.*gemm).*(?:fp8|e4m3|e5m2|e2m1|nvfp4|mxfp4)",
        True,
    ),
    _rule("triton", r"^triton_(?:tem_|(?!\w*quant))", None),
    _others(
        "collective",  # what is fused with a product may be either
        r"(?i)^(?!.*(?:gemm|matmul)).*(?:nccl|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|nvshmem|cross_device_reduce"
        r"|mscclpp|userbuffers|(?<!\w)(?:deep_ep|dpsk::ep|flashinfer::comm)::)",
    ),
    _others(
        "pytorch",
        r"^(?:void )?(?:at|c10)::|at_cuda_detail|multi_tensor_apply|^CudaCodeGen::kernel",
    ),
    _others(
        "pytorch-short",  # as some exporters write them: without a namespace, or without arguments too
        r"^(?:void )?(?:[(<]\w+(?: \w+)?[)>]::)?(?:reduce_kernel|index(?:Select|Add|Func)\w+Index|cuCompute\w+"
        r"|CatArrayBatchedCopy\w*|tensor_kernel_scan_\w+|_scatter_gather\w+|cuApply\w+|bitonicSort\w+|gatherKthValue"
        r"|compute_cuda_kernel|indexing_backward_kernel\w*)(?:$|[<(])",
    ),
    _others(
        "cub",
        r"(?:^|\W)(?:cub|thrust)::|^Device(?:RadixSort|SegmentedRadixSort|Scan|Reduce|Select|Partition)\w*Kernel",
    ),
    _others(
        "cudnn-map",
        r"cudnn::bn_|cudnn::ops::|cudnn::(?:\w+::)?softmax|bn_(?:fw|bw)_|pooling_\w+_kernel|scalePacked|op_generic_tensor"
        r"|elemWiseRNNcell|(?i:elementwise)_fp|cudnn::detail::lrn|persistRNN_|add_tensor_kernel_v3|calc_bias_diff<"
        r"|xmma_pooling_|reduce_wgrad_n|op_tensor_kernel|cudnn::\w+::setTensor"
        r"|cudnn_generated_fort_native_sm\d+_(?!\w*(?i:matmul|gemm|conv|sdpa|flash|mha|att))",
    ),
    _others(  # its products are cuBLAS's and cuDNN's, but for what prepares FP4
        "transformer-engine",
        r"^(?:void )?transformer_engine::(?!.*(?i:gemm|mma|hadamard|rht|attn|attention))",
    ),
    _others(
        "tensorrt-map",
        r"generatedNativePointwise|genericReformat::|cu(?:Slice|Scale|Pad)Layer|cuEltwise::|cuInt8::n"
        r"|permutationKernel|^__myl_(?!\w*(?:Fc|Conv|Gemm|Mat|Mha))",
    ),
    _others(
        "tensorflow-map",
        r"^(?:input|loop)_\w*fusion(?:[._]\d+)*$|^wrapped_[a-z_]+(?:_\d+)*$|EigenMetaKernel"
        r"|^(?:void )?tensorflow::functor::",
    ),
    _others(
        "memory",
        rf"(?i)^(?:\[cuda )?(?:memcpy|memset)|^{_NO_PRODUCT}.*(?:copy_kernel|copy_page|(?:padded|binned)_copy"
        r"|(?<!pre)fill_kernel|transpose_(?:kernel|readWrite)|cast_transpose|float2half_rn_kernel)",
    ),
    _others(
        "map-or-reduce",
        rf"(?i)^{_NO_PRODUCT}.*"
        r"(?:(?:layer|rms|group|batch|instance|l2|qk)_?norm|softmax|rotary|rope_|silu|gelu|act_and_mul|embedding|dropout"
        r"|quantize|_quant_|quantint8|topk|top_k|sampl(?:e|ing)|argmax|routing|finalizeKernel|moe_align|expand_input|permute"
        r"|cross_entropy|Criterion|fast_hadamard|selective_scan_|nms_kernel|roi_?align|roi_?pool|resize|upsample"
        r"|concat_and_cache|sort_expert|amax_kernel|k\w*Optimizer|adamw?(?![a-z])|welford|bias_(?:act|residual)|element_mul|nrm2_kernel|asum_kernel|axpy_kernel|scal_kernel"
        r"|moe_sum_(?:reduce_\w*)?kernel|moe_fused_gate|moe::dev::activation|norm_?rope|biasrope|(?<![a-z])to_(?:mx|nv)?fp[48]|top\d_sum_gate"
        r"|expand_to_fused|reduce_fused|get_fused_mapping|count_expert|cast_and_transpose|batched_transpose|transform4d|ep_(?:scatter|gather)"
        r"|(?:swi|ge)glu(?:_[a-z]+)?_(?:for|back)ward_kernel|(?:^|_)m?rope$|sigmoid|swish|relu|logsumexp|cumsum_scalar|kl_?div"
        r"|_jsd_kernel|grpo|sinkhorn|token_shift|(?:gdn|kda)_gat(?:e_(?:fwd|bwd)|ing)|chunk_cumsum_(?:fwd|bwd)|metadata"
        r"|(?<!lora_)page_table|slot_mapping|kv_(?:buffer|indices)|(?:store|write|set|append|update)_?(?:paged_?)?kv_?cache|req_to_token|(?:pre|post)_reorder|dequant_kernel|(?<!2)(?:gather|scatter)(?!2)|penalt|bincount|sort_chunks)",
    ),
    _others("merge-states", r"(?i)merge_?(?:attn_?)?states?|^_fwd_kernel_stage2$|^reduce_segments$"),
)

NOT_NVIDIA = Classification("unknown", "not-nvidia")
_PRODUCT_ELSEWHERE = replace(NOT_NVIDIA, matmul=True)
_NO_RULE = KernelRule("no-rule", re.compile(""), None, None, False)
_LONGEST = 8192  # characters of a name that are read: patterns take quadratic time where a word repeats
_AMD_NAME = re.compile(
    r"(?:^|_)Cijk_|(?<![a-z])ck(?:_tile)?::|xdlops|gtcx|MIOpen|miopen|rocblas|Tensile|amd_rocclr|aiter::|__hip_|mfma"
)

_COMPUTES = re.compile(r"Cijk_|[gG]em[mv]|[cC]onv(?!ert)|xdl|mfma|[fF]mha|[aA]tt(?:n|ention)")  # of other vendors'


def classify(name: str, capability: Capability | None, *, nvidia: bool = True) -> Classification:
    """The class of the kernel `name` on a GPU of this compute capability; never raises.

    Without a capability a Tensor Core kernel can't be called native or legacy: its class is then `unknown`.
    """
    name = readable(name[:_LONGEST])
    if not nvidia or _AMD_NAME.search(name):
        return _PRODUCT_ELSEWHERE if _COMPUTES.search(name) else NOT_NVIDIA
    rule = next((r for r in RULES if r.pattern.search(name)), _NO_RULE)
    found = Classification("none", rule.id, None, operand_format(name), library_of(name), rule.matmul)
    if rule.uses is None:
        return replace(found, tensor_core="unknown")
    if not rule.uses:
        return found
    gpu = generation_of(capability)
    operands = _tensor_operands(name, found.operands)
    generation = _kernel_generation(name, rule, operands, gpu)
    label = relation(generation, gpu, operands)
    return replace(found, tensor_core=label, generation=generation, operands=operands, used=True)


def relation(generation: str | None, gpu: str | None, operands: str | None) -> TensorCoreClass:
    if generation is None or gpu is None:
        return "unknown"
    if operands == "fp64" and RANK[generation] >= RANK["ampere"]:
        return "native"  # wgmma and tcgen05 have no float64: mma.sync is the only path on every GPU
    return "native" if RANK[generation] >= RANK[gpu] else "legacy"


def _kernel_generation(name: str, rule: KernelRule, operands: str | None, gpu: str | None) -> str | None:
    if rule.generation == "gpu":  # a library that generates code for the GPU it runs on
        return stated_generation(name) or gpu
    if rule.generation is not None:
        return rule.generation
    stated = stated_generation(name)
    if rule.id in ("xmma-tensor", "ptx-mma"):  # mma.sync, whatever architecture it was compiled for
        return _older(shape_generation(name, operands), stated)
    if stated is not None:
        return stated
    shaped = shape_generation(name, operands)
    if shaped is not None or gpu is None:
        return shaped
    if rule.id not in _ANY_GENERATION:
        return gpu if RANK[gpu] <= RANK["ampere"] else "ampere"
    # Ampere and those that run its mma.sync have one path; newer ones several, but for FP4 on a B200, which Triton may
    # widen first.
    fp4 = operands == "fp4" and gpu == "blackwell" and rule.id != TRITON_DOT
    return gpu if RANK[gpu] == RANK["ampere"] or fp4 else None


_ANY_GENERATION = frozenset({"trtllm-bmm", "low-precision-gemm", TRITON_DOT})
"""Rules for libraries that have kernels of one name for every generation."""


def _older(first: str | None, second: str | None) -> str | None:
    known = [g for g in (first, second) if g is not None]
    return min(known, key=RANK.__getitem__, default=None)


def _tensor_operands(name: str, stated: str | None) -> str | None:
    """Float32 inputs on a Tensor Core are rounded to TF32; a bare `s1688`, or `c1688`, takes float32 inputs too. What
    follows `hmma` is what the sums are kept in."""
    if re.search(r"hmma_(?:\w+_)?fp32", name):
        return "fp16"
    if stated == "fp32" or (stated is None and re.search(r"[sc]1688", name)):
        return "tf32"
    if stated is None and re.search(r"[hs](?:884|16816|161616)", name):
        return "fp16"
    return stated
