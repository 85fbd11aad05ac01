"""What Triton is made of, to see that a launch leaves it as it was."""

from __future__ import annotations

import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction


def attributes() -> dict[tuple[object, str], object]:
    """Everything that an interpreted launch exchanges."""
    owners = (tl, tl.core, tl.math, tl.standard, tl.random, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)
    owners += (JITFunction, interpreter.InterpreterBuilder)
    return {(owner, name): getattr(owner, name) for owner in owners for name in dir(owner) if name != "__dict__"}
