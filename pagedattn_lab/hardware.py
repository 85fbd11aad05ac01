"""What data sheets say of GPUs, and how long one step of a server takes on one at best: two rooflines.

Chapters 01 to 03, 08 and 10 read their machines here. Source of the model: Williams et al. 2009, "Roofline: an
insightful visual performance model".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
        driver_gib: memory in GiB that the driver reports, as printed in ``driver_source``; ``None`` where we have seen
            no report. It is what a server can count on, and differs by a few hundredths from driver to driver.
        driver_source: where that report stands.

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
    driver_gib: float | None = None
    driver_source: str = ""

    def __post_init__(self) -> None:
        """Refuse a machine that is none."""
        for name in ("gib", "bandwidth", "flops"):
            _above_zero(name, getattr(self, name))
        if self.driver_gib is not None and not 0 < self.driver_gib <= self.gib:
            raise ValueError(
                f"driver_gib is {self.driver_gib!r}: a driver reports no more than the {self.gib} GiB built in"
            )


def _geforce(name: str, gib: float, bandwidth: float, cores: int, gigahertz: float, year: int, **driver: Any) -> GPU:
    """Make a card whose page gives cores and boost clock, but no rate of matrix products: see :data:`GPUS`."""
    return GPU(gib, bandwidth, cores * gigahertz * 4e9, f"NVIDIA GeForce {name}, specifications, {year}", **driver)


_VLLM = "vllm-project/vllm, issue"

GPUS = {
    "A100-40GB": GPU(40, 1.555e12, 312e12, "NVIDIA A100 Tensor Core GPU data sheet, 2021: A100 40GB SXM"),
    "A100-80GB": GPU(80, 2.039e12, 312e12, "NVIDIA A100 Tensor Core GPU data sheet, 2021: A100 80GB SXM"),
    "H100-80GB": GPU(
        80, 3.35e12, 989.5e12, "NVIDIA H100 Tensor Core GPU data sheet, 2023: H100 SXM", 79.19,
        "llm-d-incubation/llm-d-planner, accuracy/results",
    ),
    "H200": GPU(141, 4.8e12, 989.5e12, "NVIDIA H200 Tensor Core GPU data sheet, 2024: H200 SXM"),
    "B200": GPU(180, 8e12, 2250e12, "NVIDIA DGX B200 data sheet, 2024: one of 8 GPUs, B200 SXM"),
    "T4": GPU(
        16, 320e9, 65e12, "NVIDIA T4 Tensor Core GPU data sheet, 2019", 14.58, "datawhalechina/self-llm, issue 162"
    ),
    "A10": GPU(
        24, 600e9, 125e12, "NVIDIA A10 Tensor Core GPU data sheet, 2021", 22.18, "OpenBMB/MiniCPM-V, issue 640"
    ),
    "L4": GPU(24, 300e9, 121e12, "NVIDIA L4 Tensor Core GPU data sheet, 2023"),
    "L40S": GPU(48, 864e9, 362.05e12, "NVIDIA L40S data sheet, 2023"),
    "RTX 3060": _geforce(
        "RTX 3060", 12, 360e9, 3584, 1.78, 2021, driver_gib=11.75, driver_source="Kunhao-Liu/StyleGaussian, issue 12"
    ),
    "RTX 3090": GPU(
        24, 936e9, 71e12, "NVIDIA Ampere GA102 GPU Architecture, white paper, 2021: GeForce RTX 3090", 23.69,
        f"{_VLLM} 2140",
    ),
    "RTX 4060": _geforce("RTX 4060", 8, 272e9, 3072, 2.46, 2023),
    "RTX 4060 Ti 16GB": _geforce("RTX 4060 Ti 16GB", 16, 288e9, 4352, 2.54, 2023),
    "RTX 4070": _geforce("RTX 4070", 12, 504e9, 5888, 2.48, 2023),
    "RTX 4090": GPU(
        24, 1.008e12, 165.2e12, "NVIDIA Ada GPU Architecture, white paper, 2023: GeForce RTX 4090", 23.64,
        "ali-vilab/VGen, issue 104",
    ),
    "RTX 5080": _geforce(
        "RTX 5080", 16, 960e9, 10752, 2.62, 2025, driver_gib=15.48, driver_source=f"{_VLLM} 14452"
    ),
    "RTX 5090": _geforce(
        "RTX 5090", 32, 1.792e12, 21760, 2.41, 2025, driver_gib=31.37, driver_source=f"{_VLLM} 14452"
    ),
    "MI300X": GPU(192, 5.3e12, 1307.4e12, "AMD Instinct MI300X Accelerator data sheet, 2023"),
}  # fmt: skip
"""GPUs by name. The sheets of H100, H200, B200, L4, L40S give FLOP/s with sparsity, which is twice the figure here.

Pages of most GeForce cards give no rate of matrix products. Theirs is computed here: 4 operations per core and clock in
16 bits with sums in 32, which is what the white papers' figures for the largest of their kind come to.
"""

COMPUTE_CAPABILITY = {
    "T4": (7, 5), "A100-40GB": (8, 0), "A100-80GB": (8, 0), "A10": (8, 6), "RTX 3060": (8, 6), "RTX 3090": (8, 6),
    "L4": (8, 9), "L40S": (8, 9), "RTX 4060": (8, 9), "RTX 4060 Ti 16GB": (8, 9), "RTX 4070": (8, 9),
    "RTX 4090": (8, 9), "H100-80GB": (9, 0), "H200": (9, 0), "B200": (10, 0), "RTX 5080": (12, 0), "RTX 5090": (12, 0),
}  # fmt: skip
"""Compute capability of NVIDIA's GPUs, which says what kernels can run: NVIDIA, "CUDA GPU Compute Capability"."""


PCIE_5_X16 = 32e9 * 16 * 128 / 130 / 8
"""Bytes per second, in each direction, over sixteen lanes of PCIe 5.0, by which a GPU reaches host memory: 63 GB/s.

Each lane makes 32 billion transfers of a bit per second, 128 of every 130 of them data: PCI-SIG, "PCI Express Base
Specification Revision 5.0", 2019. NVIDIA's H100 data sheet of 2023 writes 128 GB/s, which is both directions
together, those two bits included. Packets have headers too, so a copy stays below this.
"""


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
