"""Runs find the script's files as they were, and so does the person afterwards."""

import json
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from precaudit.running.children import ChildRunner
from precaudit.running.file_guard import restore, set_aside_folder
from precaudit.running.job import Job, RunSpec


def told(folder):
    """Everything below a folder, by name: texts of files, targets of links, nothing for folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = f"-> {path.readlink()}"
        else:
            text = path.read_bytes().decode(errors="replace") if path.is_file() else None
            found[str(path.relative_to(folder))] = text
    return found


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "place"
    (folder / "old").mkdir(parents=True)
    (folder / "best.txt").write_text("three days of work")
    (folder / "old" / "a.txt").write_text("a")
    (folder / "old" / "b.txt").write_text("b")
    (folder / ".latest.txt").write_text("hidden")
    (folder / ".ckpt").mkdir()
    (folder / ".ckpt" / "c.txt").write_text("hidden too")
    (folder / "latest").symlink_to("best.txt")
    return folder


def heard(place, code, training=True, store=None, ours=()):
    """Run code where a guard listens, for which a process of its own is needed: nothing ends an audit hook."""
    store = set_aside_folder((store or place.parent) / "script.log")
    lines = f"""
        import os, shutil
        from pathlib import Path
        from precaudit.running.file_guard import FileGuard
        {"import torch" if "torch" in code else ""}
        guard = FileGuard(Path({str(store)!r}), {list(map(str, ours))!r})
        guard.listen()
        guard.training = {training}
    """
    program = textwrap.dedent(lines) + textwrap.dedent(code)
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=place, check=True, timeout=120, stderr=subprocess.PIPE, text=True)
    return store


@pytest.mark.parametrize(
    "code",
    [
        "Path('best.txt').write_text('worse')",
        "Path('latest').write_text('worse')",
        "Path('best.txt').unlink()",
        "Path('best.txt').unlink(); Path('best.txt').write_text('worse')",
        "os.rename('best.txt', 'former.txt'); Path('best.txt').write_text('worse')",
        "Path('new.txt').write_text('new'); os.replace('new.txt', 'best.txt')",
        "shutil.copyfile('old/a.txt', 'best.txt')",
        "shutil.rmtree('old')",
        "shutil.rmtree('old'); os.mkdir('old'); Path('old/c.txt').write_text('c')",
        "os.rename('old', 'older'); Path('older/a.txt').write_text('changed')",
        "os.makedirs('run/deep'); Path('run/deep/log.txt').write_text('x'); os.rename('run', 'moved')",
        "os.unlink('latest'); os.symlink('old/a.txt', 'latest')",
        "os.link('best.txt', 'another.txt')",
        "open('log.txt', 'a').write('x'); open('log.txt', 'a').write('y')",
        "torch.save(1, 'best.txt'); torch.save(2, f='new.pt')",
        "Path('.latest.txt').write_text('worse'); Path('.ckpt/c.txt').unlink(); Path('.ckpt/d.txt').write_text('d')",
        "shutil.rmtree('old'); Path('old').write_text('a file now')",
        "Path('best.txt').unlink(); os.mkdir('best.txt'); Path('best.txt/c.txt').write_text('c')",
        "os.chdir('old'); Path('../best.txt').write_text('worse'); Path('d.txt').write_text('d')",
    ],
)
def test_what_training_does_to_files_is_undone(place, code):
    before = told(place)
    store = heard(place, code)
    assert told(place) != before
    restore(store)
    assert told(place) == before
    assert not store.exists()


def test_what_is_made_before_training_stays_while_what_was_there_is_restored(place):
    code = """
        Path('part').write_text('data')
        os.rename('part', 'data.txt')
        Path('best.txt').write_text('worse')
        guard.training = True
        Path('result.txt').write_text('r')
    """
    restore(heard(place, code, training=False))
    after = told(place)
    assert after["data.txt"] == "data"
    assert after["best.txt"] == "three days of work"
    assert "result.txt" not in after
    assert "part" not in after


@pytest.mark.parametrize(
    "code",
    [
        "os.makedirs('runs/1'); log = open('runs/1/log.txt', 'w'); guard.begin_training(); log.write('x')",
        "os.makedirs('runs/1'); Path('runs/1/log.txt').touch(); guard.begin_training(); open('runs/1/log.txt', 'a')",
    ],
)
def test_a_log_that_is_begun_before_training_goes_with_its_folders(place, code):
    before = told(place)
    store = heard(place, code, training=False)
    assert "runs/1/log.txt" in told(place)
    restore(store)
    assert told(place) == before


def test_data_that_training_reads_stays_with_its_folders(place):
    code = "os.mkdir('data'); Path('data/x').write_text('x'); data = open('data/x'); guard.begin_training()"
    restore(heard(place, f"{code}; open('data/x').read(); Path('data/log').touch()", training=False))
    assert told(place)["data/x"] == "x"
    assert "data/log" not in told(place)


@pytest.mark.parametrize(
    "change", ["os.rename('best.txt', 'best.1')", "os.remove('best.txt')", "open('best.txt', 'w')"]
)
def test_a_file_of_the_person_s_that_is_appended_to_is_still_the_person_s(place, change):
    before = told(place)
    restore(heard(place, f"open('best.txt', 'a').write('!'); {change}"))
    assert told(place) == before | {"best.txt": "three days of work!"}


def test_caches_and_appended_files_are_left_alone(place):
    code = "os.makedirs('.cache'); Path('.cache/x').write_text('x'); open('best.txt', 'a').write(', and more')"
    restore(heard(place, code))
    assert told(place)[".cache/x"] == "x"
    assert told(place)["best.txt"] == "three days of work, and more"


def test_a_name_that_begins_like_precaudits_own_is_no_more_its_own(place):
    before = told(place)
    (own := place / "best").write_text("said")
    restore(heard(place, "Path('best').write_text('more'); Path('best.txt').write_text('worse')", ours=[own]))
    assert told(place) == before | {"best": "more"}


def test_what_a_run_made_and_removed_is_gone(place):
    """However soon after it began, by the clock of the file system."""
    before = told(place)
    code = "for i in range(50): Path(f'lock-{i}').touch(); Path(f'lock-{i}').unlink()"
    restore(heard(place, code, training=False))
    assert told(place) == before


def test_the_first_of_two_runs_sets_a_file_aside_and_the_second_keeps_it(place):
    for word in ("worse", "worst"):
        store = heard(place, f"Path('best.txt').write_text({word!r})")
    restore(store)
    assert told(place)["best.txt"] == "three days of work"


@pytest.mark.parametrize(
    ("first", "second", "crossed"),
    [
        ("Path('new.txt').write_text('1')", "Path('new.txt').read_text()", True),
        ("Path('new.txt').write_text('1')", "Path('new.txt').write_text('2'); Path('new.txt').read_text()", True),
        ("Path('best.txt').write_text('1')", "Path('best.txt').read_text()", True),
        ("Path('new.txt').write_text('1')", "Path('mine.txt').write_text('2'); Path('mine.txt').read_text()", False),
        ("Path('new.txt').write_text('1')", "Path('best.txt').read_text()", False),
    ],
)
def test_a_run_knows_whether_it_read_what_one_beside_it_wrote(place, first, second, crossed):
    heard(place, first)
    heard(place, f"{second}; assert guard.crossed is {crossed}")


@pytest.mark.parametrize("code", ["Path('best.txt').write_text('mine')", "Path('best.txt').unlink()"])
def test_another_profile_does_not_take_a_run_s_file_for_the_person_s(place, code):
    before = told(place)
    store = heard(place, "Path('best.txt').write_text('worse')")
    other = place.parent / "other"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        heard(place, code, store=other)
    assert f"is set aside by another profile, in {store}" in refused.value.stderr
    restore(store)
    heard(place, code, store=other)
    restore(other / ".set-aside")
    assert told(place) == before


def test_a_file_that_cannot_go_back_stays_in_the_store_and_is_told(place):
    (place / "old" / "b.txt").unlink()
    store = heard(place, "shutil.rmtree('old')")
    (place / "old").write_text("made by somebody else")
    with pytest.warns(UserWarning, match=r"a\.txt could not be put back"):
        restore(store)
    assert [path.read_text() for path in store.glob("*.kept")] == ["a"]
    (place / "old").unlink()
    restore(store)
    assert (place / "old" / "a.txt").read_text() == "a"
    assert not store.exists()


@pytest.mark.parametrize("text", ["", "{", json.dumps([]), json.dumps({"path": "x"})])
def test_a_note_cut_short_is_of_a_run_that_had_changed_nothing(tmp_path, text):
    store = tmp_path / "store"
    store.mkdir()
    (store / ("0" * 64)).write_text(text)
    restore(store)
    assert not store.exists()


def test_file_is_set_aside_before_another_run_may_change_it(place):
    first = """
        import time
        from precaudit.running import file_guard
        def slow(path, kept, move=file_guard._move):
            Path("claimed").touch()
            time.sleep(0.5)
            move(path, kept)
        file_guard._move = slow
        Path("best.txt").write_text("first")
    """
    second = """
        import time
        while not Path("claimed").exists():
            time.sleep(0.01)
        Path("best.txt").write_text("second")
    """
    with ThreadPoolExecutor() as pool:
        store, _ = pool.map(partial(heard, place), (first, second))
    restore(store)
    assert (place / "best.txt").read_text() == "three days of work"


SCRIPT = """
import os

import torch

model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
if os.path.exists("pretrained.pt"):
    model.load_state_dict(torch.load("pretrained.pt"))
if os.path.exists("checkpoint.pt"):
    model.load_state_dict(torch.load("checkpoint.pt"))
for step in range(4):
    optimizer.zero_grad()
    (model(torch.ones(8, 4)) - 1).square().mean().backward()
    optimizer.step()
    for name in ("pretrained.pt", "checkpoint.pt"):
        torch.save(model.state_dict(), name)
"""


def test_runs_that_save_what_they_resume_from_begin_alike(tmp_path):
    import torch

    (tmp_path / "train.py").write_text(SCRIPT)
    torch.manual_seed(1)
    torch.save(torch.nn.Linear(4, 1).state_dict(), tmp_path / "pretrained.pt")
    before = (tmp_path / "pretrained.pt").read_bytes()
    runner = ChildRunner(tmp_path / "script.log")
    job = Job("script", str(tmp_path / "train.py"), (), str(tmp_path), 3)
    spec = RunSpec(job, "reference")
    results = [runner(spec), *runner.many([spec] * 4)]
    assert {(run.status, run.losses) for run in results} == {("stopped", results[0].losses)}
    assert {path.name for path in tmp_path.iterdir()} == {"train.py", "pretrained.pt", "script.log"}
    assert (tmp_path / "pretrained.pt").read_bytes() == before
