"""JSON by orjson and by Python's own module: the same text, the same refusals."""

import subprocess
import sys
from pathlib import Path

import pytest

from precaudit.reporting import json_text

CODE = """
import sys
sys.modules["orjson"] = None
from pathlib import Path
from precaudit import load_report
from precaudit.reporting import json_text
from precaudit.reporting.serialize import indented, render_json

assert "orjson" not in dir(json_text)
report = load_report(sys.argv[1])
Path(sys.argv[2]).write_text(render_json(report))
Path(sys.argv[3]).write_text(indented({"name": "Größe \\u2264", "value": [1.5, None, {}]}))
for wrong in (b"nan", b'{"a": Infinity}', b"{", b"\\xff"):
    try:
        json_text.loads(wrong)
    except ValueError:
        continue
    raise SystemExit(f"{wrong} was taken")
"""


def test_a_report_is_read_and_written_without_orjson(tmp_path):
    from precaudit import load_report
    from precaudit.reporting.serialize import indented, render_json

    path = Path(__file__).parents[2] / "reports" / "digits_cnn" / "report.json"
    written, short = tmp_path / "a.json", tmp_path / "b.json"
    subprocess.run([sys.executable, "-c", CODE, str(path), str(written), str(short)], check=True, timeout=120)
    assert json_text.loads(written.read_bytes()) == json_text.loads(render_json(load_report(path)).encode())
    assert short.read_text() == indented({"name": "Größe ≤", "value": [1.5, None, {}]})


@pytest.mark.parametrize("wrong", [b"nan", b'{"a": Infinity}', b"{", b"\xff"])
def test_invalid_json_raises_value_error(wrong):
    with pytest.raises(ValueError, match=r"\S"):
        json_text.loads(wrong)
