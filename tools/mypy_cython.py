"""A mypy plugin for the two annotations of Cython's pure mode that are no Python types.

`cython.uint[8]` is a C array and is read as `list[int]`, which it is when interpreted; `cython.uchar[::1]` is a typed
memoryview and is read as `memoryview`. The plain names (`cython.uint`) are aliases in stubs/cython/__init__.pyi.
"""

from __future__ import annotations

from collections.abc import Callable

from mypy.plugin import AnalyzeTypeContext, Plugin
from mypy.types import RawExpressionType, Type, UnboundType


class CythonPlugin(Plugin):
    """Reads subscripted C types."""

    _resolving = False

    def get_type_analyze_hook(self, fullname: str) -> Callable[[AnalyzeTypeContext], Type] | None:
        """Take the names of the `cython` stub, but for the moment in which mypy resolves a plain one itself."""
        if fullname.startswith("cython.") and not self._resolving:
            return self._analyze
        return None

    def _analyze(self, context: AnalyzeTypeContext) -> Type:
        written = context.type
        if not written.args:
            return self._resolve(context, written)
        element = self._resolve(context, UnboundType(written.name, line=written.line, column=written.column))
        size = written.args[0]
        if isinstance(size, RawExpressionType) and isinstance(size.literal_value, int):
            return context.api.named_type("builtins.list", [element])
        return context.api.named_type("builtins.memoryview", [element])

    def _resolve(self, context: AnalyzeTypeContext, written: UnboundType) -> Type:
        self._resolving = True
        try:
            return context.api.analyze_type(written)
        finally:
            self._resolving = False


def plugin(version: str) -> type[Plugin]:
    """The entry that mypy calls."""
    return CythonPlugin
