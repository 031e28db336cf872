"""The pytest plugin as a team uses it: baselines written, kept, broken, in classes, parameters and under xdist."""

import json
import os

import pytest

pytest_plugins = ["pytester"]

PLUGIN = ("-p", "precaudit.integrations.pytest_plugin", "-p", "no:cacheprovider")

CONFTEST = """
import precaudit
import pytest
from precaudit.model import Exponents, Layer, Report, TensorRecord, TensorStats

CALLS = []

def fake_profile(build_model, batches, loss, **options):
    CALLS.append(options)
    exponent = build_model()
    stats = TensorStats(1000, 2.0**exponent, 2.0**exponent, exponents=Exponents(exponent, (1000,)))
    return Report(layers=(Layer("fc", "Linear", 1000, 1, (TensorRecord("weight", stats, "weight"),)),))

@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setitem(vars(precaudit), "profile", fake_profile)
"""

TEST = """
import os

def build_model():
    return int(os.environ.get("EXPONENT", 0))

def test_precision(precaudit):
    precaudit.check(precaudit.profile(build_model, list, len, steps=3))
"""


@pytest.fixture(autouse=True)
def only_named_plugins(monkeypatch):
    """The plugin is loaded by module, so that the tests hold whether precaudit is installed or not."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def team(pytester, monkeypatch):
    """A team's repository, run in processes of their own: `team(*arguments, exponent=...)`."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_model=TEST)

    def run(*arguments, exponent=0):
        monkeypatch.setenv("EXPONENT", str(exponent))
        return pytester.runpytest_subprocess(*PLUGIN, *arguments)

    return run


def baselines(pytester):
    return sorted(path.name for path in pytester.path.glob("__precaudit__/*"))


def test_without_a_baseline_the_test_fails_and_writes_none(team, pytester):
    result = team()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no precision baseline*run pytest --precaudit-update and commit it*"])
    assert baselines(pytester) == []


def test_update_writes_the_baseline_beside_the_test_and_says_so(team, pytester):
    result = team("--precaudit-update")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*review and commit them*", "*__precaudit__*test_model.test_precision.json"])
    assert baselines(pytester) == ["test_model.test_precision.json"]
    assert json.loads((pytester.path / "__precaudit__/test_model.test_precision.json").read_text())["layers"]


def test_the_same_model_passes_and_a_widened_one_fails_with_its_layer(team):
    team("--precaudit-update").assert_outcomes(passed=1)
    team(exponent=1).assert_outcomes(passed=1)
    result = team(exponent=12)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*FAIL*fc weight*amax rose 12.0 binades*", "*--precaudit-update*"])
    team("--precaudit-update", exponent=12).assert_outcomes(passed=1)
    team(exponent=12).assert_outcomes(passed=1)


def test_a_damaged_baseline_is_explained(team, pytester):
    team("--precaudit-update")
    (pytester.path / "__precaudit__/test_model.test_precision.json").write_text("{")
    result = team()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*precaudit: *test_model.test_precision.json: not JSON*"])


def test_the_marker_sets_thresholds_and_options_of_profile(team, pytester):
    pytester.makepyfile(
        test_marked="""
        import pytest
        from conftest import CALLS

        @pytest.mark.precision(fail_on=["all:off"], steps=7, seeds=2)
        def test_marked(precaudit):
            build = __import__("test_model").build_model
            precaudit.check(precaudit.profile(build, list, len, seeds=5))
            assert CALLS[-1] == {"steps": 7, "seeds": 5}
        """
    )
    team("--precaudit-update", "--strict-markers").assert_outcomes(passed=2)
    team("test_marked.py", exponent=12).assert_outcomes(passed=1)


def test_a_misspelt_threshold_is_explained(team, pytester):
    pytester.makepyfile(
        test_model=TEST.replace("def test_", "import pytest\n@pytest.mark.precision(fail_on=['speed:1'])\ndef test_")
    )
    team("--precaudit-update").assert_outcomes(passed=1)
    result = team()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*precaudit: --fail-on 'speed:1'*"])
    result.stdout.no_fnmatch_line("*another exception*")


def test_one_threshold_is_a_word_and_fails_where_it_cannot_be_seen(team, pytester):
    pytester.makepyfile(test_model=TEST.replace("check(", "check(fail_on='time:10', report="))
    team("--precaudit-update").assert_outcomes(passed=1)
    result = team()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*asked for by --fail-on time*"])


def test_classes_parameters_and_several_checks_have_their_own_baselines(team, pytester):
    pytester.makepyfile(
        test_model="""
        import pytest

        class TestBig:
            @pytest.mark.parametrize("size", [1, 2])
            def test_it(self, precaudit, size):
                report = precaudit.profile(lambda: size, list, len)
                precaudit.check(report)
                precaudit.check(report, name="again")

        @pytest.mark.parametrize("path", ["a/b", "a:b"])
        def test_odd_names(precaudit, path):
            precaudit.check(precaudit.profile(lambda: 0, list, len))
        """
    )
    team("--precaudit-update").assert_outcomes(passed=4)
    names = baselines(pytester)
    assert names[:4] == [f"test_model.TestBig.test_it[{n}]{more}.json" for n in (1, 2) for more in (".again", "")]
    assert len(set(names)) == 6
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyzTB0123456789._-[]") for name in names)


def test_two_checks_without_names_are_refused(team, pytester):
    pytester.makepyfile(test_model=TEST + "    precaudit.check(precaudit.profile(build_model, list, len))\n")
    result = team("--precaudit-update")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*give each call a name*"])


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("def test_it(precaudit): precaudit.check(None)", "*takes a report of precaudit.profile, not None*"),
        ("@pytest.mark.precision(20)\ndef test_it(precaudit): pass", "*takes its options by name*"),
    ],
)
def test_what_would_be_measured_by_nothing_is_refused(test, words, team, pytester):
    pytester.makepyfile(test_model=f"import pytest\n{test}")
    result = team("--precaudit-update")
    assert result.parseoutcomes().keys() <= {"failed", "errors"}
    result.stdout.fnmatch_lines([words])
    assert not baselines(pytester)


def test_under_xdist_every_worker_writes_and_reads_its_own(team, pytester):
    pytester.makepyfile(
        test_model="""
        import pytest

        @pytest.mark.parametrize("size", range(6))
        def test_it(precaudit, size):
            precaudit.check(precaudit.profile(lambda: size, list, len))
        """
    )
    result = team("-p", "xdist", "-n", "2", "--precaudit-update")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["*review and commit them*", *[f"*test_it?{n}?.json" for n in range(6)]])
    assert len(baselines(pytester)) == 6
    team("-p", "xdist", "-n", "2").assert_outcomes(passed=6)


def test_loading_the_plugin_and_comparing_import_no_torch(team, pytester):
    pytester.makepyfile(test_model=TEST + "    import sys\n    assert 'torch' not in sys.modules\n")
    team("--precaudit-update").assert_outcomes(passed=1)
    team().assert_outcomes(passed=1)


def test_a_session_without_the_fixture_is_left_alone(pytester):
    pytester.makepyfile("import sys\ndef test_plain():\n    assert 'precaudit.comparison.compare' not in sys.modules")
    result = pytester.runpytest_subprocess(*PLUGIN)
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*precaudit baselines*")


def test_a_read_only_folder_is_explained(team, pytester):
    folder = pytester.path / "__precaudit__"
    folder.write_text("a file in the way")
    result = team("--precaudit-update")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*cannot write*__precaudit__*"])
    assert os.path.isfile(folder)
