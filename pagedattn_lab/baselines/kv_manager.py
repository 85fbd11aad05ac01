"""A manager that reserves one run of blocks per request for its whole life, as servers did before paging (chapter 09).

It takes the place of :class:`pagedattn_lab.kv_manager.KVCacheManager`, so one engine serves the same model with the
same bytes under either. The kernels read through page tables still; here these happen to name blocks in a row.

Source: the baselines "Orca (Max)", "Orca (Pow2)" and "Orca (Oracle)" of Kwon et al. 2023, section 6.1, in whole blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pagedattn_lab.arithmetic import at_least_one, cdiv
from pagedattn_lab.baselines.accounting import Account, num_kv_tokens
from pagedattn_lab.baselines.contiguous import reserve_exactly, reserve_max_length, reserve_power_of_two
from pagedattn_lab.baselines.strip import Buddy, FirstFit, Region
from pagedattn_lab.block_pool import KVCacheBlock
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request

RESERVES: dict[str, tuple[Callable[[int, int, int], int], type[FirstFit] | type[Buddy]]] = {
    "max": (reserve_max_length, FirstFit),
    "pow2": (reserve_power_of_two, Buddy),
    "oracle": (reserve_exactly, Buddy),
}
"""How many slots are reserved, and how a place for them is found."""


class Run(NamedTuple):
    """What one request has of the memory.

    Attributes:
        region: its blocks, counted from 0: block 1 is the first that can be used.
        reserved: slots that it asked for; what its blocks have beyond is rounding.
        needed: slots that it will have used in the end.
    """

    region: Region
    reserved: int
    needed: int


class ContiguousKVCacheManager(KVCacheManager):
    """Gives a request consecutive blocks for all that it may ever hold when it is admitted, and nothing afterwards.

    Nothing is shared and nothing is cached. A request that runs always has room, so none is ever preempted; one that
    waits finds fewer places.

    Args:
        num_blocks: blocks in all, the null block included.
        block_size: tokens per block.
        reserve: ``"max"``: ``max_model_len`` slots, first fit. ``"pow2"``: the prompt and the next power of two of the
            output, in a buddy system. ``"oracle"``: exactly what ``max_tokens`` says, in a buddy system.
        max_model_len: tokens that a request may have in the cache.

    Attributes:
        runs: of each request that holds blocks, by request id.

    Raises:
        ValueError: impossible sizes, or another ``reserve``.

    Example:
        >>> manager = ContiguousKVCacheManager(num_blocks=9, block_size=4, reserve="max", max_model_len=16)
        >>> ada, bo, cy = (Request(name, range(5), max_tokens=4) for name in ("Ada", "Bo", "Cy"))
        >>> for request in (ada, bo):
        ...     _ = manager.allocate_slots(request, 5)
        >>> manager.block_ids("Ada"), manager.allocate_slots(cy, 5)          # 10 tokens fill memory for 32
        ([1, 2, 3, 4], None)
        >>> manager.account()
        Account(token_states=10, reservation=6, internal=16, external=4, free=0, rounding=0)
    """

    def __init__(self, num_blocks: int, block_size: int, reserve: str, max_model_len: int) -> None:
        super().__init__(num_blocks, block_size, enable_prefix_caching=False)
        if reserve not in RESERVES:
            raise ValueError(f"reserve is {reserve!r}: use one of {', '.join(RESERVES)}")
        self.max_model_len = at_least_one("max_model_len", max_model_len)
        self._reserve, strip = RESERVES[reserve]
        self.strip = strip(num_blocks - 1)
        self.runs: dict[str, Run] = {}

    def check_fits(self, request: Request) -> None:
        """Refuse a request that could not be admitted if it were alone.

        Raises:
            ValueError: it may become longer than ``max_model_len``, or no run is long enough; the message says how many
                blocks it needs. Or nobody says how long it may become, and less than ``max_model_len`` is reserved.
        """
        name, num_blocks = f"request {request.request_id!r}", self.strip.rounded(self._num_blocks(request))
        if num_blocks > self.strip.longest_possible:
            raise ValueError(
                f"{name} needs {num_blocks} blocks of {self.block_pool.block_size} tokens in a row, and the longest "
                f"run has {self.strip.longest_possible}: give more memory or shorten it"
            )

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        computed_blocks: Sequence[KVCacheBlock] = (),
        num_external_computed_tokens: int = 0,
    ) -> list[KVCacheBlock] | None:
        """Reserve a run for a request that has none, then use as many of its slots as it computes tokens next.

        Returns:
            The blocks of the run if it was admitted, later none; ``None`` if no run is free that is long enough. Then
            nothing changed.

        Raises:
            ValueError: as for :meth:`check_fits` and :meth:`pagedattn_lab.kv_manager.KVCacheManager.allocate_slots`, or
                tokens beyond what was reserved. Nothing changed.
        """
        name, num_tokens = request.request_id, request.num_computed_tokens + num_new_tokens
        run = self.runs.get(name)
        reserved, needed = self._lengths(request) if run is None else (run.reserved, run.needed)
        if num_tokens > reserved:
            raise ValueError(f"request {name!r} computes {num_tokens} tokens, and {reserved} slots are reserved for it")
        if run is not None:
            return super().allocate_slots(request, num_new_tokens, computed_blocks)  # its table has the blocks already
        if num_new_tokens < 1:
            raise ValueError(f"num_new_tokens is {num_new_tokens}: a request computes at least 1 token")
        self._check(request, None, computed_blocks, num_external_computed_tokens)
        self.check_fits(request)

        region = self.strip.allocate(self._num_blocks(request))
        if region is None:
            return None
        self.runs[name] = Run(region, reserved, needed)
        blocks = self.block_pool.blocks[1 + region.start : 1 + region.start + region.size]
        self.block_pool.touch(blocks)
        table = self._admit(request, ())
        table.blocks, table.num_tokens = list(blocks), num_new_tokens
        return blocks

    def fork(self, request: Request, request_id: str) -> Request:
        """Refuse: what two requests share cannot lie in a row in both.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"request {request.request_id!r} cannot be forked: contiguous memory shares nothing")

    def account(self, next_request: Request | None = None) -> Account:
        """Say where every slot is.

        Args:
            next_request: who waits; gaps too short for it are external waste. ``None``: every gap is free.

        Raises:
            AssertionError: the entries do not add up to the memory.
        """
        block_size, runs = self.block_pool.block_size, self.runs.values()
        num_tokens = sum(table.num_tokens for table in self.tables.values())
        size = 0 if next_request is None else self.strip.rounded(self._num_blocks(next_request))
        unusable = self.strip.unusable(size) * block_size
        rounding = sum(run.region.size * block_size - run.reserved for run in runs)
        return Account(
            token_states=num_tokens,
            reservation=sum(run.needed for run in runs) - num_tokens,
            internal=sum(run.reserved - run.needed for run in runs),
            external=unusable + rounding + block_size,  # the null block is nobody's
            free=self.block_pool.num_free_blocks * block_size - unusable,
            rounding=rounding,
        ).check(self.block_pool.num_blocks * block_size)

    def _lengths(self, request: Request) -> tuple[int, int]:
        """How many slots are reserved for a request, and how many it will use."""
        prompt_len, output_len, limit = request.num_prompt_tokens, request.max_tokens, self.max_model_len
        if output_len is None:
            if self._reserve is not reserve_max_length:
                raise ValueError(f"request {request.request_id!r} has no max_tokens to reserve by: give it one")
            output_len = max(1, limit + 1 - prompt_len)  # it may go on to the end
        needed, reserved = num_kv_tokens(prompt_len, output_len), self._reserve(prompt_len, output_len, limit)
        if needed > min(reserved, limit):
            raise ValueError(
                f"request {request.request_id!r} may come to {needed} tokens in the cache, and {min(reserved, limit)} "
                "are the most it may have: raise max_model_len or shorten it"
            )
        return reserved, needed

    def _num_blocks(self, request: Request) -> int:
        return cdiv(self._lengths(request)[0], self.block_pool.block_size)

    def _release(self, name: str) -> None:
        super()._release(name)
        run = self.runs.pop(name, None)
        if run is not None:
            self.strip.release(run.region)
