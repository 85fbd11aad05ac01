"""What the paper reports: every figure of Kwon et al. 2023 that this book compares with, each in one place.

Source: Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with PagedAttention",
arXiv 2309.06180. Its baselines are its authors' own re-implementation of Orca over a buddy allocator.
"""

from __future__ import annotations

from typing import NamedTuple

from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.hardware import GPUS, StepTime
from pagedattn_lab.kv_shape import KVShape

NAMES = {"max": "Orca (Max)", "pow2": "Orca (Pow2)", "oracle": "Orca (Oracle)", "paged": "vLLM"}
"""What section 6.1 calls the four that it compares."""


class Setting(NamedTuple):
    """A row of Table 1.

    Attributes:
        model: its name.
        shape: of its KV cache.
        gib: memory for the KV cache, as the table rounds it. Its GB are GiB, or the slots would not come out.
        slots: how many tokens the table says that holds, rounded to hundreds.
    """

    model: str
    shape: KVShape
    gib: int
    slots: int


TABLE_1 = (
    Setting("OPT-13B", KVShape(num_layers=40, num_kv_heads=40, head_dim=128, dtype="float16"), 12, 15_700),
    Setting("OPT-66B", KVShape(num_layers=64, num_kv_heads=72, head_dim=128, dtype="float16"), 21, 9_700),
    Setting("OPT-175B", KVShape(num_layers=96, num_kv_heads=96, head_dim=128, dtype="float16"), 264, 60_100),
)
"""Models, their memory for the KV cache and what it holds: Table 1; shapes from Zhang et al. 2022, "OPT", Table 1."""

OPT_13B = TABLE_1[0].shape
"""The model of Fig. 2 and 13: 800 KiB of keys and values per token (section 3)."""

PAPER_BUDGET = TABLE_1[0].gib * GIB
"""Bytes of KV memory for OPT-13B: Table 1."""

A100_OPT_13B = StepTime.roofline(OPT_13B, num_parameters=13e9, gpu=GPUS["A100-40GB"])
"""A step of that model on its machine, one A100 of 40 GB (Table 1), in our model of time: the paper reports none."""

FIG_2 = {
    "max": {"token_states": 0.204, "reservation": 0.133, "internal": 0.573, "external": 0.089},
    "pow2": {"token_states": 0.268, "reservation": 0.179, "internal": 0.136, "external": 0.416},
    "oracle": {"token_states": 0.382, "reservation": 0.252, "internal": 0.0, "external": 0.366},
    "paged": {"token_states": 0.963},
}
"""Shares of KV memory: Fig. 2. Its "external" is "external fragmentation and others"."""

FIG_11 = {"sharegpt": (161.31, 337.99), "alpaca": (19.31, 58.45)}
"""Mean tokens in prompts and in outputs, by workload: Fig. 11."""

FIG_13 = {
    "sharegpt": {"max": 7.00, "pow2": 9.81, "oracle": 13.62, "paged": 30.42},
    "alpaca": {"max": 7.00, "pow2": 43.24, "oracle": 72.75, "paged": 132.44},
}
"""Mean number of batched requests, OPT-13B: Fig. 13."""

FIG_13_RATES = {"sharegpt": 2.0, "alpaca": 30.0}
"""Requests per second at which Fig. 13 was measured."""

SUSTAINED_RATES = {"max": (2.7, 8), "oracle": (1.7, 2.7)}
"""How many times as many requests per second vLLM sustained at similar latency on ShareGPT, least and most over the
models of Table 1: section 6.2."""

FIG_15 = {
    "parallel sampling": {
        "alpaca": {2: (0.0609, 0.0609), 4: (0.0853, 0.0853), 6: (0.0979, 0.0979)},
        "sharegpt": {2: (0.162, 0.305), 4: (0.162, 0.305), 6: (0.162, 0.305)},
    },
    "beam search": {
        "alpaca": {2: (0.3756, 0.3756), 4: (0.5313, 0.5313), 6: (0.5516, 0.5516)},
        "sharegpt": {2: (0.443, 0.663), 4: (0.443, 0.663), 6: (0.443, 0.663)},
    },
}
"""Least and most blocks saved, by number of outputs or beams: section 6.3 and Fig. 15. For ShareGPT the text gives one
range for all widths."""
