"""Renderers: each makes one format from one Report. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path

from precaudit.errors import PrecauditError
from precaudit.model import Report

DEFAULT_PLAN = Path("plan.json")
FOLDER_FILES = ("report.json", "plan.json", "report.md", "report.html")

FORMATS = ("terminal", "markdown", "html", "json", "plan", "sarif", "junit", "gitlab", "github", "svg")
PASTED = ("terminal", "markdown", "html")  # those with lines to paste, which name the file of the plan
# ending of a file's name: format; the longest ending that fits wins
EXTENSIONS = {
    ".json": "json",
    ".plan.json": "plan",
    ".html": "html",
    ".htm": "html",
    ".md": "markdown",
    ".markdown": "markdown",
    ".sarif": "sarif",
    ".sarif.json": "sarif",
    ".xml": "junit",
    ".txt": "terminal",
    ".svg": "svg",
    ".gitlab.json": "gitlab",
}


def render(report: Report, format: str, plan: Path = DEFAULT_PLAN) -> str:
    """The report as text in one of `FORMATS`: by `render_html` of the module `html`, and so on."""
    if format not in FORMATS:
        raise PrecauditError(f"unknown report format {format!r}; known formats: {', '.join(FORMATS)}")
    module = import_module(f"{__name__}.{'serialize' if format in ('json', 'plan') else format}")
    renderer: Callable[..., str] = getattr(module, f"render_{format}")
    return renderer(report, plan=plan) if format in PASTED else renderer(report)


def format_of(path: Path) -> str:
    """The format that a file's name asks for; `PrecauditError` with the known ones otherwise."""
    name = path.name.lower()
    if name == "plan.json":
        return "plan"
    if name.startswith("gl-code-quality") and name.endswith(".json"):
        return "gitlab"
    for extension in sorted(EXTENSIONS, key=len, reverse=True):
        if name.endswith(extension):
            return EXTENSIONS[extension]
    raise PrecauditError(
        f"{path}: the extension picks the format, and this one is unknown; known ones: {', '.join(EXTENSIONS)}, "
        "plan.json, and gl-code-quality*.json for GitLab"
    )


def format_among(formats: Collection[str], path: Path) -> str:
    """The format that a file's name asks for, if it is one of these."""
    name = "csv" if path.suffix.lower() == ".csv" else format_of(path)
    if name not in formats:
        known = (extension for extension, each in {**EXTENSIONS, ".csv": "csv"}.items() if each in formats)
        raise PrecauditError(f"{path}: can't be written as {name} here; what can be is {', '.join(known)}")
    return name


def files_of(path: Path) -> list[Path]:
    """Every file that `write` may write for this one."""
    from precaudit.reporting.markdown import picture_files

    return [path, *(picture_files(path).values() if format_of(path) == "markdown" else ())]


def write(report: Report, path: str | Path, plan: Path = DEFAULT_PLAN) -> None:
    """Write the report in the format of the file's extension, all or nothing; Markdown has pictures beside it. `plan`
    is the file that the lines to paste load."""
    from precaudit.reporting.files import write_text
    from precaudit.reporting.markdown import write_markdown

    path, format = Path(path), format_of(Path(path))
    if format == "markdown":
        write_markdown(report, path, plan)
    else:
        write_text(path, render(report, format, plan))
