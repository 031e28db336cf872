from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import report_samples

from precaudit.__main__ import main
from precaudit.reporting import drawing, write
from precaudit.reporting.serialize import load_plan, load_report, write_json


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, report_samples.passing())
    return path


def test_prints_for_the_terminal(path, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["report", str(path)]) == 0
    out = capsys.readouterr().out
    assert "VERIFIED: float16" in out
    assert "\x1b" not in out
    assert f'load_plan("{path}")' in out  # no plan.json lies beside it


def test_a_folder_stands_for_its_report(path, capsys):
    assert main(["report", str(path.parent)]) == 0
    assert str(path) in capsys.readouterr().out
    path.unlink()
    assert main(["report", str(path.parent)]) == 2
    assert "a folder without report.json" in capsys.readouterr().err


def pasted(file):
    return re.search(r"load_plan\((.*)\)", html.unescape(file.read_text())).group(1)


@pytest.mark.parametrize("beside", [True, False])
def test_pasted_lines_load_a_plan_that_is_there(beside, path, tmp_path):
    if beside:
        write(load_report(path), path.with_name("plan.json"))
    out = tmp_path / "elsewhere"
    assert main(["report", str(path), *(f"-o{out / name}" for name in ("x.md", "x.txt", "x.html"))]) == 0
    for name in ("x.md", "x.txt", "x.html"):
        assert load_plan(json.loads(pasted(out / name))) == load_report(path).plan
        assert Path(json.loads(pasted(out / name))).name == ("plan.json" if beside else "report.json")


@pytest.mark.parametrize("names", [["r.md", "r.json"], ["r.md", "r.json", "plan.json"]])
def test_a_saved_report_names_the_plan_saved_with_it(names, tmp_path):
    report_samples.passing().save(*(tmp_path / name for name in names))
    assert pasted(tmp_path / "r.md") == json.dumps(str(tmp_path / names[-1]))


def test_unreadable_path(path, capsys):
    assert main(["report", str(path), "-o", f"{'n' * 300}.html"]) == 2
    assert "n.html: File name too long" in capsys.readouterr().err


def test_removed_current_folder(path, capsys, monkeypatch):
    gone = path.parent / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["profile", str(path)]) == 2
    assert "the current folder: No such file or directory; check that place" in capsys.readouterr().err


def test_force_color(path, capsys, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    main(["report", str(path)])
    assert "\x1b[1;32mVERIFIED" in capsys.readouterr().out


def test_writes_what_the_extensions_say(path, capsys):
    folder = path.parent / "out"
    outputs = [
        folder / name for name in ("x.html", "x.md", "x.sarif", "x.xml", "x.json", "gl-code-quality.json", "x.txt")
    ]
    arguments = [part for output in outputs for part in ("-o", str(output))]
    assert main(["report", str(path), *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Written: " in captured.err
    assert all(output.stat().st_size > 2 for output in outputs)


def test_formats_go_to_stdout(path, capsys):
    assert main(["report", str(path), "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("<!-- precaudit:report -->")


def test_files_are_not_overwritten_without_force(path, capsys):
    output = path.with_name("x.md")
    output.write_text("mine")
    assert main(["report", str(path), "-o", str(output)]) == 2
    assert output.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert main(["report", str(path), "-o", str(output), "--force"]) == 0
    assert output.read_text() != "mine"


@pytest.mark.parametrize("options", [[], ["--force"]])
def test_a_folder_in_the_way_of_a_file_asks_for_another_place(options, path, capsys):
    folder = path.with_name("x.json")
    folder.mkdir()
    assert main(["report", str(path), "-o", str(folder), *options]) == 2
    assert capsys.readouterr().err.endswith("x.json: a folder, which no file can replace; choose another place\n")


@pytest.mark.parametrize("arguments", [["missing.json"], ["{path}", "-o", "x.pdf"], ["/"]])
def test_mistakes_end_with_2_and_a_sentence(path, arguments, capsys):
    assert main(["report", *(part.format(path=path) for part in arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("precaudit: ")
    assert "Traceback" not in error


def test_nothing_is_written_when_one_output_is_wrong(path):
    assert main(["report", str(path), "-o", str(path.with_name("good.md")), "-o", "bad.pdf"]) == 2
    assert not path.with_name("good.md").exists()


def test_torch_is_not_imported(path):
    """Every renderer, in a fresh interpreter."""
    script = (
        "import sys\n"
        "from precaudit.__main__ import main\n"
        "out = sys.argv[2]\n"
        "names = ['x.html', 'x.md', 'x.sarif', 'x.xml', 'x.json', 'x.gitlab.json', 'x.txt']\n"
        "arguments = [part for name in names for part in ('-o', f'{out}/{name}')]\n"
        "assert main(['report', sys.argv[1], *arguments, '--format', 'terminal']) == 0\n"
        "loaded = [name for name in ('torch', 'numba', 'pandas', 'scipy') if name in sys.modules]\n"
        "assert 'torch' not in loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(path.parent / "fresh")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_seeds_are_forecast_only_where_a_verdict_is_open():
    """scipy.stats, which the forecast needs, takes half a second to import."""
    difference = "Difference(0.0, -0.001, 0.001)"
    code = (
        "import sys\n"
        "from precaudit.model import Difference, Report, Verification\n"
        "from precaudit.reporting.actions import actions\n"
        f"actions(Report(verification=Verification(sys.argv[1], margin=0.01, seeds=(0, 1), difference={difference})))\n"
        "print('scipy.stats' in sys.modules)\n"
    )
    loaded = [
        subprocess.run([sys.executable, "-c", code, verdict], capture_output=True, text=True, check=True).stdout.strip()
        for verdict in ("pass", "inconclusive")
    ]
    assert loaded == ["False", "True"]


@pytest.mark.parametrize("command", [["profile"], ["report"]])
def test_an_unknown_extension_is_refused_before_any_work(command, path, capsys):
    script = path.with_name("train.py")
    script.write_text("raise SystemExit(7)\n")
    subject = {"profile": ["--out", str(path.with_name("out")), str(script)], "report": [str(path)]}[command[0]]
    assert main([*command, "-o", "x.docx", *subject]) == 2
    assert "known ones" in capsys.readouterr().err


# ---------------------------------------------------------------- pictures beside Markdown


def links(text):
    return re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)


def test_markdown_links_pictures_that_lie_beside_it(path):
    pytest.importorskip("vl_convert")
    output = path.with_name("a report.md")
    assert main(["report", str(path), "-o", str(output)]) == 0
    files = [output.parent / unquote(link) for link in links(output.read_text())]
    assert [file.name for file in files] == ["a report-training.svg", "a report-ranges.svg"]
    for file in files:
        assert ElementTree.parse(file).getroot().tag.endswith("svg")
        assert file.stat().st_size < 500_000
    assert "base64" not in output.read_text()


def test_a_measured_report_has_the_layers_times(path):
    pytest.importorskip("vl_convert")
    write_json(path, report_samples.failing())
    output = path.with_name("x.md")
    assert main(["report", str(path), "-o", str(output)]) == 0
    assert links(output.read_text())[-1] == "x-times.svg"
    assert "blocks.0.attn.qkv" in output.with_name("x-times.svg").read_text()


def test_pictures_of_others_are_not_overwritten(path, capsys):
    mine = path.with_name("x-ranges.svg")
    mine.write_text("mine")
    assert main(["report", str(path), "-o", str(path.with_name("x.md"))]) == 2
    assert mine.read_text() == "mine"
    assert "x-ranges.svg" in capsys.readouterr().err


def test_picture_that_cannot_be_written_does_not_stop_the_rest(path, capsys):
    pytest.importorskip("vl_convert")
    path.with_name("x-training.svg").symlink_to("nowhere/x.svg")
    output = path.with_name("x.md")
    assert main(["report", str(path), "-o", str(output)]) == 2
    assert links(output.read_text()) == ["x-ranges.svg"]
    assert "x.md was written, without that picture" in capsys.readouterr().err


def test_printed_markdown_has_no_pictures(path, capsys):
    assert main(["report", str(path), "--format", "markdown"]) == 0
    assert links(capsys.readouterr().out) == []


def test_without_the_html_extra_markdown_is_text_alone(path, monkeypatch):
    monkeypatch.setattr(drawing, "find_spec", lambda name: None)
    output = path.with_name("x.md")
    assert main(["report", str(path), "-o", str(output)]) == 0
    assert links(output.read_text()) == []
    assert list(path.parent.glob("*.svg")) == []
