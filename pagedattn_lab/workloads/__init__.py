"""Requests to serve: how long they are, when they arrive, and what logs of real services say of both.

Synthetic lengths come without end, from a seed (:mod:`~pagedattn_lab.workloads.lengths`); they arrive all at once or by
chance (:mod:`~pagedattn_lab.workloads.arrivals`); logs are read from a file
(:mod:`~pagedattn_lab.workloads.request_logs`). Prompts that begin alike are a matter of their own
(:mod:`pagedattn_lab.workloads.conversations`).
"""

from __future__ import annotations

from pagedattn_lab.workloads.arrivals import Fit, TraceRequest, arrive
from pagedattn_lab.workloads.lengths import (
    WORKLOADS,
    alpaca,
    azure_code,
    azure_conv,
    from_quantiles,
    lognormal,
    sharegpt,
)
from pagedattn_lab.workloads.request_logs import (
    MalformedTraceError,
    load_azure_csv,
    load_mooncake_jsonl,
    load_trace,
)

__all__ = [
    "WORKLOADS",
    "Fit",
    "MalformedTraceError",
    "TraceRequest",
    "alpaca",
    "arrive",
    "azure_code",
    "azure_conv",
    "from_quantiles",
    "load_azure_csv",
    "load_mooncake_jsonl",
    "load_trace",
    "lognormal",
    "sharegpt",
]
