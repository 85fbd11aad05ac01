"""PagedAttention, from first principles: the library behind the book.

Importing this package is cheap: a name below loads the module that holds it when it is first used (PEP 562), and torch
only if that module needs it.

Example:
    >>> from pagedattn_lab import BlockPool, BlockTable
    >>> table = BlockTable(BlockPool(num_blocks=8, block_size=16))
    >>> len(table.append_tokens(20))
    2
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pagedattn_lab.attention import paged_attention
    from pagedattn_lab.attention.metadata import AttentionMetadata, attention_metadata
    from pagedattn_lab.attention.tolerance import tolerance
    from pagedattn_lab.block_pool import BlockPool, FreeBlockQueue, KVCacheBlock, NoFreeBlocksError
    from pagedattn_lab.block_table import BlockTable, take_copies
    from pagedattn_lab.budget.plan import plan
    from pagedattn_lab.budget.result import Budget
    from pagedattn_lab.engine.beam_search import beam_search
    from pagedattn_lab.engine.core import EngineCore
    from pagedattn_lab.engine.llm_engine import LLMEngine
    from pagedattn_lab.engine.sampling import generate_greedily, sample
    from pagedattn_lab.engine.sampling_params import SamplingParams
    from pagedattn_lab.engine.scheduler import Scheduler
    from pagedattn_lab.kv_cache import PagedKVCache
    from pagedattn_lab.kv_groups import GroupedKVCacheManager
    from pagedattn_lab.kv_manager import KVCacheManager
    from pagedattn_lab.kv_shape import KVShape
    from pagedattn_lab.model_runner import ModelRunner
    from pagedattn_lab.models.support import UnsupportedModelError
    from pagedattn_lab.prefix_cache import HashIndex
    from pagedattn_lab.radix_tree import RadixTree
    from pagedattn_lab.recorder import Recorder
    from pagedattn_lab.request import Request, RequestStatus
    from pagedattn_lab.viz.lesson import Lesson
    from pagedattn_lab.viz.player import Player

__version__ = "0.1.0"

_HOMES = {
    "attention": ("paged_attention",),
    "attention.metadata": ("AttentionMetadata", "attention_metadata"),
    "attention.tolerance": ("tolerance",),
    "block_pool": ("BlockPool", "FreeBlockQueue", "KVCacheBlock", "NoFreeBlocksError"),
    "block_table": ("BlockTable", "take_copies"),
    "budget.plan": ("plan",),
    "budget.result": ("Budget",),
    "engine.beam_search": ("beam_search",),
    "engine.core": ("EngineCore",),
    "engine.llm_engine": ("LLMEngine",),
    "engine.sampling": ("generate_greedily", "sample"),
    "engine.sampling_params": ("SamplingParams",),
    "engine.scheduler": ("Scheduler",),
    "kv_cache": ("PagedKVCache",),
    "kv_groups": ("GroupedKVCacheManager",),
    "kv_manager": ("KVCacheManager",),
    "kv_shape": ("KVShape",),
    "model_runner": ("ModelRunner",),
    "models.support": ("UnsupportedModelError",),
    "prefix_cache": ("HashIndex",),
    "radix_tree": ("RadixTree",),
    "recorder": ("Recorder",),
    "request": ("Request", "RequestStatus"),
    "viz.lesson": ("Lesson",),
    "viz.player": ("Player",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    """Load what is exported when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Not importlib.import_module: what that loads, python -X importtime does not show.
    module = __import__(f"{__name__}.{_MODULES[name]}", fromlist=(name,))
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
