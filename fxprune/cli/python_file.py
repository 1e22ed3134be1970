"""`path/to/file.py:name`: an object out of a user's own file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from fxprune.errors import SpecError


def is_python_spec(spec: str) -> bool:
    """Whether `spec` has the form path.py:name."""
    path, colon, name = spec.rpartition(":")
    return bool(colon) and path.endswith(".py") and name.isidentifier()


def load_object(spec: str) -> Any:
    """What `path.py:name` names. The file may import its neighbours, by `import x` and by `from .x import y`.

    Raises SpecError where the file or the name is missing, or where running the file fails.
    """
    path_text, _, name = spec.rpartition(":")
    path = Path(path_text).resolve()
    if not path.is_file():
        raise SpecError(f"{path_text}: no such file")
    module = _import(path)
    if not hasattr(module, name):
        public = ", ".join(sorted(key for key in vars(module) if not key.startswith("_")))
        raise SpecError(f"{path_text} has no `{name}`; it has {public}")
    return getattr(module, name)


def call_factory(factory: Any, spec: str) -> Any:
    """The value of `factory()`. Raises SpecError naming `spec` and the user's line where the call fails."""
    try:
        return factory()
    except Exception as error:
        raise SpecError(f"calling {spec} without arguments failed{_where(error)}: {_words(error)}") from error


def _import(path: Path) -> ModuleType:
    """The file as a module of its package, or of a made-up one where its folder is none."""
    root, names = path.parent, [path.stem]
    while (root / "__init__.py").is_file():
        names.insert(0, root.name)
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if len(names) == 1:
        names.insert(0, _package(root))
    try:
        return importlib.import_module(".".join(names))
    except Exception as error:
        raise SpecError(f"running {path} failed{_where(error)}: {_words(error)}") from error


def _package(folder: Path) -> str:
    """A package over `folder` that exists in memory only, so that relative imports work. Its name is returned."""
    name = f"_fxprune_folder_{crc32(str(folder).encode()):08x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_loader(name, loader=None, is_package=True)
        assert spec is not None
        package = importlib.util.module_from_spec(spec)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _where(error: BaseException) -> str:
    """The innermost line outside this file and outside the import system."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__ and "importlib" not in f.filename
    ]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
