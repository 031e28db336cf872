"""The part of an exception's message that stands in a sentence."""

import pytest
from torch._utils import ExceptionWrapper

from precaudit.running.job import ScriptError

KERNEL = "Could not run 'aten::cell' with arguments from the 'CPU' backend. CPU: registered at " + "x.cpp:1, " * 300


@pytest.mark.parametrize(
    ("message", "short"),
    [
        ("", ""),
        ("no kernel", "no kernel"),
        ("CUDA error: invalid argument\nKernel errors might be reported later.", "CUDA error: invalid argument"),
        ("Error(s) in loading state_dict:\n\tMissing: a, b", "Error(s) in loading state_dict: Missing: a, b"),
    ],
)
def test_a_messages_first_line_is_enough_unless_it_announces_more(message, short):
    assert ScriptError("RuntimeError", message, "").short == short


def test_a_page_of_torch_is_cut():
    short = ScriptError("NotImplementedError", KERNEL, "").short
    assert len(short) <= 300
    assert short.startswith("Could not run 'aten::cell'")
    assert short.endswith(" ...")


def test_what_a_worker_raised_is_told_with_it():
    """torch quotes the worker's traceback in the message of the exception that it raises in its place."""
    try:
        try:
            raise KeyError("cause")
        except KeyError:
            raise ValueError("sample 57 is bad\nand so on") from None
    except ValueError:
        wrapper = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(ValueError, match="Caught") as caught:
        wrapper.reraise()
    short = ScriptError("ValueError", str(caught.value), "").short
    assert short == "Caught ValueError in DataLoader worker process 0. ValueError: sample 57 is bad"


@pytest.mark.parametrize(
    ("type_", "message", "line"),
    [
        ("SystemExit", "3", "it exited with code 3"),
        ("SystemExit", "no data found", "it exited with the words: no data found"),
        ("KeyError", "'x'", "KeyError: 'x'"),
    ],
)
def test_a_script_that_exits_raised_nothing_to_its_author(type_, message, line):
    assert ScriptError(type_, message, "").in_a_line == line
