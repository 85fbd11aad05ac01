"""What this machine will run natively, in Triton's interpreter, or not at all (chapter 00)."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

PACKAGES = ("torch", "triton", "transformers", "numpy", "jupyterlab", "ipywidgets", "matplotlib", "nbval")


@dataclass(frozen=True)
class Check:
    """One thing the book needs: whether it is there, and what was found or what to do."""

    name: str
    ok: bool
    detail: str


def versions() -> dict[str, str | None]:
    """Give the versions of Python and of the packages the book uses; ``None`` for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def triton_mode() -> str:
    """Say how Triton kernels run here: ``"native"``, ``"interpreted"``, or ``"unavailable"``."""
    try:
        from pagedattn_lab.attention.launch import runs_natively
    except ImportError:
        return "unavailable"
    return "native" if runs_natively() else "interpreted"


def kernel_error() -> tuple[float, float]:
    """Compare the Triton kernel with the reference on a small ragged batch with NaN in every slot not to be read.

    Returns:
        The largest difference, and the largest that float32 rounding explains.
    """
    import torch

    from pagedattn_lab.attention import paged_attention
    from pagedattn_lab.attention.tolerance import tolerance

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    block_size, heads, kv_heads, head_dim, seq_lens = 4, 4, 2, 80, [9, 1, 6]
    caches = torch.full((2, 8, block_size, kv_heads, head_dim), float("nan"))
    tables = torch.tensor([[5, 2, 7], [3, -1, -1], [6, 1, -1]], dtype=torch.int32)
    for row, seq_len in zip(tables.tolist(), seq_lens, strict=True):
        for position in range(seq_len):
            slot = row[position // block_size], position % block_size
            caches[:, slot[0], slot[1]] = torch.randn(2, kv_heads, head_dim, generator=generator)
    query = torch.randn(len(seq_lens), heads, head_dim, generator=generator)
    arguments = [tensor.to(device) for tensor in (query, *caches, tables, torch.tensor(seq_lens, dtype=torch.int32))]
    outputs = [paged_attention(*arguments, backend=backend) for backend in ("triton", "reference")]
    difference = (outputs[0] - outputs[1]).abs().max().item()
    return difference, tolerance(query, *caches.nan_to_num(), num_tokens=max(seq_lens))


def _kernel_check() -> Check:
    try:
        difference, allowed = kernel_error()
    except Exception as error:  # a kernel that cannot run is what this check is there to find
        return Check("kernel", False, f"it raised {type(error).__name__}: {' '.join(str(error).split())}")
    agrees = difference <= allowed  # false for NaN as well
    return Check("kernel", agrees, f"largest difference {difference:.1e}, {allowed:.1e} allowed")


def _model_check() -> Check:
    from pagedattn_lab import models

    try:
        damage = models.corrupted_file()
    except models.ModelLoadError as problem:  # its sentence says what to do
        return Check("default model", False, str(problem))
    return Check(
        "default model", not damage, f"{damage}; run make setup" if damage else "complete, every file as it was saved"
    )


def _cache_directory() -> str | None:
    from pagedattn_lab import models

    try:
        return str(models.cache_directory())
    except models.ModelLoadError:  # reported with the model
        return None


def _cpu(num_threads: int) -> str:
    return f"CPU, {num_threads} thread{'' if num_threads == 1 else 's'}"


def examine() -> dict[str, Any]:
    """Run every check.

    Returns:
        A mapping with ``ok`` (will the book run?), ``checks``, ``versions``, ``device``, ``triton``,
        ``model_present`` and ``cache_directory`` (``None`` if there is none), all of which JSON can hold.
    """
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu(torch.get_num_threads())
    found = versions()
    missing = [name for name, version in found.items() if version is None and name != "triton"]
    checks = [
        Check(
            "packages", not missing, f"not installed: {', '.join(missing)}; run make setup" if missing else "all here"
        )
    ]
    mode = triton_mode()
    explanation = {
        "native": "kernels are compiled for this machine's GPU",
        "interpreted": "no GPU: kernels run in Triton's interpreter, exact and slow",
        "unavailable": "no Triton for this platform: the kernel chapter needs Linux (WSL and Colab count)",
    }
    checks.append(Check("triton", mode != "unavailable", explanation[mode]))
    model = _model_check()
    checks.append(model)
    if mode != "unavailable":
        checks.append(_kernel_check())
    return {
        "ok": all(check.ok for check in checks),
        "checks": [asdict(check) for check in checks],
        "versions": found,
        "device": device,
        "triton": mode,
        "model_present": model.ok,
        "cache_directory": _cache_directory(),
    }
