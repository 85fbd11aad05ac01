"""How many bytes a quantised parameter takes: numbers of a few bits, and a scale for each group of them.

Read from a checkpoint's ``quantization_config``, or named as vLLM's ``--quantization`` names it. Embeddings, norms,
routers and encoders stay in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pagedattn_lab.budget.errors import BudgetError


@dataclass(frozen=True)
class Quantization:
    """How the matrices of a model's layers are stored.

    Attributes:
        name: what it is called.
        bits: of one number.
        group_size: numbers that share a scale; 0: a scale for each row or more, too few to count.
        scale_bits: of a scale, and of a zero point where there is one.
        most_bits: of one number with its share of a scale at most, where versions of a method differ.
        experts_only: whether only the experts of mixtures are quantised.
        partial: whether a checkpoint leaves some matrices as they are, so that all might be.

    Example:
        >>> QUANTIZATIONS["mxfp4"].bytes_per_parameter("experts", 2)
        (0.53125, 0.53125)
        >>> QUANTIZATIONS["mxfp4"].bytes_per_parameter("linear", 2)
        (2, 2)
    """

    name: str
    bits: int = 16
    group_size: int = 0
    scale_bits: float = 0
    most_bits: float = 0
    experts_only: bool = False
    partial: bool = False

    def bytes_per_parameter(self, part: str, otherwise: int) -> tuple[float, float]:
        """Give the bytes of one parameter, at least and at most.

        Args:
            part: one of :data:`~pagedattn_lab.budget.parameters.PARTS`.
            otherwise: bytes of one that is not quantised.
        """
        if self.name == "none" or (self.experts_only and part != "experts"):
            return otherwise, otherwise
        least = (self.bits + (self.scale_bits / self.group_size if self.group_size else 0)) / 8
        if self.partial and part != "experts":
            return least, otherwise
        return least, max(least, self.most_bits / 8)


QUANTIZATIONS = {
    "none": Quantization("none"),
    "fp8": Quantization("fp8", 8),
    "int8": Quantization("int8", 8),
    "awq": Quantization("awq", 4, 128, 16 + 4),
    "gptq": Quantization("gptq", 4, 128, 16 + 4),
    "bitsandbytes": Quantization("bitsandbytes", 4, 64, 8 + 32 / 256, most_bits=4 + 32 / 64),
    "mxfp4": Quantization("mxfp4", 4, 32, 8, experts_only=True),
    "nvfp4": Quantization("nvfp4", 4, 16, 8),
}
"""Methods by name.

bitsandbytes' nf4 has a scale for each 64 numbers, in 8 bits with a float32 for 256 of them (double quantisation), or a
float32 each. mxfp4 and nvfp4 have a scale of 8 bits for 32 and 16 numbers: Open Compute Project 2023, "OCP Microscaling
Formats (MX)", and NVIDIA 2025, "Introducing NVFP4".
"""

_SAME = {
    "modelopt": "fp8", "fbgemm_fp8": "fp8", "ptpc_fp8": "fp8", "modelopt_fp4": "nvfp4", "gptq_marlin": "gptq",
    "awq_marlin": "awq", "auto-round": "gptq", "experts_int8": "int8", "gpt_oss_mxfp4": "mxfp4", "bitsandbytes_4bit":
    "bitsandbytes", "bnb": "bitsandbytes",
}  # fmt: skip


def quantization_of(published: Mapping[str, Any] | None, name: str | None = None) -> Quantization:
    """Decide how a model's matrices are stored.

    Args:
        published: a checkpoint's ``quantization_config``.
        name: what was asked for; ``None``: what the checkpoint says.

    Raises:
        BudgetError: a method that is not known here.

    Example:
        >>> quantization_of({"quant_method": "gptq", "bits": 8, "group_size": 32})
        Quantization(name='gptq', bits=8, group_size=32, scale_bits=24, most_bits=0, experts_only=False, partial=False)
    """
    own = dict(published or {})
    method = str(own.get("quant_method", "none")).lower().replace("_tensors", "-tensors")
    if name is not None and _plain(name) != _plain(method):
        return _named(name)
    found = _compressed_tensors(own) if method == "compressed-tensors" else _read(own, method)
    return replace(found, partial=_leaves_matrices(own)) if found.name != "none" and not found.experts_only else found


_WHILE_LOADING = ("fp8", "ptpc_fp8", "fbgemm_fp8", "experts_int8", "bitsandbytes", "bnb", "bitsandbytes_4bit", "none")


def needs_checkpoint(published: Mapping[str, Any] | None, name: str | None) -> bool:
    """Say whether a method asks for a checkpoint other than the model's own: vLLM quantises by few while it loads.

    Example:
        >>> needs_checkpoint(None, "awq"), needs_checkpoint({"quant_method": "awq"}, "awq")
        (True, False)
        >>> needs_checkpoint(None, "fp8")
        False
    """
    own = str((published or {}).get("quant_method", "none"))
    return name is not None and name.lower() not in _WHILE_LOADING and _plain(name) != _plain(own)


_NEVER_QUANTIZED = ("lm_head", "embed", "norm", "gate", "router", "vision", "visual", "projector", "audio", "mtp")


def _leaves_matrices(own: Mapping[str, Any]) -> bool:
    """Say whether a checkpoint names matrices of layers that it leaves in the model's dtype."""
    inner = own.get("quantization") or {}
    lists = (
        own.get("ignore"),
        own.get("modules_to_not_convert"),
        own.get("exclude_modules"),
        inner.get("exclude_modules"),
    )
    left = {str(name) for names in lists for name in names or ()}
    return any(not any(part in name.replace("gate_proj", "") for part in _NEVER_QUANTIZED) for name in left)


def _read(own: Mapping[str, Any], method: str) -> Quantization:
    """Read the settings of one method."""
    found = _named(method)
    if found.name in ("awq", "gptq"):
        bits = int(own.get("bits") or own.get("w_bit") or found.bits)
        group = int(own.get("group_size") or own.get("q_group_size") or found.group_size)
        return Quantization(found.name, bits, max(0, group), 16 + bits)
    if found.name == "bitsandbytes" and own.get("load_in_8bit"):
        return Quantization("bitsandbytes", 8)
    if found.name == "fp8" and (own.get("weight_block_size")):
        rows, columns = own["weight_block_size"]
        return Quantization("fp8", 8, rows * columns, 32)
    if method == "modelopt" and "FP4" in str(own.get("quant_algo") or own.get("quantization", {}).get("quant_algo")):
        return QUANTIZATIONS["nvfp4"]
    return found


def _plain(name: str) -> str:
    return _SAME.get(name.lower(), name.lower())


def _named(name: str) -> Quantization:
    found = QUANTIZATIONS.get(_plain(name))
    if found is None:
        raise BudgetError(
            f"quantization {name!r} is not known here: use one of {', '.join(QUANTIZATIONS)}, or give weights_bytes as "
            "the start-up log prints it"
        )
    return found


def _compressed_tensors(own: Mapping[str, Any]) -> Quantization:
    """Read the first group's weights; a checkpoint with several takes the widest."""
    groups = own.get("config_groups") or {}
    weights = [group["weights"] for group in groups.values() if group.get("weights")]
    if not weights:
        return QUANTIZATIONS["none"]
    widest = max(weights, key=lambda kind: int(kind.get("num_bits", 8)))
    bits, group = int(widest.get("num_bits", 8)), int(widest.get("group_size") or 0)
    if widest.get("type") == "float" and bits == 4:
        return Quantization("compressed-tensors", 4, group or 16, 8)
    zero_point = 0 if widest.get("symmetric", True) else bits
    return Quantization("compressed-tensors", bits, max(0, group), 16 + zero_point if group > 0 else 0)
