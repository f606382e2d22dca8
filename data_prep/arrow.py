"""Importing this module keeps pyarrow from importing pandas, which we never use.

With the first list that it converts, pyarrow imports pandas where that is installed, only to ask
whether the list is one of pandas's types: one to two seconds in each worker process. It asks once;
told then that there is none, it imports pandas later all the same where it has to (`to_pandas()`).
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import pyarrow as pa


class _WithoutPandas(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return None


if "pandas" not in sys.modules:
    finder = _WithoutPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([None])
    finally:
        sys.meta_path.remove(finder)
