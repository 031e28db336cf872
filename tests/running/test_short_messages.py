"""The part of an exception's message that stands in a sentence."""

import pytest

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
