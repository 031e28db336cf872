"""Reports of a small GPT whose tensors are sampled anew for every seed, and ways to tamper with the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from precaudit.model import (
    Exponents,
    Finding,
    Layer,
    LossScale,
    Op,
    Plan,
    Report,
    TensorCores,
    TensorRecord,
    TensorStats,
    TimeShare,
    Verification,
)

STEPS = 20
WIDTH = 32


@dataclass(frozen=True)
class Spec:
    """A layer to be: `gain` scales its weights and so its output, `output_gain` what comes in."""

    fqn: str
    type: str
    shape: tuple[int, ...]
    ops: tuple[str, ...]
    bias: bool = True
    gain: float = 1.0
    output_gain: float = 1.0
    format: str = "bfloat16"
    dtype: str = "bfloat16"


def gpt(vocabulary: int = 512, blocks: int = 2) -> list[Spec]:
    def norm(fqn: str) -> Spec:
        return Spec(fqn, "LayerNorm", (WIDTH,), ("layer_norm",), dtype="float32")

    def linear(fqn: str, outputs: int, inputs: int = WIDTH) -> Spec:
        return Spec(fqn, "Linear", (outputs, inputs), ("linear",))

    layers = [Spec("wte", "Embedding", (vocabulary, WIDTH), ("embedding",), bias=False, dtype="float32")]
    for i in range(blocks):
        at = f"blocks.{i}"
        layers += [norm(f"{at}.norm1"), linear(f"{at}.qkv", 3 * WIDTH), linear(f"{at}.proj", WIDTH)]
        layers += [norm(f"{at}.norm2"), linear(f"{at}.fc1", 4 * WIDTH), Spec(f"{at}.act", "GELU", (), ("gelu",))]
        layers += [linear(f"{at}.fc2", WIDTH, 4 * WIDTH)]
    return [*layers, norm("norm"), linear("head", vocabulary)]


def stats_of(values: np.ndarray, times: int = 1) -> TensorStats:
    """Brute force, as the model documents it; `times` repeats the values as steps would."""
    magnitudes = np.abs(values[np.isfinite(values) & (values != 0)])
    exponents = np.frexp(magnitudes)[1] - 1
    low = int(exponents.min()) if exponents.size else 0
    counts = tuple(int(n) * times for n in np.bincount(exponents - low)) if exponents.size else ()
    return TensorStats(
        numel=values.size * times,
        amax=float(magnitudes.max(initial=0.0)),
        amin_nonzero=float(magnitudes.min()) if magnitudes.size else 0.0,
        sum_squares=float(np.square(magnitudes).sum()) * times,
        zeros=int((values == 0).sum()) * times,
        nonfinite=int((~np.isfinite(values)).sum()) * times,
        exponents=Exponents(low, counts),
    )


def profile(model: Sequence[Spec], seed: int) -> Report:
    """What a profile of the model at one seed would find: other weights, other data, another overall gradient scale."""
    rng = np.random.default_rng(seed)
    gradient = 2.0 ** (-12 + rng.normal(0, 0.7))
    layers = tuple(_layer(spec, rng, gradient) for spec in model)
    ops = tuple(_op(spec, name, layer) for spec, layer in zip(model, layers, strict=True) for name in spec.ops)
    low = int(rng.integers(-1, 2))
    return Report(
        environment={"device": "NVIDIA H100", "capability": "9.0"},
        job={"steps": STEPS, "script": "train.py"},
        layers=layers,
        ops=ops,
        plan=Plan(
            default="bfloat16",
            modules={spec.fqn: spec.format for spec in model},
            loss_scale=LossScale("dynamic", 2.0**20, 2000, (3 + low, 20 + low), 0.5),
        ),
        findings=(Finding("PA301", "note", "pad it", "pad", "head", "linear", fingerprint="PA301-head"),),
        verification=Verification(verdict="pass", execution="native", seeds=(0, 1, 2), steps=STEPS),
        tensor_cores=TensorCores(
            measured=True,
            method="kineto",
            time_share=TimeShare(0.6 + rng.normal(0, 0.01), 0.0, 0.4, 0.0),
            eligible_flops_share=0.97,
        ),
        performance={
            "step_seconds": {"float32": 0.1 * rng.normal(1, 0.03), "plan": 0.05 * rng.normal(1, 0.03)},
            "peak_memory_bytes": {"plan": 2**30},
        },
    )


def _layer(spec: Spec, rng: np.random.Generator, gradient: float) -> Layer:
    parameters = {"weight": rng.normal(0, 0.02, spec.shape)} if spec.shape else {}
    if spec.type == "LayerNorm":
        parameters["weight"] = 1 + rng.normal(0, 0.002, spec.shape)
    if spec.shape and spec.bias:
        parameters["bias"] = rng.normal(0, 0.001, spec.shape[0])
    output = (
        spec.gain * spec.output_gain * rng.normal(0, 0.8, (8 * 16, spec.shape[0] if len(spec.shape) > 1 else WIDTH))
    )
    output *= 2.0 ** rng.normal(0, 0.5, (8 * 16, 1))  # values of one token go up and down together
    if spec.type == "GELU":
        output = np.where(output > -3, output, 0.0)
    records = [TensorRecord("activation", stats_of(output, STEPS), dtype=spec.dtype)]
    records.append(TensorRecord("activation_grad", stats_of(_heavy(rng, output.shape) * gradient, STEPS)))
    for name, value in parameters.items():
        step = _heavy(rng, value.shape) * gradient * 30
        records += [
            TensorRecord("weight", stats_of(value * spec.gain, STEPS), name),
            TensorRecord("weight_grad", stats_of(step, STEPS), name),
            TensorRecord("update", stats_of(np.sign(step) * 1e-3 * rng.uniform(0.2, 1, step.shape), STEPS), name),
            TensorRecord("optimizer_state", stats_of(step * step, STEPS), f"{name}.exp_avg_sq"),
        ]
    return Layer(spec.fqn, spec.type, sum(value.size for value in parameters.values()), STEPS, tuple(records))


def _heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Gradients have heavier tails than weights."""
    return rng.standard_t(4, shape)


def _op(spec: Spec, name: str, layer: Layer) -> Op:
    tokens = (8, 16, spec.shape[-1] if len(spec.shape) > 1 else WIDTH)
    shapes = (tokens, spec.shape) if spec.shape else (tokens,)
    category = "lower" if name == "linear" else "fp32"
    return Op(spec.fqn, name, STEPS, category, None, layer.tensors[:1], shapes=shapes, dtype=spec.dtype)


def timed(seconds, memory=100, **environment):
    return Report(
        environment={"device": "NVIDIA H100", "capability": "9.0", **environment},
        performance={"step_seconds": {"plan": seconds, "float32": None}, "peak_memory_bytes": {"plan": memory}},
    )


def with_autocast(dtype, category="lower"):
    op = Op("a", "linear", 1, category, None, (), autocast=dtype)
    other = Op("b", "linear", 1, "lower", None, (), autocast="bfloat16")
    layers = tuple(Layer(fqn, "Linear", 1, 1, ()) for fqn in ("a", "b"))
    return Report(job={"baseline": {"autocast": "bfloat16"}}, layers=layers, ops=(op, other))


# ---------------------------------------------------------------- tampering


def change(model: Sequence[Spec], layer: str, **how: object) -> list[Spec]:
    assert any(spec.fqn == layer for spec in model)
    return [replace(spec, **how) if spec.fqn == layer else spec for spec in model]


def widened(model: Sequence[Spec]) -> list[Spec]:
    """The weights of blocks.1.fc1 times 2^12, and with them what follows until the next norm."""
    model = change(model, "blocks.1.fc1", gain=4096.0)
    for fqn in ("blocks.1.act", "blocks.1.fc2"):
        model = change(model, fqn, output_gain=4096.0)
    return model


def renamed(model: Sequence[Spec]) -> list[Spec]:
    return change(model, "blocks.0.fc2", fqn="blocks.0.down")


def odd_vocabulary(model: Sequence[Spec]) -> list[Spec]:
    return change(change(model, "wte", shape=(509, WIDTH)), "head", shape=(509, WIDTH))


def without_autocast(model: Sequence[Spec]) -> list[Spec]:
    """Every layer of blocks.1 runs in float32, as written and as planned."""
    return [
        replace(spec, dtype="float32", format="float32") if spec.fqn.startswith("blocks.1.") else spec for spec in model
    ]


def handwritten_norm(model: Sequence[Spec]) -> list[Spec]:
    return change(model, "norm", type="RMSNorm2", ops=("pow", "mean", "rsqrt", "mul"), bias=False)
