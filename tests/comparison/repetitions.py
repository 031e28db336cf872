"""How `compare` fares on real profiles: tampered models must be blamed, unchanged ones must not.

    python tests/comparison/repetitions.py                 # 50 seeds and every tamper, on both models
    python tests/comparison/repetitions.py --seeds 5       # a taste

Two small models, each profiled at seed 0 and compared with itself at other seeds and with tampered versions.
`audited` profiles stop before verification and run in this process; `verified` ones are `precaudit profile` from
end to end, each in a process of its own. Every outcome is appended to reports/comparison/results.jsonl with its
time, so an interrupted run goes on where it was and another day adds to it; README.md there is made of them all.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from tqdm import tqdm

import precaudit
from precaudit.comparison.compare import compare
from precaudit.model import Report

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / "reports" / "comparison"
STEPS = {"audited": 12, "verified": 30}
TAMPER_SEEDS = (1, 2, 3)

# What is done to each model, and the layer and metric that must be named for it.
EXPECTED: dict[tuple[str, str], tuple[str, str]] = {
    ("gpt", "widened"): ("blocks.1.up", "amax"),
    ("gpt", "renamed"): ("blocks.0.project", "layers_renamed"),
    ("gpt", "odd"): ("token", "alignment"),
    ("gpt", "autocast"): ("blocks.1.qkv", "dtypes"),
    ("gpt", "norm"): ("norm", "layers_replaced"),
    ("cnn", "widened"): ("block2.conv1", "amax"),
    ("cnn", "renamed"): ("block1.second", "layers_renamed"),
    ("cnn", "odd"): ("hidden", "alignment"),
    ("cnn", "autocast"): ("block3.conv1", "dtypes"),
    ("cnn", "norm"): ("block2.norm2", "layers_replaced"),
}
WORDS = {
    "widened": "weights of a layer times 2^12",
    "renamed": "a layer renamed",
    "odd": "a width from a multiple of 64 to an odd number",
    "autocast": "autocast off in one block",
    "norm": "a norm replaced by a hand-written one",
}


@dataclass(frozen=True, order=True)
class Case:
    model: str
    depth: str
    tamper: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What `compare` said of one case; `first` is the first layer blamed, with its metric."""

    case: Case
    regressions: list[str]
    first: str
    named: bool
    verdict: str
    time: str


def cases(seeds: int, verified: int) -> Iterator[Case]:
    """The quick ones first."""
    for depth, count, tampered in (("audited", seeds, TAMPER_SEEDS), ("verified", verified, TAMPER_SEEDS[:1])):
        for name, tamper in EXPECTED if count else ():
            yield from (Case(name, depth, tamper, seed) for seed in tampered)
        for model in ("gpt", "cnn"):
            yield from (Case(model, depth, "none", seed) for seed in range(1, count + 1))


def profile(case: Case) -> Report:
    return audited(case) if case.depth == "audited" else verified(case)


def audited(case: Case) -> Report:
    module = import_module(f"small_{case.model}")

    def build_model() -> torch.nn.Module:
        torch.manual_seed(case.seed)
        return getattr(module, case.model.upper())(case.tamper)

    functions = (build_model, module.batches, module.loss)
    return precaudit.profile(
        *functions, build_optimizer=module.build_optimizer, steps=STEPS["audited"], verify=False, device="cpu"
    )


def verified(case: Case) -> Report:
    script = [str(HERE / f"small_{case.model}.py"), "--tamper", case.tamper, "--seed", str(case.seed)]
    with tempfile.TemporaryDirectory() as folder:
        command = ["profile", "--device", "cpu", "--steps", str(STEPS["verified"]), "--out", folder, "--force", *script]
        done = subprocess.run(
            [sys.executable, "-m", "precaudit", *command], capture_output=True, text=True, check=False
        )
        if done.returncode > 1:
            raise RuntimeError(done.stderr)
        return precaudit.load_report(Path(folder, "report.json"))


@cache
def base(model: str, depth: str) -> Report:
    return profile(Case(model, depth, "none", 0))


def outcome(case: Case) -> Outcome:
    head = profile(case)
    regressions = compare(base(case.model, case.depth), head).regressions
    named = [(change.fqn, change.metric) for change in regressions if change.fqn]
    layer = EXPECTED.get((case.model, case.tamper), ("", ""))[0]
    return Outcome(
        case,
        [f"{change.metric} {change.fqn or ''}".rstrip() for change in regressions],
        " ".join(reversed(named[0])) if named else "",
        bool(named) and named[0][0] == layer and EXPECTED[case.model, case.tamper] in named,
        head.verification.verdict,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )


# ---------------------------------------------------------------- what is kept


def load(path: Path) -> dict[Case, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {Case(**row["case"]): row for row in rows}


def readme(rows: dict[Case, dict[str, Any]]) -> str:
    unchanged = [case for case in rows if case.tamper == "none"]
    days = sorted({row["time"][:10] for row in rows.values()})
    quiet = [
        [model, depth, f"{sum(not rows[case]['regressions'] for case in group)} of {len(group)}"]
        for model in ("gpt", "cnn")
        for depth in STEPS
        if (group := [case for case in unchanged if (case.model, case.depth) == (model, depth)])
    ]
    tampers = [
        [model, WORDS[tamper], f"`{layer}`", f"`{metric}`", f"{sum(rows[c]['named'] for c in group)} of {len(group)}"]
        for (model, tamper), (layer, metric) in EXPECTED.items()
        if (group := [case for case in rows if (case.model, case.tamper) == (model, tamper)])
    ]
    return f"""# What `compare` flags, on real profiles

Made by `python tests/comparison/repetitions.py` on {days[0]}{f" to {days[-1]}" if len(days) > 1 else ""}, on a CPU
({platform.machine()}, torch {torch.__version__}); every outcome is in [results.jsonl](results.jsonl). `audited`: a
profile of {STEPS["audited"]} steps without verification; `verified`: `precaudit profile --steps {STEPS["verified"]}`
from end to end in a process of its own. Base is always seed 0, with the default thresholds.

## The same model at another seed: how often nothing is flagged

{tabulate(quiet, ["model", "profile", "not flagged"], "github")}

## A tampered model at another seed: how often the layer is the first one blamed, and the metric is named for it

{tabulate(tampers, ["model", "tamper", "layer", "metric", "named"], "github")}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=50, help="unchanged audited repetitions (default: %(default)s)")
    parser.add_argument("--verified", type=int, default=5, help="unchanged verified ones (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # two threads that wait for each other are slow on a machine that others use
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / "results.jsonl"
    rows = load(log)
    for case in tqdm([case for case in cases(arguments.seeds, arguments.verified) if case not in rows], unit="profile"):
        row = asdict(outcome(case))
        rows[case] = row
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if bool(row["regressions"]) != (case.tamper != "none") or row["named"] != (case.tamper != "none"):
            tqdm.write(f"{case}: {row['first'] or 'nothing'} of {row['regressions'][:6]}")
    (arguments.out / "README.md").write_text(readme(rows))
    print(readme(rows))


if __name__ == "__main__":
    main()
