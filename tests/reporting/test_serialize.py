from __future__ import annotations

import errno
import json
import math
import os
import resource
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files as package_files
from pathlib import Path

import pytest
import report_samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_strategies import FREE_JSON, filled

from precaudit.errors import PrecauditError
from precaudit.model import Exponents, LossScale, OpFormat, Plan, Report, TensorStats
from precaudit.reporting import files
from precaudit.reporting.serialize import dump_plan, dump_report, load_plan, load_report, to_json, write_json

jsonschema = pytest.importorskip("jsonschema")
orjson = pytest.importorskip("orjson")

SCHEMAS = {
    name: json.loads((package_files("precaudit") / "schemas" / f"{name}.schema.json").read_text())
    for name in ("report", "plan")
}


def validate(name: str, value) -> None:
    jsonschema.Draft202012Validator(SCHEMAS[name]).validate(value)


# ---------------------------------------------------------------- round trips


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(report=filled(Report))
def test_every_report_survives_the_round_trip(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("round") / "report.json"
    write_json(path, report)
    # the dumped forms are compared because NaN differs from itself
    assert dump_report(load_report(path)) == dump_report(report)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"bare {name}"))


def test_samples_survive_the_round_trip_and_fit_the_schema(sample, tmp_path):
    path = tmp_path / "report.json"
    write_json(path, sample)
    assert dump_report(load_report(path)) == dump_report(sample)
    validate("report", orjson.loads(path.read_bytes()))


def test_equal_as_dataclasses_too(tmp_path):
    report = report_samples.passing()
    write_json(tmp_path / "report.json", report)
    assert load_report(tmp_path / "report.json") == report


def test_plan_round_trip_and_schema(tmp_path):
    plan = report_samples.passing().plan
    write_json(tmp_path / "plan.json", plan)
    assert load_plan(tmp_path / "plan.json") == plan
    validate("plan", orjson.loads((tmp_path / "plan.json").read_bytes()))


def test_the_plan_inside_a_report_loads(tmp_path):
    report = report_samples.passing()
    write_json(tmp_path / "report.json", report)
    assert load_plan(tmp_path / "report.json") == report.plan


def test_the_report_schema_holds_the_plan_schema():
    assert SCHEMAS["report"]["$defs"]["plan"] == SCHEMAS["plan"]
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("spoil", [{"default": "float12"}, {"loss_scale": None}, {"modules": {"a": 3}}])
def test_the_schema_refuses_what_is_wrong(spoil):
    with pytest.raises(jsonschema.ValidationError):
        validate("plan", dump_plan(Plan()) | spoil)


# ---------------------------------------------------------------- the contract, key for key


def test_contract_keys():
    dumped = dump_report(report_samples.failing())
    assert list(dumped)[:2] == ["schema_version", "precaudit_version"]
    tensor = dumped["layers"][0]["tensors"][0]
    assert {"role", "numel", "amax", "amin_nonzero", "rms", "zeros", "nonfinite", "exponents", "formats"} <= set(tensor)
    assert sum(tensor["exponents"]["counts"]) + tensor["zeros"] + tensor["nonfinite"] == tensor["numel"]
    assert set(tensor["formats"]["float16"]) == {"overflow_rate", "underflow_rate", "flushed_energy"}
    assert {"fqn", "from", "to", "why", "op", "round", "location"} == set(dumped["verification"]["repairs"][0])
    assert dumped["plan"]["loss_scale"]["window"] is None
    assert dump_report(report_samples.passing())["plan"]["loss_scale"]["window"] == [6, 17]


def test_nonfinite_numbers_are_strings(tmp_path):
    write_json(tmp_path / "r.json", report_samples.failing())
    losses = orjson.loads((tmp_path / "r.json").read_bytes())["verification"]["trials"][-1]["losses"]
    assert losses[2:] == ["nan", "inf"]
    loaded = load_report(tmp_path / "r.json").verification.trials[-1].losses
    assert math.isnan(loaded[2])
    assert loaded[3] == math.inf


def test_values_of_other_types_become_json():
    numpy = pytest.importorskip("numpy")
    value = {"a": numpy.float32(0.5), "b": numpy.int64(3), "c": numpy.float64("inf"), "d": {1}, "e": os.sep, 5: ()}
    assert to_json(value) == {"a": 0.5, "b": 3, "c": "inf", "d": [1], "e": os.sep, "5": []}


def test_tensor_record_with_rms_only(tmp_path):
    dumped = dump_report(report_samples.passing())
    tensor = dumped["layers"][0]["tensors"][0]
    rms = tensor["rms"]
    del tensor["sum_squares"]
    write_json(tmp_path / "r.json", dumped)
    assert load_report(tmp_path / "r.json").layers[0].tensors[0].stats.rms == pytest.approx(rms)


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (
            {"loss_scale": {"mode": "dynamic", "init_scale": "inf"}},
            r"loss_scale\.init_scale: a loss scale is a positive",
        ),
        ({"loss_scale": {"mode": "dynamic", "growth_interval": 0}}, r"growth_interval: a growth interval is a whole"),
        ({"loss_scale": {"mode": "static", "init_scale": 0}}, r"loss_scale\.init_scale: a loss scale is a positive"),
        ({"loss_scale": {"mode": "static", "init_scale": 1e300}}, r"loss_scale\.init_scale: .* finite in float32"),
        ({"loss_scale": {"mode": "dynamic", "init_scale": 1e-50}}, r"loss_scale\.init_scale: .* finite in float32"),
        ({"loss_scale": {"mode": "none", "window": [9, -4]}}, r"loss_scale\.window: a window goes from its smallest"),
        ({"master_weights": False}, "master_weights: master_weights is false, but every plan trains float32 weights"),
    ],
)
def test_contradictory_plans_are_refused(spoil, where, tmp_path):
    write_json(tmp_path / "plan.json", dump_plan(report_samples.passing().plan) | spoil)
    with pytest.raises(PrecauditError, match=where):
        load_plan(tmp_path / "plan.json")


def test_older_files_load_with_defaults(tmp_path):
    dumped = dump_report(report_samples.passing())
    for key in ("cost", "tensor_cores", "ops", "performance"):
        del dumped[key]
    del dumped["verification"]["horizon"]
    dumped["verification"]["gates"] = None
    dumped["unheard_of"] = {"kept": "no"}
    write_json(tmp_path / "r.json", dumped)
    report = load_report(tmp_path / "r.json")
    assert report.ops == ()
    assert not report.tensor_cores.measured
    assert report.verification.gates == ()


EDITED = {"fqn": "fc1", "op": "linear", "format": "float32"}


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        ({"operations": [EDITED]}, "the top level: the key 'operations' is none of default, modules, ops, because"),
        ({"ops": [EDITED | {"formt": "float16"}]}, r"ops\[0\]: the key 'formt' is none of fqn, op, format"),
        ({"loss_scale": {"mode": "dynamic", "growth": 100}}, "loss_scale: the key 'growth' is none of mode, init"),
    ],
)
def test_unknown_keys_of_edited_plans_are_refused(edit, where, tmp_path):
    write_json(tmp_path / "plan.json", dump_plan(Plan()) | edit)
    with pytest.raises(PrecauditError, match=f"{where}.*, or a newer precaudit wrote it"):
        load_plan(tmp_path / "plan.json")


def test_an_edited_plan_may_have_comments(tmp_path):
    comments = {"$schema": "plan.schema.json", "_why": "fc1 overflowed", "ops": [EDITED | {"_note": "logits"}]}
    write_json(tmp_path / "plan.json", dump_plan(Plan()) | comments)
    assert load_plan(tmp_path / "plan.json").ops == (OpFormat("fc1", "linear", "float32"),)


SCALED = LossScale("dynamic", 2**16, 2000)


@pytest.mark.parametrize(
    ("edit", "edited"),
    [
        ({}, False),
        ({"modules": {"fc1": "bfloat16", "fc2": "bf16"}, "because": {}, "types": {}, "target": "a100"}, False),
        ({"modules": {"fc1": "bfloat16", "fc2": "float16"}}, True),
        ({"default": "float16"}, True),
        ({"ops": [EDITED]}, True),
        ({"loss_scale": {"mode": "dynamic", "init_scale": 2.0}}, True),
        ({"verdict": None}, False),
        ({"verdict_on": None}, False),
    ],
)
def test_a_plan_knows_whether_it_was_edited_since_its_verdict(edit, edited, tmp_path):
    plan = Plan("bfloat16", {"fc2": "bfloat16", "fc1": "bfloat16"}, loss_scale=SCALED).judged("pass")
    write_json(tmp_path / "plan.json", dump_plan(plan) | edit)
    assert load_plan(tmp_path / "plan.json").is_edited == edited
    assert not Plan("bfloat16").judged("not_run").is_edited


def test_short_format_names_in_edited_plans(tmp_path):
    write_json(tmp_path / "p.json", dump_plan(Plan()) | {"default": "bf16", "modules": {"a": "FP16"}})
    plan = load_plan(tmp_path / "p.json")
    assert (plan.default, plan.modules["a"]) == ("bfloat16", "float16")


# ---------------------------------------------------------------- untrusted input


GOOD = orjson.dumps(dump_report(report_samples.passing()))
BAD = {
    "empty": b"",
    "truncated": GOOD[: len(GOOD) // 2],
    "binary": bytes(range(256)),
    "foreign": b'{"name": "package.json"}',
    "array": b"[]",
    "number": b"3",
    "nested": b"[" * 200_000,
    "nested objects": b'{"a":' * 900 + b"1" + b"}" * 900,
    "NaN": GOOD.replace(b'"steps":40', b'"steps":NaN', 1),
    "pickle": b"\x80\x04\x95\x10\x00",
    "lone surrogate": GOOD.replace(b"train.py", b"\\ud800", 1),
}


@pytest.mark.parametrize("load", [load_report, load_plan])
@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_bad_files_are_explained(load, content, tmp_path):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(PrecauditError, match=r"bad\.json: ") as caught:
        load(path)
    assert caught.value.exit_code == 2


def change(keys: tuple, value) -> bytes:
    document = orjson.loads(GOOD)
    target = document
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    return orjson.dumps(document)


DEEP: list = []
for _ in range(200):
    DEEP = [DEEP]

WRONG = {
    ("layers", 0, "parameters"): ("many", r"layers\[0\]\.parameters: expected a whole number, found a string"),
    ("layers", 3, "tensors", 1, "exponents", "counts"): ({}, r"layers\[3\]\.tensors\[1\]\.exponents\.counts"),
    ("layers", 0, "tensors", 0, "role"): ("gift", "expected one of activation, weight"),
    ("layers", 0, "tensors", 0, "exponents", "min"): (10**9, "no floating-point numbers"),
    ("layers", 0, "tensors", 0, "exponents", "counts", 0): (-1, "negative"),
    ("layers", 0, "tensors", 0, "amax"): ("big", 'or "nan", "inf"'),
    ("layers", 0, "tensors", 0, "amin_nonzero"): (-1.0, "magnitudes of finite values"),
    ("layers", 0, "tensors", 0, "nonfinite"): (10**6, "add up to"),
    ("layers", 0, "calls"): (True, "found true or false"),
    ("verification", "verdict"): ("fine", "verification.verdict"),
    ("verification", "trials", 0, "losses", 2): (None, r"losses\[2\]: .* found null"),
    ("plan", "default"): ("float12", "plan: unknown number format"),
    ("plan", "matmul_precision"): ("bogus", r"plan\.matmul_precision: expected one of highest, high, medium"),
    ("plan", "loss_scale"): ({"mode": "static"}, r"plan\.loss_scale\.init_scale: a static loss scale needs its value"),
    ("plan", "modules"): ([], "plan.modules: expected an object, found a list"),
    ("plan", "loss_scale", "window"): ([1, 2, 3], "expected 2 values, found 3"),
    ("job", "argv"): (DEEP, "nested more than"),
    ("layers", 0, "fqn"): (7, r"layers\[0\]\.fqn"),
    ("schema_version",): ("1", "schema_version: expected a whole number"),
}


@pytest.mark.parametrize(("keys", "value", "words"), [(k, v, w) for k, (v, w) in WRONG.items()], ids=str)
def test_wrong_types_name_their_place(keys, value, words, tmp_path):
    path = tmp_path / "wrong.json"
    path.write_bytes(change(keys, value))
    with pytest.raises(PrecauditError, match=words):
        load_report(path)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(value=FREE_JSON, data=st.data())
def test_any_value_in_any_place_is_read_or_refused(value, data, tmp_path_factory):
    """A random place of a good report gets a random value: a report or a PrecauditError, nothing else."""
    document = orjson.loads(GOOD)
    target = document
    while True:
        keys = list(target) if isinstance(target, dict) else list(range(len(target)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(target[key], dict | list) or not target[key] or data.draw(st.booleans()):
            break
        target = target[key]
    target[key] = value
    path = tmp_path_factory.mktemp("fuzz") / "report.json"
    path.write_bytes(orjson.dumps(document))
    try:
        load_report(path)
    except PrecauditError as error:
        assert str(path) in str(error)  # noqa: PT017


@pytest.mark.parametrize("version", [2, 99])
def test_future_versions_say_upgrade(version, tmp_path):
    path = tmp_path / "future.json"
    path.write_bytes(change(("schema_version",), version))
    with pytest.raises(PrecauditError, match=r"newer precaudit .*pip install -U precaudit"):
        load_report(path)


@pytest.mark.parametrize("version", [0, -1])
@pytest.mark.parametrize(("load", "within"), [(load_report, ()), (load_plan, ("plan",))])
def test_versions_that_never_were_are_refused(load, within, version, tmp_path):
    path = tmp_path / "report.json"
    path.write_bytes(change((*within, "schema_version"), version))
    with pytest.raises(PrecauditError, match=f"schema_version: there is no version {version}"):
        load(path)


def test_a_plan_is_not_a_report(tmp_path):
    write_json(tmp_path / "plan.json", Plan())
    with pytest.raises(PrecauditError, match="this is a plan"):
        load_report(tmp_path / "plan.json")


def test_a_plan_without_its_version_is_told_so(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"default": "bfloat16", "modules": {}}')
    with pytest.raises(PrecauditError, match=r"not a precaudit plan \(it has no schema_version\)"):
        load_plan(path)


@pytest.mark.parametrize("endless", [False, True])
def test_huge_files_are_refused(endless, tmp_path):
    path = Path("/dev/zero") if endless else tmp_path / "huge.json"
    if not endless:
        with open(path, "wb") as file:
            file.truncate(files.MAX_BYTES + 1)
    with pytest.raises(PrecauditError, match="more than the 512 MB"):
        load_report(path)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_paths_that_are_not_files(name, tmp_path):
    with pytest.raises(PrecauditError, match="check the path"):
        load_report(tmp_path / name)


# ---------------------------------------------------------------- writing


def test_a_full_disk_loses_nothing(tmp_path):
    """The kernel refuses the write (a file size limit stands in for a full disk): the old file stays."""
    path = tmp_path / "report.json"
    path.write_text("the old report")
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from pathlib import Path\n"
        "from precaudit.errors import PrecauditError\n"
        "from precaudit.reporting.files import write_text\n"
        "try: write_text(Path(sys.argv[1]), 'x' * 100_000)\n"
        "except PrecauditError as error: print(error); sys.exit(int(error.exit_code))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stdout
    assert path.read_text() == "the old report"
    assert os.listdir(tmp_path) == ["report.json"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE) != (1000, 1000)


@pytest.mark.parametrize(("number", "told"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EROFS, False)])
def test_space_is_asked_for_only_where_it_is_lacking(number, told, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PrecauditError, match="choose another place") as caught:
        write_json(tmp_path / "report.json", Plan())
    assert ("free some space" in str(caught.value)) is told


def test_writing_where_a_file_stands_for_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PrecauditError, match=r"cannot write .*report\.json: its folder is a file"):
        write_json(tmp_path / "file" / "report.json", Plan())


def test_links_and_devices_are_written_through(tmp_path):
    (tmp_path / "real.json").write_text("")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_json(tmp_path / "link.json", Plan())
    assert (tmp_path / "link.json").is_symlink()
    assert load_plan(tmp_path / "real.json") == Plan()
    files.write_text(files.Path(os.devnull), "gone")
    assert not files.Path(os.devnull).is_file()


def test_files_get_the_usual_permissions(tmp_path):
    write_json(tmp_path / "a.json", Plan())
    (tmp_path / "b.json").write_text("")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b.json").stat().st_mode


def test_infinite_sums_are_kept(tmp_path):
    report = report_samples.passing()
    one = report.layers[0]
    stats = TensorStats(numel=1, amax=1e300, amin_nonzero=1e300, sum_squares=math.inf, exponents=Exponents(996, (1,)))
    tensors = (replace(one.tensors[0], stats=stats),)
    report = replace(report, layers=(replace(one, tensors=tensors),))
    write_json(tmp_path / "r.json", report)
    assert load_report(tmp_path / "r.json") == report
