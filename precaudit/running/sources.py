"""Classification of the user's file: a training script, or a model file without a training loop."""

from __future__ import annotations

import ast
import zipfile
from pathlib import Path

from precaudit.running.job import Job, JobKind

TRAINABLE = frozenset({"build_model", "batches", "loss"})
CALLABLE = frozenset({"build_model", "batches"})
INERT = frozenset({"pandas", "scipy", "sklearn", "torchvision"})
"""Libraries that are slow to import and have no side effects on import."""
SHARED_IMPORTS = "PRECAUDIT_SHARED_IMPORTS"
"""The environment variable that hands the fork server the modules to import once for all runs."""


def classify(path: Path, names: frozenset[str] = TRAINABLE) -> JobKind:
    """A model file defines build_model, batches and loss (`names`), and has no backward pass of its own."""
    tree = _parsed(path)
    trains = any(isinstance(node, ast.Attribute) and node.attr == "backward" for node in ast.walk(tree))
    return "model_file" if _defined(tree) >= names and not trains else "script"


def lacking(path: Path, names: frozenset[str] = TRAINABLE) -> str | None:
    """The one name that the file lacks to be a model file; None where it lacks none or several."""
    missing = names - _defined(_parsed(path))
    return next(iter(missing)) if len(missing) == 1 else None


def is_bundle(path: Path) -> bool:
    """A folder or a zip file (`app.pyz`) that Python runs by the `__main__` in it."""
    if path.is_dir():
        return (path / "__main__.py").is_file()
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not {"__main__.py", "__main__.pyc"}.isdisjoint(archive.namelist())


def is_binary(path: Path) -> bool:
    """Whether the file has a zero byte, as no Python source has."""
    with path.open("rb") as stream:
        return b"\0" in stream.read(8192)


def _defined(tree: ast.Module) -> set[str]:
    """The names that a module defines at its top level: functions, values and imports."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def inert_imports(job: Job) -> tuple[str, ...]:
    """Modules of inert libraries that the script imports: the fork server may import them once for all runs.

    Libraries that a file or folder beside the script shadows are left out.
    """
    path = Path(job.cwd, job.target)
    if job.kind == "module" or not path.is_file():
        return ()
    nodes = list(ast.walk(_parsed(path)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    beside = {entry.stem for entry in path.parent.iterdir()}
    return tuple(dict.fromkeys(name for name in names if name.partition(".")[0] in INERT - beside))


def _parsed(path: Path) -> ast.Module:
    """The syntax tree; an empty module where the file can't be parsed: running it will report why."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, IsADirectoryError):
        return ast.Module([], [])
