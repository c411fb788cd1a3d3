"""The one BLAS call that numpy does not offer: G += A Aᵀ into one triangle, without a temporary.

``slab @ slab.T`` calls the same syrk but then mirrors the triangle and needs a second matrix to be added from: at 4096
rows that takes as long again as the multiplication. SciPy's Python wrapper of syrk holds the interpreter lock, so the
function is taken from ``scipy.linalg.cython_blas``, SciPy's public interface for compiled code, and called through
ctypes, which releases the lock.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = ("char", "char", "int", "int", "d", "d", "int", "d", "d", "int")  # of cython_blas.dsyrk: all pointers
Syrk = Callable[..., None]


def add_product(total: NDArray[np.float64], slab: NDArray[np.float64]) -> None:
    """Add ``slab @ slab.T`` to the lower triangle of ``total``, in place.

    ``total`` is n x n in Fortran order, ``slab`` n x k in either order (copied when it is in neither). The strict upper
    triangle of ``total`` is left as it is, or filled with the same symmetric sum where SciPy offers no syrk.
    """
    syrk = _syrk()
    if syrk is None:
        total += slab @ slab.T
        return
    if not (slab.flags.c_contiguous or slab.flags.f_contiguous):
        slab = np.ascontiguousarray(slab)
    side, length = slab.shape
    # BLAS counts in columns: a C-ordered n x k slab is a k x n matrix to it, whose product is the transposed one.
    transposed = slab.flags.c_contiguous and length > 0
    n, k, leading = ctypes.c_int(side), ctypes.c_int(length), ctypes.c_int(length if transposed else side)
    one = ctypes.c_double(1.0)
    syrk(
        b"L", b"T" if transposed else b"N", ctypes.byref(n), ctypes.byref(k), ctypes.byref(one), _address(slab),
        ctypes.byref(leading), ctypes.byref(one), _address(total), ctypes.byref(n),
    )  # fmt: skip


def triangle_squared_norm(lower: NDArray[np.float64]) -> float:
    """Return ‖G‖_F² of the symmetric G whose lower triangle (with the diagonal) is that of ``lower``."""
    below, width = 0.0, 64  # bands of columns: a rectangle below a small square on the diagonal
    for start in range(0, len(lower), width):
        stop = min(start + width, len(lower))
        rectangle, square = lower[stop:, start:stop], np.tril(lower[start:stop, start:stop], -1)
        below += float(np.einsum("ij,ij->", rectangle, rectangle)) + float(np.vdot(square, square))
    diagonal = np.diagonal(lower)
    return 2.0 * below + float(diagonal @ diagonal)


@cache
def _syrk() -> Syrk | None:
    """SciPy's dsyrk as a function of pointers, or None when its interface is not the one known here."""
    try:
        from scipy.linalg import cython_blas

        capsule = cython_blas.__pyx_capi__["dsyrk"]
    except (ImportError, AttributeError, KeyError):
        return None
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    name: bytes = api.PyCapsule_GetName(capsule)
    if not _is_known(name.decode("ascii", "replace")):
        return None
    prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_char_p] * 2, *[ctypes.c_void_p] * 8)
    function: Syrk = prototype(api.PyCapsule_GetPointer(capsule, name))
    return function


def _is_known(signature: str) -> bool:
    """Whether ``void (char *, char *, int *, ...)`` is the argument list called above; its double may be a typedef."""
    head, _, arguments = signature.rstrip(")").partition("(")
    kinds = tuple(part.replace("*", "").strip() for part in arguments.split(","))
    kinds = tuple("d" if kind == "double" or kind.endswith("_d") else kind for kind in kinds)
    return head.strip() == "void" and arguments.count("*") == len(_SIGNATURE) and kinds == _SIGNATURE


def _address(array: NDArray[np.float64]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
