"""C text of the SIMD vectors that all generated kernels compute with."""

from __future__ import annotations

import math

from ctrlnet.kernels.code.precision import Precision
from ctrlnet.kernels.code.templates import template

__all__ = ["simd_text"]


def simd_text(precision: Precision) -> str:
    """Return the C text of the SIMD vectors and their functions."""
    single = precision.single
    degree = 8 if single else 14
    taylor = "\n".join(f"    p = p * r + (T){1 / math.factorial(k)!r};" for k in range(degree - 1, 1, -1))
    fill = {
        "REAL": "float" if single else "double",
        "INTEGER": "int32_t" if single else "int64_t",
        "LANES": str(precision.lanes),
        "MAGIC": "12582912.0f" if single else "6755399441055744.0",
        "LN2_HIGH": "0x1.62e4p-1" if single else "0x1.62e42fee00000p-1",
        "LN2_LOW": "0x1.7f7d1cf79abcap-20" if single else "0x1.a39ef35793c76p-33",
        "MANTISSA": "23" if single else "52",
        "BIAS": "127" if single else "1023",
        "EXP_MAX": "87.0" if single else "708.0",
        "TAYLOR_TOP": repr(1 / math.factorial(degree)),
        "TAYLOR": taylor,
    }
    return template("code", "simd.h.in", **fill)
