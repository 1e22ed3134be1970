"""Code generation: how a graph is spelled in Python, as a forward that runs and as a file that stands alone."""

from fxprune.codegen import rules  # noqa: F401 (they register on import)
from fxprune.codegen.forward import ReadableCodeGen
from fxprune.codegen.save import refuse_foreign, save
from fxprune.codegen.source import module_source

__all__ = ["ReadableCodeGen", "module_source", "refuse_foreign", "save"]
