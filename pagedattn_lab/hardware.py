"""How long one step of a server takes at best, from a model's size and a data sheet: two rooflines (chapter 02).

Source: Williams et al. 2009, "Roofline: an insightful visual performance model".
"""

from __future__ import annotations

from dataclasses import dataclass

from pagedattn_lab.kv_shape import KVShape

OPT_13B = KVShape(num_layers=40, num_kv_heads=40, head_dim=128, dtype="float16")
"""The model of the paper's Fig. 2 and 13 (Zhang et al. 2022): 800 KiB of keys and values per token."""


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

        >>> step = StepTime.roofline(OPT_13B, num_parameters=13e9, bandwidth=1.555e12, flops=312e12)
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
    def roofline(
        cls, shape: KVShape, num_parameters: float, bandwidth: float, flops: float, weight_bytes: float = 2
    ) -> StepTime:
        """Make one from a model and a data sheet.

        Args:
            shape: of the model's cache.
            num_parameters: parameters of the model.
            bandwidth: bytes per second from memory.
            flops: floating-point operations per second.
            weight_bytes: bytes per parameter.

        Raises:
            ValueError: a number that is not above 0.
        """
        for name, value in (
            ("num_parameters", num_parameters),
            ("bandwidth", bandwidth),
            ("flops", flops),
            ("weight_bytes", weight_bytes),
        ):
            if not value > 0:
                raise ValueError(f"{name} is {value!r}: give a number above 0")
        return cls(
            weights=num_parameters * weight_bytes / bandwidth,
            compute=2 * num_parameters / flops,
            read=shape.bytes_per_token / bandwidth,
        )


A100_OPT_13B = StepTime.roofline(OPT_13B, num_parameters=13e9, bandwidth=1.555e12, flops=312e12)
"""The paper's machine for this model: one A100 of 40 GB (NVIDIA's data sheet: 1,555 GB/s, 312 TFLOPS in fp16)."""
