from __future__ import annotations

import gzip
import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from trace_builder import ADD, NVJET, SGEMM, document, launched, mm, module, op, write

import precaudit
from precaudit.__main__ import main

jsonschema = pytest.importorskip("jsonschema")

EVIL = "<script>alert('x')</script>\u202e|`::error::\x1b[31m"


@pytest.fixture
def trace(tmp_path):
    events = [
        module("Linear_7", 0, 60),
        mm(0, 50, 512, 5185, 1024, "float"),
        *launched(SGEMM, 5, 300, 1),
        module(EVIL, 100, 60),
        op(EVIL, 100, 50),
        *launched(NVJET, 105, 500, 2),
        *launched(EVIL, 110, 200, 3),
    ]
    return write(tmp_path, document(events), "run.json.gz")


def unwrapped(text):
    return " ".join(text.split())


def test_terminal(trace, capsys):
    assert main(["trace", str(trace)]) == 0
    text = capsys.readouterr().out
    assert "50.0% of the GPU time on Tensor Cores, 20.0% unknown: 1 ms of kernel time in 3 kernels" in unwrapped(text)
    assert "native    50.0%" in text
    assert "PA403, 30.0% of the time in Linear_7" in unwrapped(text)
    assert max(len(line) for line in text.splitlines() if str(trace) not in line) <= 80
    assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(("name", "extension"), [("markdown", "md"), ("html", "html"), ("json", "json")])
def test_what_can_be_written_can_be_printed(trace, tmp_path, capsys, name, extension):
    out = tmp_path / f"out.{extension}"
    assert main(["trace", str(trace), "--format", name, "-o", str(out)]) == 0
    assert capsys.readouterr().out.rstrip() == out.read_text().rstrip()


def test_json_has_the_key_of_a_report(trace, tmp_path, capsys):
    out = tmp_path / "out.json"
    assert main(["trace", str(trace), "-o", str(out), "--format", "json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads(out.read_text())
    assert printed == written
    assert written["schema_version"] == 1
    assert written["precaudit_version"] == precaudit.__version__
    assert written["tensor_cores"]["time_share"] == pytest.approx(
        {"native": 0.5, "legacy": 0, "none": 0.3, "unknown": 0.2}
    )
    assert {k["name"] for k in written["tensor_cores"]["kernels"]} >= {NVJET, SGEMM}
    assert written["tensor_core_share"] == pytest.approx(0.5)
    assert [f["rule"] for f in written["findings"]] == ["PA403"]


def test_json_is_valid_against_the_schema_of_reports(trace, tmp_path):
    from importlib.resources import files

    schema = json.loads((files("precaudit") / "schemas" / "report.schema.json").read_text())
    out = tmp_path / "out.json"
    main(["trace", str(trace), "-o", str(out)])
    part = {"$ref": "#/$defs/tensor_cores", "$defs": schema["$defs"]}
    jsonschema.validate(json.loads(out.read_text())["tensor_cores"], part)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.links = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for key, value in attributes if key in ("src", "href")]


def test_html_is_one_safe_file(trace, tmp_path):
    out = tmp_path / "out.html"
    assert main(["trace", str(trace), "-o", str(out)]) == 0
    tags = Tags()
    tags.feed(text := out.read_text(encoding="utf-8"))
    assert "script" not in tags.seen
    assert tags.links == []
    assert "\u202e" not in text
    assert "&lt;script&gt;" in text


def test_markdown(trace, tmp_path):
    out = tmp_path / "out.md"
    assert main(["trace", str(trace), "-o", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "<script>" not in text
    rows = [line for line in text.splitlines() if line.startswith("|") and "Linear&#95;7" in line]
    assert [line.count("|") for line in rows] == [7, 8]  # of the kernels, and of the layers


def test_markdown_of_an_untrusted_name_stays_text(trace, tmp_path):
    hostile = trace.with_name("hostile.json")
    events = gzip.decompress(trace.read_bytes()).decode()
    hostile.write_text(events.replace("Linear_7", "![x](http://example.org/p.png)@me"))
    out = tmp_path / "out.markdown"
    assert main(["trace", str(hostile), "-o", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    assert "example.org" in text
    assert not any(live in text for live in ("![x]", "@me", "](http"))


def test_an_existing_file_is_kept_unless_forced(trace, tmp_path, capsys):
    out = tmp_path / "out.json"
    out.write_text("mine")
    assert main(["trace", str(trace), "-o", str(out)]) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["trace", str(trace), "-o", str(out), "--force"]) == 0
    assert out.read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing.json"], 2, "does not exist"),
        (["."], 2, "is a folder"),
        (["cpu.json"], 3, "no GPU kernels"),
        (["bad.json"], 2, "truncated"),
        (["cpu.json", "-o", "x.pdf"], 2, "extension"),
        (["cpu.json", "--target", "abacus"], 2, "unknown GPU"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(tmp_path, monkeypatch, capsys, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, document([op("aten::mm", 0, 5)]), "cpu.json")
    write(tmp_path, b'{"traceEvents": [{"ph": "X"}, {"ph"', "bad.json")
    assert main(["trace", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_a_trace_without_modules_or_a_known_gpu(tmp_path, capsys):
    path = write(tmp_path, document(launched(ADD, 0, 5, 1), device=None))
    assert main(["trace", str(path)]) == 0
    text = unwrapped(capsys.readouterr().out)
    assert "an unnamed GPU" in text
    assert "does not name its GPU" in text
    assert "no module events: layers need with_stack=True while recording" in text


def test_torch_is_not_imported(trace):
    code = (
        "import sys\nfrom precaudit.__main__ import main\n"
        f"assert main(['trace', {str(trace)!r}]) == 0\n"
        "assert not {'torch', 'pandas', 'altair', 'numba'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
