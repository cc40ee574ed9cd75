"""The one place where kernels are compiled: by numba, without the GIL, kept for the next process.

What is kept is a convenience and no more: where nothing can be written (read-only code and home),
and where what was written cannot be read (damaged, or of a version whose classes have moved),
kernels are compiled anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from numba import njit
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def compiled(**options: Any) -> Callable[[Kernel], Kernel]:
    """A decorator; options are numba's. Of a kernel that is inlined nothing is kept."""

    def decorate(function: Kernel) -> Kernel:
        kernel = njit(nogil=True, **options)(function)
        if options.get("inline") != "always":
            with suppress(RuntimeError):  # no folder for it can be written
                kernel._cache = _Kept(function)
        return kernel  # type: ignore[no-any-return]

    return decorate


def inner(*, allocates: bool = False) -> Callable[[Kernel], Kernel]:
    """The same of a kernel that only kernels call: without wrappers for Python, which for arguments
    of forty arrays take longer to compile than the kernel.

    What allocates nothing is compiled without reference counts, too: counting the arrays of a
    fleet's state, handed from one function to the next for every query, took two thirds of its
    time. `_nrt` is no documented option of numba: should it go, leave it out here. And it becomes
    part of its caller's code: handing those arrays over took five sixths of what was left.
    """
    options: dict[str, Any] = {
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
        "forceinline": not allocates,
    }
    return compiled(**options) if allocates else compiled(**options, _nrt=False)


class _Kept(FunctionCache):  # type: ignore[misc]
    """numba's own cache, but trouble with it is no trouble of whoever calls a kernel.

    numba unpickles an index before it asks whether that is of this source, and an index names
    classes by their modules: after an upgrade that had moved one, no simulation ran. And it knows
    a kernel by its own file only: one that calls those of another was kept when they had changed.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            # Not before: what a kernel calls may stand below it.
            self._cache_file._source_stamp = _stamp(self._py_func)
            return super().load_overload(sig, target_context)
        except Exception:
            with suppress(OSError):
                self.flush()  # so that the next process need not stumble over it
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(Exception):
            super().save_overload(sig, data)


def _stamp(function: Any) -> str:
    """Of the sources of a kernel and of all that it calls, and of how they are compiled."""
    called, left = {function}, [function]
    while left:
        kernel = left.pop()
        named = (kernel.__globals__.get(name) for name in kernel.__code__.co_names)
        more = {value.py_func for value in named if isinstance(value, Dispatcher)} - called
        called |= more
        left += more
    sources = sorted({__file__, *(kernel.__code__.co_filename for kernel in called)})
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in sources)).hexdigest()
