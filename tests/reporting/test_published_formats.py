"""The golden files of every command against what the hosts that read them publish of their formats.

JUnit: the elements and attributes that Jenkins' schema for xUnit (junit-10.xsd) allows and requires, and the `type` of
a failure, which Apache Ant's requires. GitLab: the keys of "Code Quality report format" in its documentation. SARIF:
the schema of OASIS.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import pytest

jsonschema = pytest.importorskip("jsonschema")

GOLDEN = Path(__file__).parent.parent / "golden"
COUNTS = {"tests", "failures", "errors"}
# element: the attributes that it must have, those that it may have, and the elements that it may hold
JUNIT = {
    "testsuites": (set(), {"name", "time", *COUNTS}, {"testsuite"}),
    "testsuite": (
        {"name", *COUNTS},
        {"skipped", "time", "timestamp", "hostname", "id", "package", "file"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": ({"name"}, {"classname", "time"}, {"skipped", "failure", "system-out", "system-err"}),
    "failure": ({"type"}, {"message"}, set()),
    "skipped": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}
GITLAB = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["description", "check_name", "fingerprint", "severity", "location"],
        "properties": {
            **{key: {"type": "string", "minLength": 1} for key in ("description", "check_name", "fingerprint")},
            "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
            "location": {
                "type": "object",
                "required": ["path", "lines"],
                "properties": {
                    "path": {"type": "string", "minLength": 1},
                    "lines": {
                        "type": "object",
                        "required": ["begin"],
                        "properties": {"begin": {"type": "integer", "minimum": 1}},
                    },
                },
            },
        },
    },
}
SARIF = json.loads((Path(__file__).parent / "sarif-schema-2.1.0.json").read_text())


def golden(pattern):
    found = sorted(GOLDEN.glob(pattern))
    assert found
    return pytest.mark.parametrize("path", found, ids=lambda path: path.name)


@golden("*.xml")
def test_junit_has_the_elements_and_attributes_that_are_published(path):
    root = ElementTree.fromstring(path.read_bytes())
    assert root.tag == "testsuites"
    for element in root.iter():
        required, optional, inside = JUNIT[element.tag]
        assert required <= set(element.attrib) <= required | optional, element.tag
        assert {child.tag for child in element} <= inside
    for suite in root.iter("testsuite"):
        tags = [[child.tag for child in case] for case in suite]
        assert int(suite.get("tests")) == len(tags)
        assert int(suite.get("failures")) == sum("failure" in each for each in tags)
        assert all(each.index("system-out") == len(each) - 1 for each in tags if "system-out" in each)


@golden("*.gitlab.json")
def test_code_quality_has_the_keys_that_are_published(path):
    rows = json.loads(path.read_bytes())
    jsonschema.Draft202012Validator(GITLAB).validate(rows)
    assert len({row["fingerprint"] for row in rows}) == len(rows)
    for row in rows:
        place = row["location"]["path"]
        assert not place.startswith("./")
        assert not PurePosixPath(place).is_absolute()


@golden("*.sarif")
def test_sarif_fits_its_schema(path):
    jsonschema.Draft4Validator(SARIF).validate(json.loads(path.read_bytes()))
