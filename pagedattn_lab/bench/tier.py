"""What a second tier is good for: the first token of a conversation that comes back (chapter 11).

A conversation had a turn, others came, and now it goes on. Its keys and values are still in blocks of the device
(resident), have moved to host memory and are copied back (reloaded), or are gone and computed once more (recomputed).
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pagedattn_lab.arithmetic import cdiv
from pagedattn_lab.bench.timing import check_rising, no_collection, summary, turns
from pagedattn_lab.hardware import GPUS, PCIE_5_X16, StepTime
from pagedattn_lab.kv_shape import KVShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pagedattn_lab.engine.llm_engine import LLMEngine

LENGTHS = (128, 256, 512, 1_024, 2_048, 4_096)
"""Tokens that a conversation has when it comes back."""

QUICK_LENGTHS = (64, 128)
NEW_TURN = 32
"""Tokens of its new turn, which are computed whatever happens."""

BLOCK_SIZE = 16
STATES = ("recomputed", "reloaded", "resident")
RATIOS = {"recomputed_over_reloaded": ("recomputed", "reloaded"), "reloaded_over_resident": ("reloaded", "resident")}

LLAMA_3_1_8B = KVShape(num_layers=32, num_kv_heads=8, head_dim=128, dtype="bfloat16")
"""What the model caches, by its published ``config.json``."""

NUM_PARAMETERS = 8_030_261_248
"""Parameters of Llama-3.1-8B: Grattafiori et al. 2024, "The Llama 3 Herd of Models", count them in their weights."""


def modelled(num_tokens: int, new_turn: int = NEW_TURN) -> dict[str, float]:
    """Say how long the first token takes of Llama-3.1-8B on an H100, in the model: a roofline and PCIe 5.0 at best.

    The copy comes before the step and nothing overlaps with it, as in this book's engine.

    Args:
        num_tokens: of the conversation.
        new_turn: tokens that come with its return.

    Returns:
        Milliseconds for each of ``STATES``.

    Example:
        >>> {state: round(milliseconds, 1) for state, milliseconds in modelled(4_096).items()}
        {'recomputed': 67.2, 'reloaded': 13.5, 'resident': 5.0}
    """
    step = StepTime.roofline(LLAMA_3_1_8B, NUM_PARAMETERS, GPUS["H100-80GB"])
    whole = num_tokens + new_turn
    resident = step.seconds(whole, num_computed=new_turn)
    copy = num_tokens * LLAMA_3_1_8B.bytes_per_token / PCIE_5_X16
    seconds = {"recomputed": step.seconds(whole, num_computed=whole), "reloaded": resident + copy, "resident": resident}
    return {state: 1000 * seconds[state] for state in STATES}


def modelled_pays_from(new_turn: int = NEW_TURN) -> int:
    """Find the shortest conversation, in whole blocks, from which on reloading takes less time in the model.

    A step is never shorter than it takes to read the weights. While the recomputed tokens hide behind that, a copy can
    only add to it.

    Example:
        >>> modelled(modelled_pays_from())["reloaded"] < modelled(modelled_pays_from())["recomputed"]
        True
    """
    num_tokens = BLOCK_SIZE
    while modelled(num_tokens, new_turn)["reloaded"] >= modelled(num_tokens, new_turn)["recomputed"]:
        num_tokens += BLOCK_SIZE
    return num_tokens


def first_token_ms(engine: LLMEngine, prompt: Sequence[int], num_cached: int) -> float:
    """Serve a prompt alone, up to its first token.

    Args:
        engine: at rest.
        prompt: token ids.
        num_cached: how many of these must be found in the cache, wherever that is.

    Returns:
        Milliseconds from the request's arrival to its token.

    Raises:
        RuntimeError: more or fewer tokens were found, so something else was measured.
    """
    from pagedattn_lab.engine.sampling_params import SamplingParams

    start = time.perf_counter()
    engine.add_request("returns", prompt, SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))
    outputs = engine.step()
    while not outputs:  # a long prompt is computed in chunks
        outputs = engine.step()
    milliseconds = 1000 * (time.perf_counter() - start)
    if outputs[0].num_cached_tokens != num_cached:
        raise RuntimeError(f"{outputs[0].num_cached_tokens} of {len(prompt)} tokens were cached, not {num_cached}")
    return milliseconds


def displace(engine: LLMEngine) -> float:
    """Hand every block of the device to somebody else, who gives it back empty; what was cached moves to the tier.

    Returns:
        Milliseconds that the copies to host memory took. Whoever displaces others pays for them.
    """
    manager, cache = engine.core.manager, engine.core.runner.cache
    assert manager.tier is not None
    blocks = manager.block_pool.get_new_blocks(manager.block_pool.num_free_blocks)
    start = time.perf_counter()
    cache.copy_out(manager.tier.copies().stores)
    milliseconds = 1000 * (time.perf_counter() - start)
    manager.tier.complete_stores()
    manager.block_pool.free_blocks(blocks)
    return milliseconds


def returns(engine: LLMEngine, history: Sequence[int], new_turns: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Let one conversation come back in each of ``STATES``, each time with another new turn.

    Recomputing leaves it in the device's blocks, so that comes first; the other two follow in the order of
    ``new_turns``.

    Args:
        engine: at rest, with a tier. Its cache is emptied.
        history: tokens of the conversation, in whole blocks.
        new_turns: for each state, tokens that come with its return; they begin with different ones.

    Returns:
        Milliseconds for each state, and under ``stored`` for the copies that made room.
    """
    if not engine.core.manager.reset_prefix_cache():
        raise RuntimeError("the engine still holds blocks: let its requests end first")
    taken = {"recomputed": first_token_ms(engine, [*history, *new_turns["recomputed"]], num_cached=0)}
    for state in new_turns:
        if state == "reloaded":
            taken["stored"] = displace(engine)
        if state != "recomputed":
            taken[state] = first_token_ms(engine, [*history, *new_turns[state]], num_cached=len(history))
    return taken


def measure(
    lengths: Sequence[int] = LENGTHS,
    *,
    repetitions: int = 3,
    model: PreTrainedModel | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Measure conversations of several lengths that come back, on one thread, and set the model of an H100 beside them.

    Lengths take turns, each time another one first; so do reloaded and resident. A ratio compares times of one
    repetition.

    Args:
        lengths: tokens of the conversations, in whole blocks, ascending.
        repetitions: how often each comes back in each state.
        model: by default the book's.
        progress: whether to show a bar on standard error after a second; by default if that is a terminal.

    Returns:
        The settings; ``conversations``, by length: medians and quartiles of ``recomputed_ms``, ``reloaded_ms``,
        ``resident_ms``, ``stored_ms`` (the copies to host memory, made when others took the blocks) and of both
        ``RATIOS``; ``pays_from``, the shortest length from which on every reloaded return was faster than the
        recomputed one of its repetition, or ``None``. Under ``model`` the same of Llama-3.1-8B on an H100.

    Raises:
        ValueError: no length, lengths that do not rise or are not whole blocks, or fewer than 2 repetitions.
    """
    import torch
    from tqdm import tqdm

    from pagedattn_lab import models
    from pagedattn_lab.engine.llm_engine import LLMEngine

    check_rising("lengths", lengths, repetitions)
    for length in lengths:
        if length % BLOCK_SIZE:
            raise ValueError(f"a conversation of {length} tokens is not found whole: give a multiple of {BLOCK_SIZE}")
    if model is None:
        model, _ = models.load()
    num_blocks = cdiv(lengths[-1] + 3 * NEW_TURN, BLOCK_SIZE)  # of the longest conversation, with all its new turns
    rng, vocab_size = random.Random("bench tier"), model.config.get_text_config().vocab_size
    tokens = rng.choices(range(vocab_size), k=lengths[-1])
    first_tokens = rng.sample(range(vocab_size), k=len(STATES))
    new_turns = {state: [first] * NEW_TURN for state, first in zip(STATES, first_tokens, strict=True)}
    measured: dict[int, list[dict[str, float]]] = {length: [] for length in lengths}
    before, disable = torch.get_num_threads(), None if progress is None else not progress
    torch.set_num_threads(1)
    try:
        engine = LLMEngine(model, None, num_blocks=num_blocks + 1, block_size=BLOCK_SIZE, num_offload_blocks=num_blocks)
        returns(engine, tokens[: lengths[0]], new_turns)  # what happens once only
        runs = tqdm(total=repetitions * len(lengths), unit=" runs", delay=1, leave=False, disable=disable)
        with no_collection(), runs as bar:
            for repetition in range(repetitions):
                order = STATES if repetition % 2 else STATES[::-1]
                for length in turns(lengths, repetition):
                    measured[length].append(
                        returns(engine, tokens[:length], {state: new_turns[state] for state in order})
                    )
                    bar.update()
        device = str(model.device)
    finally:
        torch.set_num_threads(before)
    return {
        "device": device,
        "bytes_per_token": engine.core.runner.cache.shape.bytes_per_token,
        "new_turn": NEW_TURN,
        "block_size": BLOCK_SIZE,
        "threads": 1,
        "repetitions": repetitions,
        "conversations": [{"num_tokens": length, **_summary(runs)} for length, runs in measured.items()],
        "pays_from": pays_from(measured),
        "model": {
            "name": "Llama-3.1-8B",
            "gpu": "H100-80GB",
            "link_bytes_per_s": PCIE_5_X16,
            "conversations": [
                {"num_tokens": length} | {f"{state}_ms": ms for state, ms in modelled(length).items()}
                for length in lengths
            ],
            "pays_from": modelled_pays_from(),
        },
    }


def pays_from(measured: Mapping[int, Sequence[Mapping[str, float]]]) -> int | None:
    """Find the shortest length from which on every reloaded return was faster than its recomputed one.

    Args:
        measured: for each length, what :func:`returns` gave in each repetition.

    Example:
        >>> slow, fast = {"recomputed": 2.0, "reloaded": 3.0}, {"recomputed": 5.0, "reloaded": 3.0}
        >>> pays_from({128: [fast, slow], 256: [fast, fast], 512: [fast, fast]}), pays_from({128: [slow]})
        (256, None)
    """
    shortest = None
    for length in sorted(measured, reverse=True):
        if any(run["reloaded"] >= run["recomputed"] for run in measured[length]):
            break
        shortest = length
    return shortest


def _summary(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians and quartiles of one length's repetitions."""
    times = {f"{name}_ms": [run[name] for run in runs] for name in (*STATES, "stored")}
    return summary(times | {name: [run[one] / run[other] for run in runs] for name, (one, other) in RATIOS.items()})


def describe(report: Mapping[str, Any]) -> str:
    """Write down what :func:`measure` measured."""
    model = report["model"]
    lines = [
        f"First token of a conversation that comes back, with {report['new_turn']} new tokens.",
        f"The book's model on {report['device']}, one thread, {report['bytes_per_token']:,} bytes per token.",
        f"Medians of {report['repetitions']} repetitions, in milliseconds; ratios are of one repetition.",
        "gain: recomputed over reloaded (quartiles). stored: copying it to host memory,",
        "which was paid for when others took its blocks.",
        "",
        f"{'tokens':>7}{'recomputed':>13}{'reloaded':>11}{'resident':>11}{'stored':>10}{'gain':>24}",
    ]
    for row in report["conversations"]:
        gain = "{:,.1f} ({:,.1f}-{:,.1f})".format(
            row["recomputed_over_reloaded"], *row["recomputed_over_reloaded_quartiles"]
        )
        lines.append(
            f"{row['num_tokens']:>7,}{row['recomputed_ms']:>13,.1f}{row['reloaded_ms']:>11,.1f}"
            f"{row['resident_ms']:>11,.1f}{row['stored_ms']:>10,.1f}{gain:>24}"
        )
    lines += [
        "",
        "Reloading never paid here."
        if report["pays_from"] is None
        else f"Reloading took less time in every repetition from {report['pays_from']:,} tokens on.",
        "",
        f"In the model: {model['name']} on {model['gpu']} by its roofline, copies over PCIe 5.0",
        f"at {model['link_bytes_per_s'] / 1e9:.0f} GB/s.",
        "",
        f"{'tokens':>7}{'recomputed':>13}{'reloaded':>11}{'resident':>11}{'gain':>34}",
    ]
    for row in model["conversations"]:
        lines.append(
            f"{row['num_tokens']:>7,}{row['recomputed_ms']:>13,.1f}{row['reloaded_ms']:>11,.1f}"
            f"{row['resident_ms']:>11,.1f}{row['recomputed_ms'] / row['reloaded_ms']:>34.1f}"
        )
    lines += ["", f"In the model reloading takes less time from {model['pays_from']:,} tokens on."]
    return "\n".join(lines)
