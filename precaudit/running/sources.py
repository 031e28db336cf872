"""What kind of file a person gave: a training script, or a model file without a training loop."""

from __future__ import annotations

import ast
from pathlib import Path

from precaudit.running.job import JobKind

TRAINABLE = frozenset({"build_model", "batches", "loss"})
CALLABLE = frozenset({"build_model", "batches"})


def classify(path: Path, names: frozenset[str] = TRAINABLE) -> JobKind:
    """A model file defines build_model, batches and loss (`names`), and has no backward pass of its own."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return "script"
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    trains = any(isinstance(node, ast.Attribute) and node.attr == "backward" for node in ast.walk(tree))
    return "model_file" if defined >= names and not trains else "script"
