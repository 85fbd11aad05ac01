"""``generate``: one answer to a prompt, or several that share their blocks."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pagedattn_lab.arithmetic import GIB, cdiv, count
from pagedattn_lab.cli.arguments import add_attention, add_json, finite, positive, seed, temperature, text, text_of_file
from pagedattn_lab.cli.output import memory, print_json
from pagedattn_lab.cli.terminal import waiting, wrap
from pagedattn_lab.kv_shape import KV_CACHE_DTYPES, KVShape
from pagedattn_lab.studies.block_savings import Sharing

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pagedattn_lab.block_table import BlockTable
    from pagedattn_lab.engine.core import EngineCore
    from pagedattn_lab.engine.sampling import Decoded
    from pagedattn_lab.model_runner import ModelRunner
    from pagedattn_lab.request import Request


TEMPERATURE = 0.7
"""Of several outputs, unless another is given: at 1 a model as small as the book's soon loses its thread."""

EARLY_STOPPING = {"no": False, "yes": True, "never": "never"}
"""``early_stopping`` of :func:`pagedattn_lab.engine.beam_search.beam_search` by what the command line calls it."""


def add(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "generate",
        help="answer a prompt through the paged cache",
        description="Answer a prompt through the paged cache. By default the most likely token is taken at every step. "
        "With options for several outputs, page tables share blocks, and the command says how many: most that were "
        "shared at once, all that were copied before a write, and most that were saved at once, since every output "
        "(and the request that computed a shared prefix) would have needed its own.",
        examples=[
            ('generate "What is a page table?"', "the likeliest answer, token by token"),
            ('generate "Name three rivers." --n 3', "three answers by chance; they share the prompt's blocks"),
            ('generate "Name three rivers." --beams 4', "the likeliest answer that a beam search finds"),
            ('generate "Hello!" --model gpt2 --json', "another model, and a report for programs"),
        ],
    )
    parser.add_argument("prompt", type=text, help="a text in quotes; behind -- if it begins with two dashes")
    parser.add_argument("--model", type=text, help="a Hugging Face id or a folder (default: the book's model)")
    parser.add_argument(
        "--max-tokens", type=positive, default=64, metavar="N", help="most tokens of an output (default: %(default)s)"
    )
    add_attention(parser)
    parser.add_argument(
        "--block-size", type=positive, default=16, metavar="N", help="tokens per block (default: %(default)s)"
    )
    parser.add_argument(
        "--kv-cache-dtype",
        choices=tuple(KV_CACHE_DTYPES),
        default="auto",
        metavar="DTYPE",
        help="what keys and values are kept in: the model's dtype (auto, the default), or 8 bits, with a scale for "
        "each token and head (fp8_per_token_head, int8_per_token_head or int8 for short) or one of 1 for all (fp8)",
    )
    sharing = parser.add_argument_group("several outputs")
    sharing.add_argument(
        "--n",
        type=positive,
        default=1,
        metavar="N",
        help="draw N outputs by chance; with --beams, print the best N (default: %(default)s)",
    )
    sharing.add_argument(
        "--temperature",
        type=temperature,
        metavar="T",
        help="below 1, likely tokens become likelier; 0 always takes the likeliest "
        f"(default: {TEMPERATURE}; of a single output, 0)",
    )
    sharing.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of outputs drawn by chance (default: %(default)s)"
    )
    sharing.add_argument("--beams", type=positive, metavar="K", help="beam search: keep the K most likely outputs")
    sharing.add_argument(
        "--length-penalty",
        type=finite,
        metavar="P",
        help="of beams: scores are divided by length to the power of P (default: 1)",
    )
    sharing.add_argument(
        "--early-stopping",
        choices=tuple(EARLY_STOPPING),
        help="of beams: end with the K-th finished output (yes), or go on while a running one could still be better, "
        "judged at its present length (no, the default) or at its best one (never)",
    )
    sharing.add_argument(
        "--shared-prefix",
        type=text_of_file,
        metavar="FILE",
        help="a text that another request has computed before: the prompt finds its full blocks in the cache. It is "
        "the chat template's system message, or stands in front if the model has no template",
    )
    add_json(parser)
    parser.set_defaults(run=run, refuse=parser.error)


@dataclass
class _Usage:
    """Blocks when most of them were in use: how many, and their slots that held no token; and how outputs shared."""

    blocks_used: int
    empty_slots: int
    sharing: Sharing = field(default_factory=Sharing)

    def on_step(self, tables: Sequence[BlockTable], parents: Sequence[int], num_copied: int) -> None:
        """Look at the tables of one step: see :data:`pagedattn_lab.engine.core.OnStep`."""
        self.sharing.observe(tables, num_copied)
        num_blocks = len({block for table in tables for block in table.blocks})
        if num_blocks >= self.blocks_used:
            self.blocks_used = num_blocks
            self.empty_slots = sum({table.blocks[-1]: table.num_empty_slots for table in tables}.values())


def run(arguments: argparse.Namespace) -> int:
    """Generate, and print outputs and what they did with their blocks."""
    _refuse_contradictions(arguments)
    from pagedattn_lab import models

    name, system, block_size = arguments.model or models.DEFAULT, arguments.shared_prefix, arguments.block_size
    with waiting(f"loading {name}"):
        model, tokenizer = models.load(name)  # before what imports torch: a name that cannot be right is refused first
        from pagedattn_lab.engine.core import EngineCore
        from pagedattn_lab.engine.sampling import generate_greedily
        from pagedattn_lab.model_runner import ModelRunner
        from pagedattn_lab.request import Request

    prompt = models.encode_prompt(tokenizer, arguments.prompt, system)
    prefix = [] if system is None else models.encode_prefix(tokenizer, system)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest and len(prompt) + arguments.max_tokens > longest:
        raise ValueError(
            f"{len(prompt)} prompt tokens and {arguments.max_tokens} more exceed the model's {longest}: "
            f"shorten the prompt{' or the shared prefix' if prefix else ''} or lower --max-tokens"
        )
    num_blocks = _num_blocks(len(prefix), len(prompt), arguments.max_tokens, arguments.beams or arguments.n, block_size)
    _refuse_what_memory_cannot_hold(arguments, model, len(prompt), num_blocks)
    runner = ModelRunner(model, num_blocks, block_size, arguments.attention, arguments.kv_cache_dtype)
    if arguments.attention in ("auto", "cpu"):  # the first time it takes seconds, which would fall between two tokens
        with waiting("compiling attention for this CPU"):
            runner.warm_up()
    engine, request = EngineCore(runner), Request("prompt", prompt)
    stop_token_ids = models.stop_token_ids(model, tokenizer)
    usage = _Usage(cdiv(len(prompt), block_size), -len(prompt) % block_size)

    is_plain = arguments.n == 1 and system is None and arguments.beams is None and arguments.temperature is None
    if is_plain and not arguments.json:
        num_new = _stream(engine, tokenizer, request, arguments.max_tokens, stop_token_ids, usage)
        print(f"\n{_account(len(prompt), f'{num_new} new', usage, runner)}")
        return 0

    with waiting("generating"):
        if prefix:  # an earlier request computes it; the prompt then finds its full blocks in the cache
            generate_greedily(engine, [Request("prefix", prefix)], max_tokens=1)
        hits_before = engine.manager.stats.hits
        decoded = _decode(arguments, engine, request, stop_token_ids, usage)
    hit_tokens = engine.manager.stats.hits - hits_before
    hit_blocks = hit_tokens // block_size
    outputs = [
        {"text": models.detokenize(tokenizer, tokens), "tokens": tokens, "score": score}
        for tokens, score in zip(decoded.sequences[: arguments.n], decoded.scores, strict=False)
    ]
    num_slots = usage.blocks_used * block_size
    report = {
        "text": outputs[0]["text"],
        "model": name,
        "prompt_tokens": len(prompt),
        "output_tokens": sum(len(output["tokens"]) for output in outputs),
        "block_size": block_size,
        "blocks_used": usage.blocks_used,
        "cached_tokens": num_slots - usage.empty_slots,
        "empty_slots": usage.empty_slots,
        "bytes": usage.blocks_used * runner.cache.shape.bytes_per_block(block_size),
        "waste": usage.empty_slots / num_slots,
        # The request that computed the prefix is one of those who share its blocks, though it has ended.
        "blocks_shared": max(usage.sharing.most_shared, hit_blocks),
        "blocks_copied": usage.sharing.copied,
        "blocks_saved": usage.sharing.most_saved + hit_blocks,
        "prefix_hit_tokens": hit_tokens,
        "outputs": outputs,
    }
    if arguments.json:
        print_json(report)
        return 0
    for number, output in enumerate(outputs, 1):
        if len(outputs) > 1:
            print(("\n" if number > 1 else "") + f"[{number}] score {output['score']:.2f}")
        print(output["text"])
    new = f"{report['output_tokens']} new" + (f" in {len(outputs)} outputs" if len(outputs) > 1 else "")
    print(f"\n{_account(len(prompt), new, usage, runner)}")
    if system is not None:
        found = count(hit_tokens, "prompt token")
        print(wrap(f"{found} found in the cache, in full blocks of a shared prefix of {len(prefix):,}"))
    shared = count(report["blocks_shared"], "block")
    print(f"{shared} shared, {report['blocks_copied']:,} copied, {report['blocks_saved']:,} saved")
    return 0


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    if arguments.beams is None:
        for option in ("length_penalty", "early_stopping"):
            if getattr(arguments, option) is not None:
                arguments.refuse(f"--{option.replace('_', '-')} is for beam search: give --beams too")
    elif arguments.temperature is not None:
        arguments.refuse("--beams leaves nothing to chance, so --temperature means nothing: give one of the two")
    elif arguments.n > arguments.beams:
        arguments.refuse(f"--n {arguments.n} exceeds --beams {arguments.beams}: raise --beams or lower --n")


def _num_blocks(prefix_len: int, prompt_len: int, max_tokens: int, width: int, block_size: int) -> int:
    """Blocks that are enough: the null block, the prompt's full ones, and for each output all others, copies too.

    The last token of an output needs no slot. The prefix is computed before, and gives its blocks back.
    """
    full = prompt_len // block_size
    others = cdiv(prompt_len + max_tokens - 1, block_size) - full
    return 1 + max(cdiv(prefix_len, block_size), full + width * others)


def _refuse_what_memory_cannot_hold(
    arguments: argparse.Namespace, model: PreTrainedModel, prompt_len: int, num_blocks: int
) -> None:
    """Say which option asks for too much; an allocator would name bytes only, or the system end the process."""
    shape = KVShape.from_config(model.config, KV_CACHE_DTYPES[arguments.kv_cache_dtype] or model.dtype)
    num_bytes = num_blocks * shape.bytes_per_block(arguments.block_size)
    room = free_memory(model.device)
    if num_bytes <= room:
        return
    if arguments.block_size > prompt_len + arguments.max_tokens:
        option = "--block-size"
    elif (arguments.beams or arguments.n) > 1:
        option = f"--{'n' if arguments.beams is None else 'beams'} or --max-tokens"
    else:
        option = "--max-tokens"
    raise ValueError(
        f"{num_blocks:,} blocks of {count(arguments.block_size, 'token')} take {cdiv(num_bytes, GIB):,} GiB, and "
        f"{model.device.type} has {room / GIB:,.1f} GiB: lower {option}"
    )


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU; all that the machine has otherwise, for the system can make room."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _stream(
    engine: EngineCore,
    tokenizer: PreTrainedTokenizerBase,
    request: Request,
    max_tokens: int,
    stop_token_ids: Collection[int],
    usage: _Usage,
) -> int:
    """Print the likeliest tokens as they come; give their number."""
    from pagedattn_lab.engine.sampling import generate_greedily
    from pagedattn_lab.models import IncrementalDetokenizer

    num_new = 0
    detokenizer = IncrementalDetokenizer(tokenizer)

    with ExitStack() as until_it_speaks:
        until_it_speaks.enter_context(waiting("computing the prompt"))

        def on_token(_: Request, token: int) -> None:
            nonlocal num_new
            num_new += 1
            until_it_speaks.close()
            print(detokenizer.update(token), end="", flush=True)

        generate_greedily(engine, [request], max_tokens, stop_token_ids, on_token, usage.on_step)
    print(detokenizer.finish())
    return num_new


def _decode(
    arguments: argparse.Namespace,
    engine: EngineCore,
    request: Request,
    stop_token_ids: Collection[int],
    usage: _Usage,
) -> Decoded:
    """Search with beams, or draw outputs by chance; a single one is the likeliest unless a temperature was given."""
    from pagedattn_lab.engine.beam_search import beam_search
    from pagedattn_lab.engine.sampling import sample

    common = {"stop_token_ids": stop_token_ids, "on_step": usage.on_step}
    if arguments.beams is not None:
        return beam_search(
            engine,
            request,
            arguments.beams,
            arguments.max_tokens,
            length_penalty=1.0 if arguments.length_penalty is None else arguments.length_penalty,
            early_stopping=EARLY_STOPPING[arguments.early_stopping or "no"],
            **common,
        )
    degrees = arguments.temperature
    if degrees is None:
        degrees = 0.0 if arguments.n == 1 else TEMPERATURE
    return sample(
        engine, request, arguments.n, arguments.max_tokens, temperature=degrees, seed=arguments.seed, **common
    )


def _account(num_prompt_tokens: int, new: str, usage: _Usage, runner: ModelRunner) -> str:
    """Two lines on the tokens and the memory that holds them."""
    block_size = runner.cache.block_size
    num_slots = usage.blocks_used * block_size
    num_bytes = usage.blocks_used * runner.cache.shape.bytes_per_block(block_size)
    return f"{count(num_prompt_tokens, 'prompt token')}, {new}\n" + wrap(
        f"{num_slots - usage.empty_slots:,} cached in {count(usage.blocks_used, 'block')} of {block_size:,}: "
        f"{memory(num_bytes)}, {usage.empty_slots / num_slots:.1%} of that empty slots"
    )
