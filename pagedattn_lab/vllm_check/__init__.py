"""Hold what this book computes against a running server: its blocks, and what a workload does to it (chapter 10).

:mod:`~pagedattn_lab.vllm_check.client` asks the server, :mod:`~pagedattn_lab.vllm_check.server` reads what it says of
itself, :mod:`~pagedattn_lab.vllm_check.workload` makes what is sent, :mod:`~pagedattn_lab.vllm_check.predict` computes
what should come of it, without a model, and :mod:`~pagedattn_lab.vllm_check.report` sets both side by side.
"""

from __future__ import annotations
