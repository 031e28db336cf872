"""Running the user's code as Python itself would: `__main__`, `sys.argv`, `sys.path[0]`, working directory."""

from __future__ import annotations

import os
import runpy
import sys
import types
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from precaudit.running.job import Job
from precaudit.running.model_file import infer, train
from precaudit.running.sources import is_bundle


def run_job(job: Job) -> None:
    """Run the job's code to its end in this process; whatever it raises passes through."""
    os.chdir(job.cwd)
    if job.kind == "module":
        sys.argv = [job.target, *job.argv]
        sys.path.insert(0, job.cwd)
        runpy.run_module(job.target, run_name="__main__", alter_sys=True)
        return
    sys.argv = [job.target, *job.argv]
    if is_bundle(Path(job.target)):
        _run_bundle(os.path.abspath(job.target))
        return
    sys.path.insert(0, str(Path(job.target).resolve().parent))
    name = "__main__" if job.kind == "script" else "precaudit_model_file"
    namespace = _run_file(job.target, name, asserts=job.asserts)
    if job.kind == "model_file":
        train(namespace, job.device)
    elif job.kind == "inference":
        infer(namespace, job.device, job.steps)


def _run_bundle(path: str) -> None:
    """Run the `__main__` of a folder or zip file, whose absolute path becomes `sys.path[0]`."""
    sys.path.insert(0, path)
    spec = PathFinder.find_spec("__main__", [path])
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["__main__"] = module_from_spec(spec)
    spec.loader.exec_module(module)


def _run_file(path: str, name: str, asserts: bool) -> dict[str, Any]:
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    code = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True, optimize=-1 if asserts else 1)
    exec(code, module.__dict__)
    return module.__dict__
