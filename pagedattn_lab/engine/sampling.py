"""Take the likeliest token, or draw by chance: two clients of the one loop (chapters 04, 05 and 06).

Source: Kwon et al. 2023, section 4.4, for parallel sampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from pagedattn_lab.arithmetic import at_least_one
from pagedattn_lab.engine.core import Choice, EngineCore, OnStep
from pagedattn_lab.request import Request, RequestStatus

_COLDEST = torch.finfo(torch.float32).tiny  # the lowest temperature above 0 that float32 can divide by


@dataclass(frozen=True)
class Decoded:
    """What came out of one prompt.

    Attributes:
        sequences: new tokens of each output.
        scores: of each output: the sum of its tokens' log-probabilities, for beam search divided by its length to the
            power of ``length_penalty``.
    """

    sequences: list[list[int]]
    scores: list[float]


def generate_greedily(
    engine: EngineCore,
    requests: Sequence[Request],
    max_tokens: int,
    stop_token_ids: Collection[int] = (),
    on_token: Callable[[Request, int], None] | None = None,
    on_step: OnStep | None = None,
) -> list[list[int]]:
    """Continue every request with its most likely tokens; what the prefix cache holds is not computed again.

    Args:
        engine: the model and its blocks.
        requests: without blocks; their tokens grow by the output.
        max_tokens: how many tokens to add at most.
        stop_token_ids: a sequence ends with, and includes, the first of these.
        on_token: called with the request and the token, as each is chosen.
        on_step: as for :meth:`pagedattn_lab.engine.core.EngineCore.run`.

    Returns:
        The new tokens of each request.

    Raises:
        NoFreeBlocksError: blocks ran out.
        ValueError: ``max_tokens`` below 1, or a name that another request has.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from pagedattn_lab.model_runner import ModelRunner
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> engine = EngineCore(ModelRunner(LlamaForCausalLM(config), num_blocks=20, block_size=4))
        >>> first = generate_greedily(engine, [Request("Ada", range(9))], max_tokens=3)
        >>> again = generate_greedily(engine, [Request("Bo", range(9))], max_tokens=3)
        >>> first == again, engine.manager.stats.hits
        (True, 8)
    """
    at_least_one("max_tokens", max_tokens)
    requests = list(requests)
    starts = [request.num_tokens for request in requests]
    num_tokens_at_most = {request.request_id: request.num_tokens + max_tokens for request in requests}

    def choose(running: Sequence[Request], logits: torch.Tensor) -> list[Choice]:
        choices = []
        for index, (request, token) in enumerate(zip(running, logits.argmax(dim=-1).tolist(), strict=True)):
            if on_token is not None:
                on_token(request, token)
            is_last = request.num_tokens + 1 == num_tokens_at_most[request.request_id]
            status = _status_after(token, is_last, stop_token_ids)
            if status is None:
                choices.append(Choice(index, token))
            else:
                request.append_token(token)
                request.status = status
        return choices

    engine.run(requests, choose, on_step)
    return [request.token_ids[start:] for request, start in zip(requests, starts, strict=True)]


def sample(
    engine: EngineCore,
    request: Request,
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
        engine: the model and its blocks.
        request: the prompt; the first output that is still running continues it, the others fork it. It ends as one of
            them: read all of them from the result.
        n: how many outputs.
        max_tokens: tokens of each at most.
        temperature: below 1, likely tokens become likelier; 0 always takes the likeliest.
        seed: same seed, same outputs; from 0 to 2^32 - 1.
        stop_token_ids: an output ends with, and includes, the first of these.
        on_step: as for :meth:`pagedattn_lab.engine.core.EngineCore.run`.

    Raises:
        NoFreeBlocksError: blocks ran out.
        ValueError: numbers below 1, a temperature that is negative or not finite, a seed out of range, or a name that
            another request has.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from pagedattn_lab.model_runner import ModelRunner
        >>> config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        ...                      num_attention_heads=4, num_key_value_heads=2)
        >>> engine = EngineCore(ModelRunner(LlamaForCausalLM(config), num_blocks=20, block_size=4))
        >>> decoded = sample(engine, Request("Ada", [7, 8, 9, 3, 4]), n=3, max_tokens=4)
        >>> [len(tokens) for tokens in decoded.sequences], engine.manager.block_pool.num_used_blocks
        ([4, 4, 4], 0)
    """
    at_least_one("max_tokens", max_tokens)
    at_least_one("n", n)
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature {temperature}: give a finite number of 0 or more")
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: give a number from 0 to {2**32 - 1}")
    # One for each output: fewer than 1,000,003 of them never share one, whatever their seeds.
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + number) for number in range(n)]
    sequences: list[list[int]] = [[] for _ in range(n)]
    scores = [0.0] * n
    outputs = None  # which output each running request is; None while there is only the prompt

    def choose(running: Sequence[Request], logits: torch.Tensor) -> list[Choice]:
        nonlocal outputs
        log_probs = logits.float().log_softmax(-1).cpu()  # [num_seqs, vocab_size]
        places = [(0, number) for number in range(n)] if outputs is None else list(enumerate(outputs))
        choices, outputs, ended = [], [], {}
        for place, number in places:
            token = _draw(log_probs[place], temperature, generators[number])
            sequences[number].append(token)
            scores[number] += log_probs[place, token].item()
            status = _status_after(token, len(sequences[number]) == max_tokens, stop_token_ids)
            if status is None:
                choices.append(Choice(place, token))
                outputs.append(number)
            else:
                ended[place] = token, status
        for place in ended.keys() - {choice.parent for choice in choices}:
            token, running[place].status = ended[place]
            running[place].append_token(token)
        return choices

    engine.run([request], choose, on_step)
    return Decoded(sequences, scores)


def _status_after(token: int, is_last: bool, stop_token_ids: Collection[int]) -> RequestStatus | None:
    """How a request has ended with a token, or ``None`` if it goes on."""
    if token in stop_token_ids:
        return RequestStatus.FINISHED_STOPPED
    return RequestStatus.FINISHED_LENGTH_CAPPED if is_last else None


def _draw(log_probs: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(log_probs.argmax())
    log_probs = log_probs - log_probs.max()  # so that dividing by a very small temperature leaves a 0
    return int(torch.multinomial((log_probs / max(temperature, _COLDEST)).softmax(-1), 1, generator=generator))
