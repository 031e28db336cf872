"""How figures and names read."""

import math

import pytest

from precaudit import words
from precaudit.reporting import results
from precaudit.words import number, seconds, signed, size


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (number(999.7), "1,000"),
        (number(999.4), "999"),
        (number(0.012345), "0.0123"),
        (number(2e6), "2e+06"),
        (seconds(0.9997), "1,000 ms"),
        (seconds(0.0123), "12.3 ms"),
        (size(1010 * 2**20), "1,010 MiB"),
        (size(1023), "1,023 B"),
        (size(3 * 2**30), "3 GiB"),
        (signed(math.inf), "not finite"),
        (signed(-0.00001), "±0.00%"),
    ],
)
def test_no_exponent_where_units_change(said, words):
    assert said == words


def test_a_script_below_the_checkout_is_named_from_its_root(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    assert results.workspace_path("train.py") == "sub/train.py"
    assert results.workspace_path(str(tmp_path / "a.py")) == "a.py"
    assert results.workspace_path("/elsewhere/a.py") == "/elsewhere/a.py"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0%"),
        (1, "100%"),
        (1e-9, "<0.01%"),
        (0.99999, ">99.9%"),
        (0.005, "0.50%"),
        (0.5, "50.0%"),
        (None, "not measured"),
    ],
)
def test_shares_never_round_to_none_or_all(value, text):
    assert words.share(value) == text


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("::error file=x::pwned", r"\x3a:error file=x::pwned"),
        ("a ::Set-Output name=x", r"a \x3a:Set-Output name=x"),
        ("a ##[group]b ##vso[task.x]c", r"a \x23#[group]b \x23#vso[task.x]c"),
        ("void cudnn::detail::wgrad_alg0_engine<at::Half> ::", "void cudnn::detail::wgrad_alg0_engine<at::Half> ::"),
        ("std::vector x, at::native::add", "std::vector x, at::native::add"),
    ],
)
def test_only_ci_commands_are_altered(text, made):
    assert words.inert(text) == made


def test_names_are_cut_in_the_middle():
    assert words.shorten("blocks.10.mlp.proj", 11) == "block….proj"
    assert words.shorten("short", 11) == "short"


def test_long_names_that_differ_in_their_middle_stay_apart():
    tower = [f"vision_backbone.encoder.layers.{i}.attention_projection_{kind}" for i in (7, 75) for kind in "ab"]
    names = words.fitted(["embed", *tower], 20)
    assert names[0] == "embed"
    assert [name.partition(".")[0] for name in names[1:]] == ["…7", "…7", "…75", "…75"]
    assert len({*names}) == 5
    assert all(len(name) <= 20 for name in names)
    other = words.fitted([*tower[:1], "text_backbone.encoder.layers.7.attention_projection_a"], 30)
    assert all(".7." in name and len(name) <= 30 for name in other)
    assert len({*other}) == 2
    assert words.fitted(["a" * 50], 11) == [words.shorten("a" * 50, 11)]


@pytest.mark.parametrize(
    ("name", "most", "lines"),
    [
        ("model.layers.0.self_attn.q_proj", 4, ["model.layers.0.", "self_attn.q_proj"]),
        ("model.layers.0.post_attention_layernorm", 4, ["model.layers.0.", "post_atte…layernorm"]),
        ("encoder.layers.10.attention.query", 1, ["encoder.l…ion.query"]),
        ("encoder.layers.10.attention.output.dense", 2, ["encoder.layers.10.…", "ention.output.dense"]),
        ("the outermost module itself", 2, ["the outermost ", "module itself"]),
        ("fc", 1, ["fc"]),
        ("", 1, [""]),
    ],
)
def test_long_names_are_broken_after_dots_before_they_are_cut(name, most, lines):
    assert words.broken(name, 19, most) == lines
