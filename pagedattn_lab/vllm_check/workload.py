"""A workload as a server can be sent it: token ids and lengths, the same every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from pagedattn_lab.bench.serving import Load
from pagedattn_lab.studies.hit_rates import MOONCAKE_BLOCK_SIZE
from pagedattn_lab.workloads import TraceRequest, load_trace
from pagedattn_lab.workloads.conversations import SHARED_WORKLOADS, Piece, Prompt, token_ids


@dataclass(frozen=True)
class Workload:
    """What is sent.

    Attributes:
        load: prompts and lengths.
        num_cut: requests that were made shorter, so that the server takes them.
    """

    load: Load
    num_cut: int


def make_workload(
    name: str,
    num_requests: int,
    *,
    longest: int,
    most_output: int,
    seed: int = 0,
    vocab_size: int = 30_000,
) -> Workload:
    """Spell a synthetic workload or a log of requests out in tokens.

    Outputs are cut to ``most_output`` first, then prompts at their end, so that together they are no longer than
    ``longest``. A prompt keeps at least one token.

    Args:
        name: ``"chat"`` or ``"system-prompts"`` (:mod:`pagedattn_lab.workloads.conversations`), or a file in Mooncake's
            format.
        num_requests: how many at most: a file may have fewer.
        longest: most tokens of a prompt and its output.
        most_output: most tokens of an output.
        seed: of a synthetic workload.
        vocab_size: token ids are below.

    Raises:
        ValueError: ``longest`` leaves no room for a prompt.
        MalformedTraceError, OSError: as for :func:`~pagedattn_lab.workloads.request_logs.load_trace`.

    Example:
        >>> workload = make_workload("system-prompts", 2, longest=1024, most_output=30)
        >>> [len(prompt) for prompt in workload.load.prompts], workload.load.output_lens, workload.num_cut
        ([994, 994], (30, 30), 2)
    """
    if longest < 2:
        raise ValueError(f"a request may have {longest} tokens: it needs 2, one to send and one to get")
    prompts = SHARED_WORKLOADS[name](seed) if name in SHARED_WORKLOADS else of_log(load_trace(name))
    token_lists, output_lens, num_cut = [], [], 0
    for prompt in islice(prompts, num_requests):
        output_len = min(prompt.output_len, most_output, longest - 1)
        pieces = tuple(_first(prompt.pieces, longest - output_len))
        num_cut += pieces != prompt.pieces or output_len != prompt.output_len
        token_lists.append(tuple(token_ids(pieces, vocab_size)))
        output_lens.append(output_len)
    return Workload(Load(tuple(token_lists), tuple(output_lens)), num_cut)


def of_log(requests: Iterable[TraceRequest]) -> Iterator[Prompt]:
    """Make prompts that agree exactly where the ids of a log's blocks do.

    What no id covers is like nothing else.

    Example:
        >>> [prompt] = of_log([TraceRequest(0.0, prompt_len=600, output_len=9, hash_ids=(3,))])
        >>> prompt.pieces
        (Piece(name='hash 3', length=512), Piece(name='rest of 1', length=88))
    """
    for number, request in enumerate(requests, 1):
        pieces, left = [], request.prompt_len
        for hash_id in request.hash_ids:
            if left:
                pieces.append(Piece(f"hash {hash_id}", min(left, MOONCAKE_BLOCK_SIZE)))
                left -= pieces[-1].length
        if left:
            pieces.append(Piece(f"rest of {number}", left))
        yield Prompt(tuple(pieces), request.output_len)


def _first(pieces: Iterable[Piece], num_tokens: int) -> Iterator[Piece]:
    """Keep a prompt's first tokens."""
    for name, length in pieces:
        if num_tokens:
            yield Piece(name, min(length, num_tokens))
            num_tokens -= min(length, num_tokens)
