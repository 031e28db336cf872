"""Reports built by hand, in the shapes that profiles have: what every renderer is tested with."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

from precaudit.formats import FORMATS
from precaudit.model import (
    Difference,
    Exponents,
    Finding,
    FormatFit,
    Gate,
    Kernel,
    KernelTime,
    Layer,
    LayerTime,
    Location,
    LossScale,
    Op,
    OpFormat,
    Plan,
    Repair,
    Report,
    TensorCores,
    TensorRecord,
    TensorStats,
    TimeShare,
    Trial,
    Verification,
)

HOSTILE = [
    "</script><script>alert(1)</script>",
    "::error file=x,line=1::pwned",
    "a|b\n| c | d |\r\n# heading",
    "\u202eabc\u2066def\u200f",
    "\x1b[31mred\x07\x00",
    "<!-- --> ]]> &amp; \"quoted\" 'single' `code` $(id) {{7*7}} {% raw %}",
    "=HYPERLINK(1)",
    "lone \udcff surrogate",
]
AUDITED = ("tf32", "bfloat16", "float16", "float8_e4m3", "float8_e5m2")


def stats(center: int, spread: float = 3.0, numel: int = 10_000, zeros: int = 0) -> TensorStats:
    """Values whose exponents lie about `center`, as a bell of the given spread."""
    low, high = round(center - 3 * spread), round(center + 2 * spread)
    weights = [math.exp(-(((e - center) / spread) ** 2) / 2) for e in range(low, high + 1)]
    counts = [max(1, round(numel * w / sum(weights))) for w in weights]
    return TensorStats(
        numel=sum(counts) + zeros,
        amax=1.75 * 2.0**high,
        amin_nonzero=1.25 * 2.0**low,
        sum_squares=sum(n * 2.0 ** (2 * e) * 2 for e, n in enumerate(counts, low)),
        zeros=zeros,
        exponents=Exponents(low, tuple(counts)),
    )


def record(role: str, values: TensorStats, name: str = "") -> TensorRecord:
    fits = {
        f: FormatFit(
            values.overflow_rate(FORMATS[f]), values.underflow_rate(FORMATS[f]), values.flushed_energy(FORMATS[f])
        )
        for f in AUDITED
    }
    return TensorRecord(role, values, name, "float32", fits)


@cache  # thousands of layers share a few ranges
def tensors(gradient: int, activation: int) -> tuple[TensorRecord, ...]:
    return (
        record("activation", stats(activation)),
        record("activation_grad", stats(gradient, 4)),
        record("weight", stats(-5, 2, 4_000), "weight"),
        record("weight_grad", stats(gradient + 3, 4, 4_000, zeros=100), "weight"),
        record("optimizer_state", stats(2 * gradient, 5, 4_000), "exp_avg_sq"),
        record("update", stats(-11, 2, 4_000), "weight"),
    )


def layer(fqn: str, type: str = "Linear", gradient: int = -18, activation: int = 0) -> Layer:
    return Layer(fqn, type, 4_000, 40, tensors(gradient, activation), model="model")


def gpt(blocks: int) -> tuple[Layer, ...]:
    parts = [("ln1", "LayerNorm"), ("attn.qkv", "Linear"), ("attn.proj", "Linear"), ("mlp.fc", "Linear")]
    inner = [
        layer(f"blocks.{i}.{name}", kind, gradient=-17 - i % 7, activation=i % 3)
        for i in range(blocks)
        for name, kind in [*parts, ("mlp.proj", "Linear")]
    ]
    return (layer("embed", "Embedding", -21, -4), *inner, layer("head", gradient=-14, activation=3))


def losses(seed: int, offset: float = 0.0, steps: int = 40) -> tuple[float, ...]:
    return tuple(
        1.2 + 3.1 * math.exp(-i / 12) + 0.05 * math.sin(3 * i + seed) + offset * i / steps for i in range(steps)
    )


def trials(offset: float, plans: tuple[str, ...] = ("reference", "candidate-1"), seeds: int = 3) -> tuple[Trial, ...]:
    return tuple(
        Trial(seed, plan, losses(seed, 0.0 if plan == "reference" else offset), 1, 40, "ok", 3.25)
        for seed in range(seeds)
        for plan in plans
    )


def plan_for(layers: tuple[Layer, ...], default: str = "float16", kept: str = "ln1") -> Plan:
    modules = {one.fqn: "float32" if kept in one.fqn else default for one in layers}
    because = {fqn: "normalisation stays in float32 under autocast" for fqn, f in modules.items() if f != default}
    return Plan(
        default=default,
        modules=modules,
        ops=(OpFormat("head", "softmax", "float32"),),
        because=because | {"head:softmax": "exp is evaluated in float32 under autocast"},
        loss_scale=LossScale("dynamic", 65536.0, 2000, (6, 17), 1.0) if default == "float16" else LossScale(),
        matmul_precision="high",
    )


def timed(seconds: float, native: float = 0.0, legacy: float = 0.0, none: float = 0.0) -> KernelTime:
    return KernelTime(seconds, TimeShare(native, legacy, none, 0.0))


def kernels() -> TensorCores:
    rows = [
        LayerTime("blocks.0.attn.qkv", timed(0.005, native=0.8, none=0.2), before=timed(0.011, none=1.0)),
        LayerTime("head", timed(0.0035, native=0.6, legacy=0.3, none=0.1)),
    ]
    kernel = Kernel("sm90_xmma_gemm_f16f16_f16f32_f32_tn_n", "native", "xmma", 24, 0.006, "hopper", "f16", "cublas")
    share = TimeShare(0.6, 0.1, 0.3, 0.0)
    return TensorCores(True, "torch.profiler", share, 0.02, 0.91, (kernel,), "a card made up for tests", tuple(rows))


def passing(blocks: int = 4) -> Report:
    layers = gpt(blocks)
    return Report(
        environment={"python": "3.11.7", "torch": "2.13.0", "platform": "Linux", "device": "cpu", "cpu_count": 2},
        job={
            "script": "train.py",
            "argv": ["--lr", "0.1"],
            "steps": 40,
            "seeds": 3,
            "target": "h100",
            "formats": ["bfloat16", "float16"],
            "execution": "emulated",
            "device": "cpu",
            "quick": False,
            "stopped": "after --steps 40",
            "counted": "optimizer steps",
            "notes": ["model.head.weight is tied to model.embed.weight"],
        },
        layers=layers,
        ops=(
            Op(
                "head",
                "softmax",
                40,
                "fp32",
                Location("train.py", 31),
                (record("activation", stats(-6)),),
                12.5,
                ((8, 128, 96),),
                flops=1.5e6,
                local_error={"bfloat16": 0.0021},
            ),
        ),
        plan=plan_for(layers),
        verification=Verification(
            "pass",
            "emulated",
            0.0025,
            (0, 1, 2),
            40,
            trials(0.0003),
            Difference(0.0001, -0.0004, 0.0006),
            (Gate("eval loss", True, "1.204 against 1.203"), Gate("finite buffers", True, "all finite")),
            evaluations=6,
            horizon=31,
        ),
        performance={
            "seconds_total": 31.4,
            "seconds_plain_steps": 22.1,
            "seconds_startup": 2.6,
            "ratio": 1.3,
            "step_seconds": {"float32": 0.081, "plan": None},
            "audit_seconds": 4.2,
            "runs": 7,
            "evaluations": 6,
        },
        cost={"price_per_hour": None, "usd_per_run_float32": None},
        precaudit_version="0.1.0",
    )


def finding(rule: str = "PA101", severity: str = "error", fqn: str | None = "blocks.1.mlp.proj", **more) -> Finding:
    defaults = {
        "message": "the output reaches 1.2e+05: above 65504, the largest float16",
        "suggestion": "keep blocks.1.mlp.proj in bfloat16 (the plan does)",
        "op": "linear",
        "location": Location("model.py", 42),
        "evidence": {"amax": 120000.0, "limit": 65504.0},
        "fingerprint": f"{rule}-{fqn}",
    }
    return Finding(rule, severity, **(defaults | {"fqn": fqn} | more))


def with_residue() -> Report:
    """With a gradient that is zero but for rounding: far below its module's other ones."""
    report = passing()
    head = report.layers[-1]
    layers = *report.layers[:-1], replace(head, tensors=(*head.tensors, record("weight_grad", stats(-48), "bias")))
    return replace(report, layers=layers)


def failing() -> Report:
    base = passing()
    layers = tuple(layer(one.fqn, one.type, activation=14) if "1.mlp" in one.fqn else one for one in base.layers)
    return replace(
        base,
        layers=layers,
        findings=(
            finding("PA301", "note", None, message="the script uses autocast already", suggestion="", location=None),
            finding(),
            finding("PA203", "warning", "head", message="mask constant -1e9 becomes -inf", evidence={"value": -1e9}),
        ),
        plan=plan_for(layers, "bfloat16"),
        verification=replace(
            base.verification,
            verdict="fail",
            difference=Difference(0.032, 0.021, 0.044),
            trials=(*trials(0.09), Trial(0, "candidate-2", (4.3, 4.1, math.nan, math.inf), 3, 4, "non-finite", 0.4)),
            gates=(
                Gate("eval loss", False, "nan against 1.203: running statistics of blocks.1 hold inf"),
                Gate("finite buffers", True, "all finite"),
            ),
            repairs=(Repair("blocks.1.mlp.proj", "float16", "bfloat16", "first non-finite output, step 3"),),
            reason="no low-precision plan trained like float32 after 3 rounds of repair",
        ),
        tensor_cores=kernels(),
        cost={"price_per_hour": 2.5, "usd_per_run_float32": 0.0218},
    )


def empty() -> Report:
    return Report(
        job={"script": "train.py", "stopped": "the script never called backward"},
        verification=Verification(reason="nothing was trained"),
        precaudit_version="0.1.0",
    )


def hostile() -> Report:
    """Every string that a script, a model or a file can name is an attack."""
    base = failing()
    layers = tuple(replace(layer(text, text), model=text) for text in HOSTILE)
    first = HOSTILE[0]
    return replace(
        base,
        environment={text: text for text in HOSTILE},
        job={"script": "|".join(HOSTILE), "argv": HOSTILE, "notes": HOSTILE, "stopped": HOSTILE[2]},
        layers=layers,
        ops=tuple(Op(text, text, 1, "lower", Location(text, 7), (record("activation", stats(0)),)) for text in HOSTILE),
        findings=tuple(
            finding(text, "error", text, message=text, suggestion=text, op=text, location=Location(text, 3))
            for text in HOSTILE
        ),
        plan=replace(plan_for(layers, "bfloat16"), because=dict.fromkeys(HOSTILE, "".join(HOSTILE)), target=first),
        verification=replace(
            base.verification,
            gates=tuple(Gate(text, False, text) for text in HOSTILE),
            repairs=tuple(Repair(text, text, text, text) for text in HOSTILE),
            trials=tuple(Trial(i, text, (1.0, 0.5), 0, 2, text) for i, text in enumerate(HOSTILE)),
            reason="".join(HOSTILE),
        ),
        tensor_cores=replace(kernels(), method=first, device=first, notes=tuple(HOSTILE)),
        performance={text: text for text in HOSTILE},
        cost={"price_per_hour": first},
    )


def huge() -> Report:
    """More than 5,000 layers."""
    layers = gpt(1_000)
    return replace(passing(), layers=layers, plan=plan_for(layers))


SAMPLES = {"passing": passing, "failing": failing, "empty": empty, "hostile": hostile}


def sample_report(name: str = "passing") -> Report:
    return SAMPLES[name]()
