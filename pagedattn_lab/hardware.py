"""What data sheets say of GPUs, and how long one step of a server takes on one at best: two rooflines.

Chapters 01 to 03 read their machines here. Source of the model: Williams et al. 2009, "Roofline: an insightful visual
performance model".
"""

from __future__ import annotations

from dataclasses import dataclass

from pagedattn_lab.kv_shape import KVShape


def _above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value!r}: give a number above 0")


@dataclass(frozen=True)
class GPU:
    """One GPU, as its maker describes it.

    Attributes:
        gib: memory in GiB. Data sheets write GB, but memory is built in powers of two; a driver reports
            somewhat less than this, and keeps the rest for itself.
        bandwidth: bytes per second from that memory.
        flops: floating-point operations per second of matrix products in 16 bits with sums in 32, without sparsity.
        source: title and year of the data sheet.

    Raises:
        ValueError: a number that is not above 0.

    Example:
        How many operations a GPU can do while it reads one byte:

        >>> a100 = GPUS["A100-80GB"]
        >>> round(a100.flops / a100.bandwidth)
        153
    """

    gib: float
    bandwidth: float
    flops: float
    source: str

    def __post_init__(self) -> None:
        """Refuse a machine that is none."""
        for name in ("gib", "bandwidth", "flops"):
            _above_zero(name, getattr(self, name))


GPUS = {
    "A100-40GB": GPU(40, 1.555e12, 312e12, "NVIDIA A100 Tensor Core GPU data sheet, 2021: A100 40GB SXM"),
    "A100-80GB": GPU(80, 2.039e12, 312e12, "NVIDIA A100 Tensor Core GPU data sheet, 2021: A100 80GB SXM"),
    "H100-80GB": GPU(80, 3.35e12, 989.5e12, "NVIDIA H100 Tensor Core GPU data sheet, 2023: H100 SXM"),
    "H200": GPU(141, 4.8e12, 989.5e12, "NVIDIA H200 Tensor Core GPU data sheet, 2024: H200 SXM"),
    "L4": GPU(24, 300e9, 121e12, "NVIDIA L4 Tensor Core GPU data sheet, 2023"),
    "RTX 4090": GPU(24, 1.008e12, 165.2e12, "NVIDIA Ada GPU Architecture, white paper, 2023: GeForce RTX 4090"),
    "MI300X": GPU(192, 5.3e12, 1307.4e12, "AMD Instinct MI300X Accelerator data sheet, 2023"),
}
"""GPUs by name. The sheets of H100, H200 and L4 give FLOP/s with sparsity, which is twice the figure here."""


@dataclass(frozen=True)
class StepTime:
    """How long one step takes at best: a roofline for each of two kinds of work that follow one another in every layer.

    The linear layers read the weights once per step and spend two floating-point operations per parameter on each token
    that is computed, whichever takes longer. Attention reads every cached token once; what it computes is left out.

    Attributes:
        weights: seconds to read the weights.
        compute: seconds to compute one token.
        read: seconds to read one cached token.

    Raises:
        ValueError: no time for the weights, or a negative time.

    Example:
        OPT-13B decodes 7 sequences of 450 tokens each:

        >>> opt_13b = KVShape(num_layers=40, num_kv_heads=40, head_dim=128, dtype="float16")
        >>> step = StepTime.roofline(opt_13b, num_parameters=13e9, gpu=GPUS["A100-40GB"])
        >>> round(1000 * step.seconds(7 * 450, num_computed=7), 1)
        18.4
    """

    weights: float
    compute: float
    read: float

    def __post_init__(self) -> None:
        """Refuse a machine that needs no time."""
        if not (self.weights > 0 and self.compute >= 0 and self.read >= 0):
            raise ValueError(f"{self}: a step needs time to read the weights, and no time is negative")

    def seconds(self, num_cached: int, num_computed: int) -> float:
        """Seconds for one step that computes and reads so many tokens."""
        return max(self.weights, num_computed * self.compute) + num_cached * self.read

    @classmethod
    def roofline(cls, shape: KVShape, num_parameters: float, gpu: GPU, weight_bytes: float = 2) -> StepTime:
        """Make one from a model and a data sheet.

        Args:
            shape: of the model's cache.
            num_parameters: parameters of the model.
            gpu: the machine, one of :data:`GPUS` or your own.
            weight_bytes: bytes per parameter.

        Raises:
            ValueError: a number that is not above 0.
        """
        _above_zero("num_parameters", num_parameters)
        _above_zero("weight_bytes", weight_bytes)
        return cls(
            weights=num_parameters * weight_bytes / gpu.bandwidth,
            compute=2 * num_parameters / gpu.flops,
            read=shape.bytes_per_token / gpu.bandwidth,
        )
