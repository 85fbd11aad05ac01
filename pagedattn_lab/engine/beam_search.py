"""Several outputs from one prompt, and one output from many requests, through shared blocks (chapters 05 and 06).

Source: Kwon et al. 2023, section 4.4. Beam search chooses as transformers' ``generate`` does (5.23,
``GenerationMixin._beam_search``), so the two can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.block_pool import NoFreeBlocksError
from pagedattn_lab.block_table import BlockTable, reorder, take_copies
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.prefix_cache import Request
from pagedattn_lab.studies.block_savings import Sharing

_LARGEST_EXPONENT = 600  # a float holds exp(709): what scores are divided by leaves them room

OnStep = Callable[[Sequence[BlockTable], Sequence[int]], None]
"""Called with the tables of a step and, for each, the index of the one that it continues from the step before."""


@dataclass(frozen=True)
class Decoded:
    """What came out of one prompt.

    Attributes:
        sequences: new tokens of each output.
        scores: of each output: the sum of its tokens' log-probabilities, for beam search divided by its length to the
            power of ``length_penalty``.
        sharing: blocks that the outputs had in common while they grew.
    """

    sequences: list[list[int]]
    scores: list[float]
    sharing: Sharing


class _Output(NamedTuple):
    tokens: list[int]
    score: float


def sample(
    runner: ModelRunner,
    table: BlockTable,
    prompt: Sequence[int],
    n: int,
    max_tokens: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    stop_token_ids: Collection[int] = (),
    on_step: OnStep | None = None,
) -> Decoded:
    """Draw several outputs for one prompt, which is computed once.

    Output ``i`` draws from a generator of its own, so it does not depend on how many others there are.

    Args:
        runner: the model.
        table: empty, or with the prompt's first tokens in it, computed already. It is empty in the end.
        prompt: token ids.
        n: how many outputs.
        max_tokens: tokens of each at most.
        temperature: below 1, likely tokens become likelier; 0 always takes the likeliest.
        seed: same seed, same outputs; from 0 to 2^32 - 1.
        stop_token_ids: an output ends with, and includes, the first of these.
        on_step: called at each step, once blocks have been found for its tokens.

    Raises:
        NoFreeBlocksError: the pool is short.
        ValueError: no prompt, numbers below 1, a temperature that is negative or not finite, a seed out of range, or a
            table that does not fit.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> runner = ModelRunner(LlamaForCausalLM(config), num_blocks=20, block_size=4)
        >>> pool = runner.new_pool()
        >>> decoded = sample(runner, BlockTable(pool), [7, 8, 9, 3, 4], n=3, max_tokens=4)
        >>> [len(tokens) for tokens in decoded.sequences], decoded.sharing.copied, pool.num_used_blocks
        ([4, 4, 4], 2, 0)
    """
    _check(runner, table, prompt, max_tokens)
    if n < 1 or not 0 <= temperature < math.inf:
        raise ValueError(
            f"n is {n} and temperature {temperature}: give at least 1 output and a finite temperature of 0 or more"
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: give a number from 0 to {2**32 - 1}")
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in range(n)]
    outputs = [_Output([], 0.0)] * n
    sharing = Sharing()
    tables = [table]
    try:
        logits = _prefill(runner, table, prompt, sharing).expand(n, -1)
        running, parents = list(range(n)), [0] * n
        while True:
            log_probs = logits.float().log_softmax(-1).cpu()
            for row, index in zip(log_probs, running, strict=True):
                token = _draw(row, temperature, generators[index])
                tokens, score = outputs[index]
                outputs[index] = _Output([*tokens, token], score + row[token].item())
            stay = [
                place
                for place, index in enumerate(running)
                if len(outputs[index].tokens) < max_tokens and outputs[index].tokens[-1] not in stop_token_ids
            ]
            parents, running = [parents[place] for place in stay], [running[place] for place in stay]
            tables = reorder(tables, parents)
            if not running:
                break
            logits = _step(runner, tables, [outputs[index].tokens[-1] for index in running], sharing, on_step, parents)
            parents = list(range(len(running)))
    finally:
        for each in tables:
            each.release()
    return Decoded([output.tokens for output in outputs], [output.score for output in outputs], sharing)


def beam_search(
    runner: ModelRunner,
    table: BlockTable,
    prompt: Sequence[int],
    num_beams: int,
    max_tokens: int,
    *,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    stop_token_ids: Collection[int] = (),
    on_step: OnStep | None = None,
) -> Decoded:
    """Keep the most likely sequences at every step, and return those that ended best.

    At each step every beam is continued by every token; the best ``num_beams`` of all become the next beams, so some
    beams have several children, which share its blocks, and others none.

    Args:
        runner: the model.
        table: empty, or with the prompt's first tokens in it, computed already. It is empty in the end.
        prompt: token ids.
        num_beams: sequences kept at each step, and returned; fewer if there are not so many, as with more beams than
            words and one step (transformers fills up with repetitions).
        max_tokens: tokens of each at most.
        length_penalty: finite power of the length that scores are divided by: above 0 favours long outputs.
        early_stopping: ``True`` ends with the ``num_beams``-th finished sequence; ``False`` goes on while the best
            running one, judged at its present length, could still replace the worst of them; ``"never"`` judges it at
            the best length it could reach.
        stop_token_ids: a sequence ends with, and includes, the first of these.
        on_step: called at each step, once blocks have been found for its tokens.

    Returns:
        Sequences and scores, best first.

    Raises:
        NoFreeBlocksError: the pool is short.
        ValueError: no prompt, numbers below 1, an unknown ``early_stopping``, a ``length_penalty`` that leaves no
            finite scores, or a table that does not fit.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> runner = ModelRunner(LlamaForCausalLM(config), num_blocks=20, block_size=4)
        >>> pool = runner.new_pool()
        >>> decoded = beam_search(runner, BlockTable(pool), [7, 8, 9], num_beams=2, max_tokens=4)
        >>> len(decoded.sequences), decoded.scores == sorted(decoded.scores, reverse=True), pool.num_used_blocks
        (2, True, 0)
    """
    _check(runner, table, prompt, max_tokens)
    if num_beams < 1:
        raise ValueError(f"num_beams is {num_beams}: keep at least 1 sequence")
    if not isinstance(early_stopping, bool) and early_stopping != "never":
        raise ValueError(f"early_stopping is {early_stopping!r}: use True, False or 'never'")
    if not math.isfinite(length_penalty) or abs(length_penalty) * math.log(max_tokens) > _LARGEST_EXPONENT:
        raise ValueError(
            f"length_penalty is {length_penalty}: scores divided by lengths up to {max_tokens} to that power are no "
            "finite numbers; choose one nearer to 0"
        )
    num_candidates = max(2, 1 + len(stop_token_ids)) * num_beams  # enough to go on if every beam could end
    beams, finished = [_Output([], 0.0)], []
    sharing = Sharing()
    tables = [table]
    try:
        logits = _prefill(runner, table, prompt, sharing)
        for length in range(1, max_tokens + 1):
            scores = torch.tensor([beam.score for beam in beams], device=logits.device)
            totals = (logits.float().log_softmax(-1) + scores[:, None]).flatten()
            best = totals.topk(min(num_candidates, len(totals)))
            places = [divmod(place, logits.shape[-1]) for place in best.indices.tolist()]
            children, parents = [], []
            for rank, (total, (parent, token)) in enumerate(zip(best.values.tolist(), places, strict=True)):
                tokens = [*beams[parent].tokens, token]
                if length == max_tokens or token in stop_token_ids:
                    if rank < num_beams:
                        finished.append(_Output(tokens, total / length**length_penalty))
                elif len(children) < num_beams:
                    children.append(_Output(tokens, total))
                    parents.append(parent)
            finished = sorted(finished, key=lambda output: -output.score)[:num_beams]
            if not children or (len(finished) == num_beams and early_stopping is True):
                break
            reach = max_tokens if early_stopping == "never" and length_penalty > 0 else length
            if len(finished) == num_beams and children[0].score / reach**length_penalty <= finished[-1].score:
                break
            beams, tables = children, reorder(tables, parents)
            logits = _step(runner, tables, [beam.tokens[-1] for beam in beams], sharing, on_step, parents)
    finally:
        for each in tables:
            each.release()
    return Decoded([output.tokens for output in finished], [output.score for output in finished], sharing)


def generate_cached(
    runner: ModelRunner,
    manager: KVCacheManager,
    requests: Sequence[Request],
    max_tokens: int,
    stop_token_ids: Collection[int] = (),
) -> list[list[int]]:
    """Continue every request with its most likely tokens; only what the prefix cache does not hold is computed.

    All run in one batch, which shrinks as they finish. Requests that begin alike share blocks even if they start in the
    same step. Every block has been given back when this ends, and those with a hash stay in the cache.

    Args:
        runner: the model.
        manager: where blocks come from; other requests may hold some of them.
        requests: their tokens grow by the output.
        max_tokens: how many tokens to add at most.
        stop_token_ids: a sequence ends with, and includes, the first of these.

    Returns:
        The new tokens of each request.

    Raises:
        NoFreeBlocksError: blocks ran out.
        ValueError: ``max_tokens`` below 1, a pool whose blocks are not those of the cache, one id given to two
            requests, or a request that holds blocks already.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> runner = ModelRunner(LlamaForCausalLM(config), num_blocks=20, block_size=4)
        >>> manager = KVCacheManager(num_blocks=20, block_size=4)
        >>> first = generate_cached(runner, manager, [Request("Ada", range(9))], max_tokens=3)
        >>> again = generate_cached(runner, manager, [Request("Bo", range(9))], max_tokens=3)
        >>> first == again, manager.stats.hits
        (True, 8)
    """
    runner.check_pool(manager.block_pool)
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}: ask for at least 1")
    starts = {request.request_id: request.num_tokens for request in requests}
    if len(starts) < len(requests) or not starts.keys().isdisjoint(manager.tables):
        raise ValueError(
            f"requests {[request.request_id for request in requests]} and those that hold blocks already, "
            f"{list(manager.tables)}, share an id: give every request its own"
        )
    running = list(requests)
    try:
        while running:
            for request in running:
                _allocate(manager, request)
            tables = [manager.tables[request.request_id] for request in running]
            query_lens = [request.num_tokens - request.num_computed_tokens for request in running]
            token_ids = [token for request in running for token in request.token_ids[request.num_computed_tokens :]]
            _copy(runner, tables)
            logits = runner.execute(token_ids, attention_metadata(tables, query_lens, runner.model.device))
            stay = []
            for request, token in zip(running, logits.argmax(-1).tolist(), strict=True):
                request.num_computed_tokens = request.num_tokens
                request.append_token(token)
                if token in stop_token_ids or request.num_tokens == starts[request.request_id] + max_tokens:
                    manager.free(request)
                    request.num_computed_tokens = 0
                else:
                    stay.append(request)
            running = stay
    finally:
        for request in running:  # something failed: what the step was to write is not there
            first = request.num_computed_tokens // manager.block_pool.block_size
            manager.evict_blocks(manager.block_ids(request.request_id)[first:])
            manager.free(request)
            request.num_computed_tokens = 0
    return [request.token_ids[starts[request.request_id] :] for request in requests]


def _allocate(manager: KVCacheManager, request: Request) -> None:
    """Find blocks for all tokens of a request that have not been computed, and count hits as computed."""
    blocks, num_hit_tokens = [], request.num_computed_tokens
    if request.request_id not in manager.tables:
        blocks, num_hit_tokens = manager.get_computed_blocks(request)
    if manager.allocate_slots(request, request.num_tokens - num_hit_tokens, blocks) is None:
        raise NoFreeBlocksError(
            f"request {request.request_id!r} needs blocks for {request.num_tokens - num_hit_tokens} more tokens, and "
            f"{manager.block_pool.num_free_blocks} blocks are free"
        )
    request.num_computed_tokens = num_hit_tokens


def _check(runner: ModelRunner, table: BlockTable, prompt: Sequence[int], max_tokens: int) -> None:
    runner.check_pool(table.pool)
    if not table.num_tokens < len(prompt):
        raise ValueError(
            f"the prompt has {len(prompt)} tokens and its table {table.num_tokens}: at least the last token must be "
            "left to compute"
        )
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}: ask for at least 1")


def _prefill(runner: ModelRunner, table: BlockTable, prompt: Sequence[int], sharing: Sharing) -> torch.Tensor:
    """Compute the tokens of a prompt that the table does not hold yet; give the ``[1, vocab_size]`` logits after it."""
    token_ids = prompt[table.num_tokens :]
    table.append_tokens(len(token_ids))
    sharing.copied += _copy(runner, [table])
    return runner.execute(token_ids, attention_metadata([table], [len(token_ids)], runner.model.device))


def _step(
    runner: ModelRunner,
    tables: Sequence[BlockTable],
    token_ids: Sequence[int],
    sharing: Sharing,
    on_step: OnStep | None,
    parents: Sequence[int],
) -> torch.Tensor:
    """Compute one token of every sequence: find slots, carry out all copies at once, then write and attend."""
    for table in tables:
        table.append_tokens(1)
    sharing.copied += _copy(runner, tables)
    sharing.observe(tables)
    if on_step is not None:
        on_step(tables, parents)
    return runner.execute(token_ids, attention_metadata(tables, device=runner.model.device))


def _copy(runner: ModelRunner, tables: Sequence[BlockTable]) -> int:
    """Carry out the copies that tables wait for, once all of a step have grown; tell how many."""
    copies = take_copies(tables)
    runner.cache.copy_blocks(copies)
    return len(copies)


def _draw(log_probs: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(log_probs.argmax())
    log_probs = log_probs - log_probs.max()  # so that dividing by a very small temperature leaves a 0
    return int(torch.multinomial((log_probs / temperature).softmax(-1), 1, generator=generator))
