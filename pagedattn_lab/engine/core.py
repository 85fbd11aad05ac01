"""The one loop: find blocks, compute a step, let a client choose, go on (chapters 05, 06 and 09).

A prompt reaches the kernel in one way only::

    Request -> KVCacheManager -> BlockTable -> attention_metadata -> ModelRunner -> layer -> backend

What differs between greedy decoding, sampling and beam search is the choice that follows a step, so that is all that a
client brings: :func:`~pagedattn_lab.engine.sampling.generate_greedily`, :func:`~pagedattn_lab.engine.sampling.sample`,
:func:`~pagedattn_lab.engine.beam_search.beam_search`.

Source: ``EngineCore.step`` in vLLM's ``vllm/v1/engine/core.py``, release 0.33.0, which schedules, executes and updates
in this order. Here every request runs in every step. Which ones should is a scheduler's choice: chapter 09, in
preparation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import NamedTuple

import torch

from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.block_pool import NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.prefix_cache import PrefixIndex
from pagedattn_lab.request import Request, RequestStatus


class Choice(NamedTuple):
    """How one request goes on after a step.

    Attributes:
        parent: index, among those of the step, of the request that is continued.
        token: what it is continued with.
    """

    parent: int
    token: int


Choose = Callable[[Sequence[Request], torch.Tensor], Sequence[Choice]]
"""A client: from the requests of a step and ``[num_seqs, vocab_size]`` logits that follow their last tokens to what
goes on. A request may go on several times. One that does not go on has ended: its last token and its status are the
client's to set, or else the status becomes ``FINISHED_ABORTED``."""

OnStep = Callable[[Sequence[BlockTable], Sequence[int], int], None]
"""Called at every step but the first, once blocks have been found for its tokens and before they are computed: with the
page tables of the step, for each the index of the one that it continues from the step before, and how many blocks are
copied before anything is written."""


class EngineCore:
    """A model runner, and the one manager that hands its blocks out.

    Args:
        runner: the model and its cache. Give it to one engine at a time: two would hand out the same blocks.
        enable_prefix_caching: whether full blocks are remembered after, and while, they are used.
        index: where cached blocks are looked up, as for :class:`pagedattn_lab.kv_manager.KVCacheManager`.

    Attributes:
        manager: the blocks; it lives as long as the engine, and so does its prefix cache.

    Raises:
        ValueError: an index that does not fit.

    Example:
        Two requests go on with token 7 once, and then end:

        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> engine = EngineCore(ModelRunner(LlamaForCausalLM(config), num_blocks=20, block_size=4))
        >>> requests = [Request("Ada", [3, 4, 5]), Request("Bo", [6])]
        >>> def choose(running, logits):
        ...     return [Choice(i, 7) for i, request in enumerate(running) if not request.num_output_tokens]
        >>> engine.run(requests, choose)
        >>> [request.token_ids for request in requests], engine.manager.block_pool.num_used_blocks
        ([[3, 4, 5, 7], [6, 7]], 0)
    """

    def __init__(
        self, runner: ModelRunner, *, enable_prefix_caching: bool = True, index: PrefixIndex | None = None
    ) -> None:
        self.runner = runner
        cache = runner.cache
        self._num_forks = 0  # they give forks their names
        self._is_running = False
        self.manager = KVCacheManager(cache.num_blocks, cache.block_size, enable_prefix_caching, index)

    def run(self, requests: Sequence[Request], choose: Choose, on_step: OnStep | None = None) -> None:
        """Take requests to their end, all in one batch, which shrinks and grows as the client chooses.

        Requests that begin alike share blocks, even if they start in the same step. Every block has been given back
        when this ends, however it ends; those with a hash stay in the prefix cache.

        Args:
            requests: without blocks. Their tokens grow.
            choose: says how each goes on.
            on_step: is told of every step but the first.

        Raises:
            NoFreeBlocksError: blocks ran out.
            ValueError: one name given to two requests, or to one that holds blocks already; a choice of a request that
                is not there, or of what is no token.
            RuntimeError: called from within a run, by a client or by ``on_step``.
        """
        if self._is_running:
            raise RuntimeError(
                "a run is under way: blocks of its step are known and not computed yet; let it end first"
            )
        running: list[Request] = list(requests)
        parents: list[int] | None = None
        names = [request.request_id for request in running]
        taken = self.manager.tables.keys() & set(names)
        if len(set(names)) < len(names) or taken:
            raise ValueError(
                f"requests {names} and those that hold blocks already, {list(self.manager.tables)}, share a name: "
                "give every request its own"
            )
        for request in running:
            request.status = RequestStatus.RUNNING
        self._is_running = True
        try:
            while running:
                logits = self._step(running, parents, on_step)
                parents = self._go_on(running, choose(tuple(running), logits))
        finally:
            for request in running:  # empty unless something failed: then what the step was to write is not there
                first = request.num_computed_tokens // self.manager.block_pool.block_size
                self.manager.evict_blocks(self.manager.block_ids(request.request_id)[first:])
                self._end(request)
            self._is_running = False

    def _step(self, running: Sequence[Request], parents: Sequence[int] | None, on_step: OnStep | None) -> torch.Tensor:
        """Compute every token that has not been computed; give ``[num_seqs, vocab_size]`` logits."""
        for request in running:
            self._allocate(request)
        tables = [self.manager.tables[request.request_id] for request in running]
        query_lens = [request.num_tokens - request.num_computed_tokens for request in running]
        metadata = attention_metadata(tables, query_lens, self.runner.model.device)
        if on_step is not None and parents is not None:
            num_copied = sum(table.pending_copy is not None for table in tables)
            on_step(tuple(tables), tuple(parents), num_copied)
        token_ids = [token for request in running for token in request.token_ids[request.num_computed_tokens :]]
        logits = self.runner.execute(token_ids, metadata)
        for request in running:
            request.num_computed_tokens = request.num_tokens
        return logits

    def _allocate(self, request: Request) -> None:
        """Find blocks for all tokens of a request that have not been computed, and count hits as computed."""
        manager = self.manager
        blocks, num_computed = [], request.num_computed_tokens
        if request.request_id not in manager.tables:
            blocks, num_computed = manager.get_computed_blocks(request)
        num_new_tokens = request.num_tokens - num_computed
        if manager.allocate_slots(request, num_new_tokens, blocks) is None:
            raise NoFreeBlocksError(
                f"request {request.request_id!r} needs blocks for {num_new_tokens} more tokens, and "
                f"{manager.block_pool.num_free_blocks} blocks are free"
            )
        request.num_computed_tokens = num_computed

    def _go_on(self, running: list[Request], choices: Sequence[Choice]) -> list[int]:
        """Continue requests as chosen: the first that continues one takes it over, others fork it, the rest end.

        Returns:
            For each that goes on, the index of the one that it continues.
        """
        before, taken = list(running), set()
        # Plain numbers, checked before anything changes; a tensor as an index would be a parent of its own each time.
        plain = [(index(parent), index(token)) for parent, token in choices]
        for parent, _ in plain:
            if not 0 <= parent < len(before):
                raise ValueError(f"a choice continues request {parent} of {len(before)}: give an index among them")
        children: list[Request] = []
        for parent, _ in plain:
            request = before[parent]
            if parent in taken:
                request = self.manager.fork(request, self._name_of_fork(request))
                running.append(request)  # whatever happens next, its blocks will be given back
            taken.add(parent)
            children.append(request)
        for place, request in enumerate(before):
            if place not in taken:
                self._end(request)
        running[:] = children
        for request, (_, token) in zip(children, plain, strict=True):
            request.append_token(token)
        return [parent for parent, _ in plain]

    def _name_of_fork(self, request: Request) -> str:
        """Find a name that nobody has."""
        while True:
            self._num_forks += 1
            name = f"{request.request_id} ({self._num_forks})"
            if name not in self.manager.tables:
                return name

    def _end(self, request: Request) -> None:
        """Give a request's blocks back."""
        self.manager.free(request)
        request.num_computed_tokens = 0
        if not request.status.is_finished:
            request.status = RequestStatus.FINISHED_ABORTED
