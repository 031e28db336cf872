"""Which line is told of what a library does: the script's own, where a person can change something."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading

import pytest
import torch
from torch import nn

from precaudit.model import Location
from precaudit.ownprecision.float32 import CastWatch
from precaudit.ownprecision.records import Cast, OwnPrecision, StateLoss
from precaudit.running.job import Job, RunSpec
from precaudit.running.script_errors import script_error
from precaudit.running.worker import run
from precaudit.tracing.ops import caller_location, script_location

LIBRARY = """
import torch


def places(of, *rest):
    return [place() for place in of]


def narrowed(model):
    return model.to(torch.bfloat16)


def averaged(average, model, decay):
    for mine, other in zip(average, model.parameters(), strict=True):
        mine.lerp_(other.detach().bfloat16(), 1 - decay)


def in_a_thread(of, into):
    into += places(of)
"""


@pytest.fixture
def library(tmp_path):
    """A module that is installed, and no part of the script."""
    path = tmp_path / "site-packages" / "installed_library.py"
    path.parent.mkdir()
    path.write_text(LIBRARY)
    spec = importlib.util.spec_from_file_location("installed_library", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def here() -> int:
    return sys._getframe(1).f_lineno


def test_the_nearest_line_is_the_library_s_and_the_script_s_is_another(library):
    (nearest, own), line = library.places([caller_location, script_location]), here()
    assert nearest.path == library.__file__
    assert (own.path, own.line) == (__file__, line)


def test_an_exception_out_of_python_s_own_library_is_the_script_s_line():
    with pytest.raises(ValueError, match="Expecting value") as raised:
        json.loads("")
    place = script_error(raised.value).location
    assert (place.path, place.line) == (__file__, raised.tb.tb_lineno)


def test_without_a_library_between_they_are_the_same():
    nearest, own = caller_location(), script_location()
    assert nearest == own
    assert own.path == __file__


def test_where_a_library_runs_alone_its_line_is_told(library):
    """Its thread begins in the standard library, which nobody changes either."""
    found = []
    thread = threading.Thread(target=library.in_a_thread, args=([script_location], found))
    thread.start()
    thread.join()
    assert [place.path for place in found] == [library.__file__]


def test_a_cast_in_a_library_is_the_script_s_and_the_library_s_line_is_kept_beside_it(library):
    settings, model = OwnPrecision(), nn.Linear(2, 2)
    with CastWatch(settings):
        line = here() + 1
        library.narrowed(model)
        torch.ones(2).bfloat16()
    first, second = settings.casts
    assert first.place == Location(__file__, line)
    assert first.through.path == library.__file__
    assert second == Cast(Location(__file__, line + 1), second.dtype)


def test_an_average_that_a_library_keeps_is_told_at_the_script_s_call(library):
    lines = []

    def script():
        torch.manual_seed(0)
        model, average = nn.Linear(4, 4), [torch.zeros(4, 4).bfloat16(), torch.zeros(4).bfloat16()]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            lines[:] = [here() + 1]
            library.averaged(average, model, 0.999)

    result = run(RunSpec(Job("script", "train.py", (), os.getcwd(), 12), "x", precision="own-casts"), script)
    states = result.own_precision.entries(StateLoss)
    assert {entry.place for entry in states} == {Location(__file__, *lines)}


def test_generated_code_has_no_line_that_a_user_could_open():
    """torch.fx gives its graphs a file name of its own: the line that calls the graph is meant."""
    generated = compile("[place() for place in (caller_location, script_location)]", "<eval_with_key>.1", "eval")
    found = eval(generated, {"caller_location": caller_location, "script_location": script_location})
    assert [place.path for place in found] == [__file__] * 2
    with pytest.raises(ZeroDivisionError) as raised:
        eval(compile("1 / 0", "<eval_with_key>.1", "eval"))
    assert script_error(raised.value).location.path == __file__
