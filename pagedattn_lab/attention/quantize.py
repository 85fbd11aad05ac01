"""Keys and values in 8 bits: a number is a scale times a small number (chapter 08).

The small numbers are float8_e4m3fn (4 bits of exponent, 3 of mantissa, up to 448) or int8 (-127 to 127). What is read
back is off by at most

* float8: a sixteenth of each element, half of the last bit of its mantissa; for elements below ``2**-6`` scales, whose
  exponent cannot fall further, ``2**-10`` scales;
* int8: half a scale, whatever the element.

Source: Micikevicius et al. 2022, arXiv 2209.05433, for the format; scales per token and head as in vLLM's
``fp8_per_token_head`` and ``int8_per_token_head``.
"""

from __future__ import annotations

import torch

LARGEST = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
"""The largest small number of each dtype; int8's -128 stays unused, so that a number and its negative look alike."""

SMALLEST_SCALE = torch.finfo(torch.float32).tiny
"""Of a row of zeros, which it leaves zeros, and of one so small that the quotient would lose bits, or be 0."""


def token_head_scales(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Give each token and head the scale under which its largest element becomes the largest small number.

    Args:
        rows: ``[num_tokens, num_kv_heads, head_dim]``, keys or values.
        dtype: float8_e4m3fn or int8.

    Returns:
        ``[num_tokens, num_kv_heads]`` float32, never 0; NaN for a row that holds a NaN, so that it reads back as NaN.

    Example:
        >>> rows = torch.tensor([[[1.0, -254.0]], [[0.0, 0.0]]])
        >>> token_head_scales(rows, torch.int8)[0]
        tensor([2.])
    """
    return (rows.float().abs().amax(dim=-1) / LARGEST[dtype]).clamp(min=SMALLEST_SCALE)


def quantize(rows: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Divide by a scale and round to the nearest small number, ties to even; what is too large becomes the largest.

    Args:
        rows: numbers of any floating-point dtype; the arithmetic is float32.
        scale: float32, of a shape that broadcasts against ``rows``.
        dtype: float8_e4m3fn or int8.

    Returns:
        Shape of ``rows``, dtype ``dtype``. A NaN stays one in float8_e4m3fn; int8 has none.

    Example:
        >>> quantize(torch.tensor([1.0, 3.0, 5.0, 1000.0]), torch.tensor(2.0), torch.int8)
        tensor([  0,   2,   2, 127], dtype=torch.int8)
    """
    largest = LARGEST[dtype]
    # Clamped first: a cast wraps what is past int8's range, and older torch made NaN of what is past float8's.
    small = (rows.float() / scale).clamp(-largest, largest)
    return (small.round() if dtype == torch.int8 else small).to(dtype)


def triton_has_float8(device: torch.device | None = None) -> bool:
    """Say whether Triton converts float8_e4m3fn on a GPU, by default the current one.

    On NVIDIA it does from compute capability 8.9 on. On AMD it does everywhere, if only by many instructions: gfx942
    converts to float8_e4m3fnuz by one, a format of another bias whose largest number is 240, and vLLM keeps its cache
    in that there.
    """
    return bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= (8, 9)
