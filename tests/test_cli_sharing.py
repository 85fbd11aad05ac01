"""``hits``, and ``generate`` for several outputs and shared prefixes: their figures, worked out once more."""

from __future__ import annotations

import gzip
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from pagedattn_lab import models
from pagedattn_lab.arithmetic import count as counted
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable, reorder, take_copies
from pagedattn_lab.cli import generate, main
from pagedattn_lab.engine import beam_search as beam_search_module
from pagedattn_lab.engine.beam_search import beam_search
from pagedattn_lab.engine.core import EngineCore
from pagedattn_lab.kv_shape import KVShape
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.request import Request
from pagedattn_lab.studies.hit_rates import POLICIES, measure
from pagedattn_lab.workloads import load_mooncake_jsonl
from pagedattn_lab.workloads.conversations import SHARED_WORKLOADS, hashed
from tests.helpers.cli import AZURE, assert_one_line, report_of, strictly
from tests.helpers.genealogy import count
from tests.helpers.list_cache import ListCache
from tests.helpers.models import assert_scores_close, greedy, log_probs_of, transformers_beams

Capture = pytest.CaptureFixture[str]

BLOCK = 4
LOAD = [
    (10, (0, 1, 2)),
    (9, (3, 4, 5)),
    (12, (0, 1, 6)),  # begins like the first
    (12, (0, 1, 6)),  # the same once more: its last block is never found
    (8, (7, 8)),
    (24, (0, 1, 6, 9, 10, 11)),  # more blocks than a cache of 5 has
    (10, (3, 4, 12)),  # begins like the second
    (11, (0, 1, 6)),
]
"""Tokens of each prompt, and the ids of its blocks: four tokens each, the last one perhaps not full."""


class LeastRecentlyUsed(ListCache):
    """A :class:`ListCache` in which the blocks that a request found move to the end, its first block last."""

    def serve(self, num_tokens: int, hash_ids: Sequence[int]) -> int | None:
        found = super().serve(num_tokens, hash_ids)
        for hash_id in reversed(hash_ids[: (found or 0) // self.block_size]):
            block = min(entry for entry in self.line if entry[1] == hash_id)
            self.line.remove(block)
            self.line.append(block)
        return found


def mooncake(load: Sequence[tuple[int, Sequence[int]]]) -> str:
    """Write a load in the format of Mooncake's traces."""
    return "".join(
        json.dumps({"timestamp": when, "input_length": tokens, "output_length": 1, "hash_ids": list(hash_ids)}) + "\n"
        for when, (tokens, hash_ids) in enumerate(load)
    )


def expected_hits(load: Sequence[tuple[int, Sequence[int]]], block_size: int, policy: str, room: float) -> dict:
    """What a report says of a load, from a plain list."""
    cache = (LeastRecentlyUsed if policy == "lru" else ListCache)(room, block_size)
    found, sizes = [], []
    for request in load:
        found.append(cache.serve(*request))
        sizes.append(len(cache.line))
    prompt_tokens, hit_tokens = sum(tokens for tokens, _ in load), sum(filter(None, found))
    return {
        "policy": policy,
        "num_blocks": None if room == math.inf else room,
        "block_size": block_size,
        "num_requests": len(load),
        "refused": found.count(None),
        "prompt_tokens": prompt_tokens,
        "hit_tokens": hit_tokens,
        "evictions": cache.evictions,
        "most_cached": max(sizes),
        "hit_rate": hit_tokens / prompt_tokens,
        "seed": None,  # nothing is left to chance
    }


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "load.jsonl"
    path.write_text(mooncake(LOAD))
    return str(path)


def test_hits_equal_those_of_a_list(trace: str, capsys: Capture) -> None:
    """Catches a figure under another's name, a rate over other tokens, refused prompts left out, an option that is
    read and forgotten, and a field that was renamed.
    """
    rates = {}
    for policy, room in (("lru", math.inf), ("lru", 5), ("fifo", 5), ("fifo", 6), ("lru", 6)):
        arguments = [
            "--block-size",
            str(BLOCK),
            "--policy",
            policy,
            *([] if room == math.inf else ["--blocks", f"{room}"]),
        ]
        report, said = report_of(capsys, "hits", trace, *arguments)
        expected = expected_hits(LOAD, BLOCK, policy, room)
        assert report == {"trace": trace} | expected
        assert said.count("\n") == bool(expected["refused"])
        rates[policy, room] = report["hit_rate"], report["evictions"]
    assert len(set(rates.values())) == len(rates), "the load does not tell policies and sizes apart"
    unlimited, _ = report_of(capsys, "hits", trace, "--block-size", str(BLOCK), "--blocks", "unlimited")
    assert unlimited == {"trace": trace} | expected_hits(LOAD, BLOCK, "lru", math.inf)


def test_hits_of_the_first_requests(trace: str, capsys: Capture) -> None:
    """Catches --requests that is off by one or takes the last ones, and a sign that is refused."""
    for number in (1, 3, len(LOAD), len(LOAD) + 1):
        report, _ = report_of(capsys, "hits", trace, "--block-size", str(BLOCK), "--requests", f"{number:+}")
        assert report == {"trace": trace} | expected_hits(LOAD[:number], BLOCK, "lru", math.inf)


def test_hits_of_a_load_however_it_is_written(tmp_path: Path, capsys: Capture) -> None:
    """Catches a way to write a log that ``load_trace`` reads and the command does not: compressed, as an array, and
    with ids for full blocks only, where the advice was to change the block size.
    """
    array = f"[{','.join(mooncake(LOAD).splitlines())}]"
    full_blocks = mooncake([(tokens, hash_ids[: tokens // BLOCK]) for tokens, hash_ids in LOAD])
    for content in (gzip.compress(mooncake(LOAD).encode()), array.encode("utf-16"), full_blocks.encode()):
        path = tmp_path / "load"
        path.write_bytes(content)
        report, _ = report_of(capsys, "hits", str(path), "--block-size", str(BLOCK))
        assert report == {"trace": str(path)} | expected_hits(LOAD, BLOCK, "lru", math.inf)


def test_hits_by_default_in_blocks_of_mooncake(tmp_path: Path, capsys: Capture) -> None:
    """Catches another block size for a file: each of Mooncake's ids stands for 512 tokens."""
    load = [(512 * tokens // BLOCK, hash_ids) for tokens, hash_ids in LOAD]
    path = tmp_path / "load.jsonl"
    path.write_text(mooncake(load))
    assert report_of(capsys, "hits", str(path))[0] == {"trace": str(path)} | expected_hits(load, 512, "lru", math.inf)


def test_hits_text_says_what_json_says(trace: str, capsys: Capture) -> None:
    """Catches a figure in the wrong row, a share of 0 for every load, and a refusal that nobody hears of."""
    room = 5
    expected = expected_hits(LOAD, BLOCK, "lru", room)
    arguments = ["hits", trace, "--block-size", str(BLOCK)]
    assert main([*arguments, "--blocks", str(room)]) == 0
    captured = capsys.readouterr()
    rows = {line[:20].strip(): line[20:].strip() for line in captured.out.splitlines()}
    assert rows == {
        "trace": f"load.jsonl, {len(LOAD)} requests",
        "cache": f"{room} blocks",
        "block size": f"{BLOCK} tokens",
        "policy": f"lru: {POLICIES['lru']}",
        "tokens in prompts": f"{expected['prompt_tokens']}",
        "tokens found": f"{expected['hit_tokens']}",
        "hit rate": f"{expected['hit_rate']:.1%}",
        "most blocks cached": f"{expected['most_cached']}",
        "blocks evicted": f"{expected['evictions']}",
    }
    assert expected["refused"] == 1 and expected["evictions"] > 0 < expected["hit_tokens"]
    message = (
        f"refused 1 of {len(LOAD)} requests, with prompts of more than {room} blocks: raise --blocks to serve them"
    )
    assert captured.err == f"pagedattn-lab hits: {message}\n"

    assert main([*arguments, "--requests", "1"]) == 0
    captured = capsys.readouterr()
    rows = {line[:20].strip(): line[20:].strip() for line in captured.out.splitlines()}
    assert (rows["trace"], rows["cache"], "policy" in rows) == ("load.jsonl, 1 request", "unlimited", False)
    assert captured.err == ""


def test_hits_by_chance_come_from_the_seed(trace: str, capsys: Capture) -> None:
    """Catches a seed that is ignored or left out of the report where chance decides, or claimed where it does not."""
    requests = load_mooncake_jsonl(trace)
    arguments = ["hits", trace, "--block-size", str(BLOCK), "--policy", "random"]
    found = set()
    for seed in range(12):
        report, _ = report_of(capsys, *arguments, "--blocks", "6", "--seed", str(seed))
        hits = measure(requests, 6, BLOCK, "random", seed)
        assert report == {"trace": trace, **vars(hits), "hit_rate": hits.hit_tokens / hits.prompt_tokens, "seed": seed}
        found.add(report["hit_tokens"])
    assert len(found) > 1
    assert report_of(capsys, *arguments, "--seed", "3")[0]["seed"] is None  # nothing is evicted


@pytest.mark.parametrize("name", SHARED_WORKLOADS)
def test_hits_of_prompts_made_for_the_purpose(name: str, capsys: Capture) -> None:
    """Catches another load than its name says, a seed that does not reach it, and blocks of another size."""
    for seed, block_size, options in ((0, 16, []), (7, 32, ["--seed", "7", "--block-size", "32"])):
        report, _ = report_of(capsys, "hits", name, "--requests", "40", *options)
        load = [
            (each.prompt_len, each.hash_ids) for each in hashed(islice(SHARED_WORKLOADS[name](seed), 40), block_size)
        ]
        assert report == {"trace": name} | expected_hits(load, block_size, "lru", math.inf) | {"seed": seed}


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_closed_streams_swallow_what_they_are_given(closed: str, trace: str) -> None:
    """Catches a message that lands behind the JSON because its own stream is closed, and an error over the flush of a
    stream that is not there.
    """
    command = [
        sys.executable,
        "-m",
        "pagedattn_lab",
        "hits",
        trace,
        "--block-size",
        str(BLOCK),
        "--blocks",
        "5",
        "--json",
    ]
    number = {"stdout": 1, "stderr": 2}[closed]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=lambda: os.close(number))
    assert result.returncode == 0
    if closed == "stdout":
        assert result.stdout == "" and result.stderr.startswith("pagedattn-lab hits: refused 1 of")
        assert result.stderr.count("\n") == 1
    else:
        assert strictly(result.stdout) == {"trace": trace} | expected_hits(LOAD, BLOCK, "lru", 5)


LETTERS = "abcdefghijklmnopqrstuvwxyz .!"
STOPS = "at"
CHAIN = ["z!", "yz!", "xyz!", "wxyz!"]
"""Tokens of several letters: each but the first is a letter before the one above."""

HIDDEN, LAYERS, HEADS, KV_HEADS = 32, 2, 4, 2
SHAPE = KVShape(LAYERS, KV_HEADS, HIDDEN // HEADS, "float32")
PROMPT = "which page holds my tokens"
PREFIX = "answer as a pirate would "
MAX_TOKENS = 12


class Small(NamedTuple):
    """A saved model, and the same in memory."""

    folder: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    @property
    def stop(self) -> set[int]:
        return {*map(LETTERS.index, STOPS)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A random model of letters, so far from uniform that no two scores are close; outputs often end by themselves."""
    folder = tmp_path_factory.mktemp("small")
    vocabulary = {token: number for number, token in enumerate([*LETTERS, *CHAIN])}
    tokenizer = Tokenizer(BPE(vocabulary, [(token[0], token[1:]) for token in CHAIN]))
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=HIDDEN, intermediate_size=HIDDEN, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, initializer_range=0.2, pad_token_id=0,
        eos_token_id=[*map(LETTERS.index, STOPS)], bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return Small(str(folder), *models.load(str(folder)))


class Run(NamedTuple):
    """Settings of one command."""

    block_size: int
    options: tuple[str, ...]

    def arguments(self, small: Small, prompt: str = PROMPT) -> list[str]:
        return [
            "generate", prompt, "--model", small.folder, "--max-tokens", str(MAX_TOKENS), "--block-size",
            str(self.block_size), *self.options,
        ]  # fmt: skip


def tokens_of(report: dict[str, Any]) -> list[list[int]]:
    return [output["tokens"] for output in report["outputs"]]


def most_used(prompt_len: int, lengths: Sequence[int], block_size: int) -> tuple[int, int]:
    """Blocks when most were in use, and their empty slots, of outputs that share the prompt's full blocks only.

    An output of ``length`` tokens computes all but its last, one a step.
    """
    full, used, empty = prompt_len // block_size, math.ceil(prompt_len / block_size), -prompt_len % block_size
    for step in range(1, max(lengths)):
        running = sum(length > step for length in lengths)
        now = full + running * (math.ceil((prompt_len + step) / block_size) - full)
        if now >= used:
            used, empty = now, running * (-(prompt_len + step) % block_size)
    return used, empty


def memory_of(used: int, empty: int, block_size: int) -> dict[str, Any]:
    """What a report says of its memory."""
    return {
        "block_size": block_size,
        "blocks_used": used,
        "cached_tokens": used * block_size - empty,
        "empty_slots": empty,
        "bytes": used * block_size * SHAPE.bytes_per_token,
        "waste": empty / (used * block_size),
    }


def assert_says(report: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {key: report[key] for key in expected} == expected


def assert_scores(small: Small, prompt: Sequence[int], report: dict[str, Any]) -> None:
    """Compare scores with sums over the whole text, without a cache."""
    expected, largest = [], 0.0
    for tokens in tokens_of(report):
        rows = [log_probs_of(small.model, [*prompt, *tokens[:end]]) for end in range(len(tokens))]
        expected.append(sum(row[token].item() for row, token in zip(rows, tokens, strict=True)))
        largest = max(largest, *(row.abs().max().item() for row in rows))
    scores = [output["score"] for output in report["outputs"]]
    assert_scores_close(scores, expected, [*map(len, tokens_of(report))], HIDDEN, largest)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("block_size", [1, 5, len(PROMPT), 64])
def test_samples_share_the_prompt(block_size: int, n: int, small: Small, capsys: Capture) -> None:
    """Catches blocks counted as shared that are not, copies and savings that are not reported or of another width,
    figures of memory that do not add up, and scores of other tokens.
    """
    run = Run(block_size, ("--n", str(n), "--temperature", "1", "--seed", "2"))
    report, said = report_of(capsys, *run.arguments(small))
    prompt = small.encode(PROMPT)
    lengths = [*map(len, tokens_of(report))]
    going_on = sum(length > 1 for length in lengths)  # they fork; the others end with the prompt's own token
    full = len(prompt) // block_size
    assert len(lengths) == n and all(
        tokens[-1] in small.stop or len(tokens) == MAX_TOKENS for tokens in tokens_of(report)
    )
    assert_says(
        report,
        memory_of(*most_used(len(prompt), lengths, block_size), block_size)
        | {
            "text": report["outputs"][0]["text"],
            "model": small.folder,
            "prompt_tokens": len(prompt),
            "output_tokens": sum(lengths),
            "blocks_shared": full if going_on > 1 else 0,
            "blocks_copied": max(0, going_on - 1) if len(prompt) % block_size else 0,
            "blocks_saved": full * max(0, going_on - 1),
            "prefix_hit_tokens": 0,
        },
    )
    assert [output["text"] for output in report["outputs"]] == [*map(small.tokenizer.decode, tokens_of(report))]
    assert_scores(small, prompt, report)
    assert said == ""


def test_outputs_do_not_depend_on_how_many_there_are(small: Small, capsys: Capture) -> None:
    """Catches outputs that draw from one generator, a seed or a temperature that is read and forgotten, and outputs
    that are all the same.
    """

    def draw(*options: str) -> list[list[int]]:
        return tokens_of(report_of(capsys, *Run(4, options).arguments(small))[0])

    few, many = draw("--n", "2"), draw("--n", "5")
    assert few == many[:2] and len({*map(tuple, many)}) > 1 and len({*map(len, many)}) > 1
    assert draw("--n", "2", "--temperature", "0.7", "--seed", "0") == few != draw("--n", "2", "--temperature", "1")
    assert draw("--n", "1", "--temperature", "0.7") == few[:1]
    assert draw("--n", "2", "--seed", "1") != few
    assert len(draw("--n", "2", "--seed", str(2**32 - 1))) == 2
    likeliest = greedy(small.model, small.encode(PROMPT), MAX_TOKENS, small.stop)
    assert draw("--n", "3", "--temperature", "0") == [likeliest] * 3
    assert draw() == draw("--temperature", "0") == [likeliest] and likeliest not in few


SEARCHES = {
    (): {},
    ("--length-penalty", "0"): {"length_penalty": 0.0},
    ("--length-penalty", "3"): {"length_penalty": 3.0},
    ("--length-penalty=-2",): {"length_penalty": -2.0},
    ("--early-stopping", "no"): {"early_stopping": False},
    ("--early-stopping", "yes"): {"early_stopping": True},
    ("--early-stopping", "never"): {"early_stopping": "never"},
}
"""Options of a beam search, and the same for transformers."""


def search(small: Small, prompt: Sequence[int], num_beams: int, block_size: int, **rest: Any) -> dict[str, Any]:
    """What a report says of a search: its tables are watched, its sharing is counted from its genealogy alone."""
    genealogy, used = [], [math.ceil(len(prompt) / block_size)]

    def watch(tables: Sequence[BlockTable], parents: Sequence[int], _: int) -> None:
        genealogy.append([*parents])
        used.append(len({block_id for table in tables for block_id in table.block_ids}))

    engine = EngineCore(ModelRunner(small.model, 200, block_size))
    beam_search(engine, Request("Ada", prompt), num_beams, MAX_TOKENS, stop_token_ids=small.stop, on_step=watch, **rest)
    sharing = count(len(prompt), genealogy, block_size)
    return {
        "blocks_used": max(used),
        "blocks_shared": sharing.most_shared,
        "blocks_copied": sharing.copied,
        "blocks_saved": sharing.most_saved,
    }


@pytest.mark.parametrize(("n", "block_size"), [(1, 4), (2, 3), (4, 5)])
def test_beams_equal_those_of_transformers(n: int, block_size: int, small: Small, capsys: Capture) -> None:
    """Catches an option that does not reach the search or is translated into another, outputs that are not the best,
    scores under other outputs, and blocks that do not follow from which beam continued which.
    """
    num_beams, prompt, results = 4, small.encode(PROMPT), {}
    largest = small.model(torch.tensor([prompt])).logits.abs().max().item()
    for options, rest in SEARCHES.items():
        run = Run(block_size, ("--beams", str(num_beams), "--n", str(n), *options))
        report, said = report_of(capsys, *run.arguments(small))
        sequences, scores = transformers_beams(small.model, prompt, num_beams, MAX_TOKENS, small.stop, **rest)
        assert tokens_of(report) == sequences[:n] and said == ""
        power = rest.get("length_penalty", 1.0)
        lengths = [*map(len, sequences[:n])]
        assert_scores_close(
            [output["score"] for output in report["outputs"]], scores[:n], lengths, HIDDEN, largest, power
        )
        assert_says(report, search(small, prompt, num_beams, block_size, **rest) | {"output_tokens": sum(lengths)})
        results[options] = [*map(tuple, sequences)]
    by_default = results[()]
    assert by_default == results["--early-stopping", "no"] != results["--early-stopping", "yes"]
    assert by_default != results["--early-stopping", "never"]
    assert len({tuple(result) for result in results.values()}) >= 4, "options make no difference"


@pytest.fixture
def prefix_file(tmp_path: Path) -> str:
    path = tmp_path / "prefix.txt"
    path.write_text(PREFIX)
    return str(path)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each step of a model computes."""
    steps: list[int] = []
    execute = ModelRunner.execute
    monkeypatch.setattr(
        ModelRunner,
        "execute",
        lambda self, tokens, *rest: steps.append(len(tokens)) or execute(self, tokens, *rest),
    )
    return steps


@pytest.mark.parametrize("block_size", [1, 4, 5, len(PREFIX), len(PREFIX) + 1])
def test_a_shared_prefix_changes_no_output(
    block_size: int, small: Small, prefix_file: str, computed: list[int], capsys: Capture
) -> None:
    """Catches keys of another text, a hit that is computed again or not counted, a part of a block that is found, and
    the request that computed the prefix left out.
    """
    prompt, hit_blocks = small.encode(PREFIX + PROMPT), len(PREFIX) // block_size
    likeliest = greedy(small.model, prompt, MAX_TOKENS, small.stop)
    whole, _ = report_of(capsys, *Run(block_size, ()).arguments(small, PREFIX + PROMPT))
    computed.clear()
    report, said = report_of(capsys, *Run(block_size, ("--shared-prefix", prefix_file)).arguments(small))
    assert tokens_of(report) == tokens_of(whole) == [likeliest] and said == ""
    assert computed[:2] == [len(PREFIX), len(prompt) - hit_blocks * block_size]
    assert computed[2:] == [1] * (len(likeliest) - 1)
    assert_says(
        report,
        memory_of(*most_used(len(prompt), [len(likeliest)], block_size), block_size)
        | {
            "prompt_tokens": len(prompt),
            "prefix_hit_tokens": hit_blocks * block_size,
            "blocks_shared": hit_blocks,
            "blocks_copied": 0,
            "blocks_saved": hit_blocks,
        },
    )


@pytest.mark.parametrize("block_size", [4, 5])
def test_samples_and_beams_behind_a_shared_prefix(
    block_size: int, small: Small, prefix_file: str, capsys: Capture
) -> None:
    """Catches outputs that a hit changes, and blocks that the request that computed the prefix shares counted twice or
    not at all.
    """
    hit_blocks = len(PREFIX) // block_size
    for options in (("--n", "3"), ("--beams", "3", "--n", "3"), ("--temperature", "1")):
        whole, _ = report_of(capsys, *Run(block_size, options).arguments(small, PREFIX + PROMPT))
        report, _ = report_of(capsys, *Run(block_size, (*options, "--shared-prefix", prefix_file)).arguments(small))
        assert tokens_of(report) == tokens_of(whole)
        # Outputs share what they share without it, a longer stretch than the prefix; a further table names the prefix.
        several = options != ("--temperature", "1")
        assert (whole["blocks_shared"] > hit_blocks) is several
        expected = {
            "blocks_shared": whole["blocks_shared"] if several else hit_blocks,
            "blocks_saved": whole["blocks_saved"] + hit_blocks,
            "prefix_hit_tokens": hit_blocks * block_size,
        }
        same = ("blocks_copied", "blocks_used", "cached_tokens", "bytes", "prompt_tokens", "output_tokens")
        assert_says(report, expected | {key: whole[key] for key in same})


def test_a_prefix_that_the_prompt_is_too_short_for(small: Small, tmp_path: Path, capsys: Capture) -> None:
    """Catches too few blocks for a prefix of more tokens than the prompt has: the words behind it join its last
    letters to one token.
    """
    path = tmp_path / "prefix.txt"
    path.write_text("abwxyz", encoding="utf-8-sig")  # a byte order mark is no part of the text
    prefix, prompt = small.encode("abwxyz"), small.encode("abwxyz!")
    assert (len(prefix), len(prompt)) == (6, 3) and prefix[:2] == prompt[:2]
    options = ("--shared-prefix", str(path), "--max-tokens", "1")
    report, _ = report_of(capsys, *Run(1, options).arguments(small, "!"))
    assert tokens_of(report) == [greedy(small.model, prompt, 1)]
    assert_says(report, {"prompt_tokens": 3, "prefix_hit_tokens": 2, "blocks_shared": 2, "blocks_saved": 2})
    assert main(Run(1, options).arguments(small, "!")) == 0
    assert "\n2 prompt tokens found in the cache, in full blocks of a shared prefix of 2\n" in capsys.readouterr().out


def test_a_shared_prefix_is_the_system_message(small: Small, prefix_file: str, tmp_path: Path, capsys: Capture) -> None:
    """Catches a prefix that stands in front of the chat template, one that ends with the file's last word although the
    template goes on alike for all, and a template without system messages that answers without the prefix.
    """
    tokenizer = AutoTokenizer.from_pretrained(small.folder)
    for template, text in (
        (
            "{% for each in messages %}{{ each.role }} {{ each.content }} {% endfor %}",
            f"system {PREFIX} user {PROMPT} ",
        ),
        ("{{ raise_exception('no system message') }}", None),
    ):
        folder = shutil.copytree(small.folder, tmp_path / "talks", dirs_exist_ok=True)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        arguments = Run(4, ("--shared-prefix", prefix_file)).arguments(small._replace(folder=str(folder)))
        if text is None:
            assert_one_line(capsys, arguments, 1, "no system message")
        else:
            report, _ = report_of(capsys, *arguments)
            assert tokens_of(report) == [greedy(small.model, small.encode(text), MAX_TOKENS, small.stop)]
            in_front = text.index(PROMPT)
            assert_says(report, {"prompt_tokens": len(text), "prefix_hit_tokens": in_front // 4 * 4})


def test_a_prompt_that_ends_with_a_cached_block(small: Small, tmp_path: Path, capsys: Capture) -> None:
    """Catches a prompt found whole, of which nothing is left to compute."""
    path = tmp_path / "prefix.txt"
    path.write_text("abcde")
    report, _ = report_of(capsys, *Run(3, ("--shared-prefix", str(path))).arguments(small, "c"))
    assert_says(report, {"prompt_tokens": 6, "prefix_hit_tokens": 3})


@pytest.mark.parametrize(
    "options", [("--n", "3"), ("--temperature", "1"), ("--beams", "2"), ("--beams", "3", "--n", "2")], ids=" ".join
)
@pytest.mark.parametrize("is_behind_prefix", [False, True])
def test_text_says_what_json_says(
    options: tuple[str, ...], is_behind_prefix: bool, small: Small, prefix_file: str, capsys: Capture
) -> None:
    """Catches outputs that are swapped, dropped or not numbered, and figures under other names than in JSON."""
    run = Run(4, (*options, *(("--shared-prefix", prefix_file) if is_behind_prefix else ())))
    report, _ = report_of(capsys, *run.arguments(small))
    outputs = report["outputs"]
    assert main(run.arguments(small)) == 0
    captured = capsys.readouterr()
    texts = [output["text"] for output in outputs]
    if len(outputs) > 1:
        texts = [f"[{number}] score {each['score']:.2f}\n{each['text']}" for number, each in enumerate(outputs, 1)]
    new = f"{report['output_tokens']} new" + (f" in {len(outputs)} outputs" if len(outputs) > 1 else "")
    account = (
        f"{report['prompt_tokens']} prompt tokens, {new}\n{report['cached_tokens']} cached in {report['blocks_used']} "
        f"blocks of 4: {report['bytes'] / 1024:.4g} KiB, {100 * report['waste']:.1f}% of that empty slots"
    )
    found = f"{report['prefix_hit_tokens']} prompt tokens found in the cache, in full blocks of a shared prefix of "
    blocks = counted(report["blocks_shared"], "block")
    shared = f"{blocks} shared, {report['blocks_copied']} copied, {report['blocks_saved']} saved"
    last = [account, *([f"{found}{len(PREFIX)}"] if is_behind_prefix else []), shared]
    assert captured.out.split("\n\n") == [*texts, "\n".join(last) + "\n"] and captured.err == ""


@given(st.integers(1, 40), st.integers(2, 40), st.integers(1, 5), st.integers(1, 9), st.integers(0, 60))
def test_the_pool_is_just_large_enough(
    prompt_len: int, max_tokens: int, width: int, block_size: int, prefix_len: int
) -> None:
    """Catches memory for the last token of an output, which needs no slot, for a copy that nobody makes, and none for
    a prefix that is longer than all the rest.
    """
    pool = BlockPool(1000, block_size)
    tables = [BlockTable(pool)]
    tables[0].append_tokens(prompt_len)
    tables = reorder(tables, [0] * width)
    for _ in range(max_tokens - 1):
        for table in tables:
            table.append_tokens(1)
        take_copies(tables)
    null_block = 1
    enough = null_block + max(math.ceil(prefix_len / block_size), pool.num_used_blocks)
    assert generate._num_blocks(prefix_len, prompt_len, max_tokens, width, block_size) == enough


ROW = '{"timestamp": 0, "input_length": 100, "output_length": 50, "hash_ids": [0]}'
FILES = {
    "empty": b"",
    "blank": b" \n\n",
    "latin1.txt": "caf\u00e9".encode("latin-1"),
    "prefix.txt": PREFIX.encode(),
    "load.jsonl": mooncake(LOAD).encode(),
    "cut.jsonl.gz": gzip.compress(mooncake(LOAD).encode())[:-9],
    "mixed.jsonl": mooncake([(10, (0, 1, 2)), (9, (0, 1))]).encode(),
    "binary": bytes(range(256)),
    "azure.csv": AZURE.encode(),
    "page.html": b"<!DOCTYPE html>",
    "bad.json": f"[{ROW}, 7]".encode(),
    "plain.jsonl": b'{"timestamp": 0, "input_length": 100, "output_length": 50}\n',
    "cut.jsonl": f"{ROW}\n{ROW[:-9]}".encode(),
}
READS = "hits reads JSON objects with timestamp, input_length, output_length and hash_ids"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["hits"], 2, "required: TRACE"),
        *((["hits", name], 2, "is neither a file nor one of chat, system-prompts") for name in ("missing", ".", "")),
        *((["hits", name], 1, f"{name}: the file is empty; {READS}") for name in ("empty", "blank")),
        *((["waste", "--workload", name], 1, f"{name}: the file is empty") for name in ("empty", "blank")),
        (
            ["hits", "binary"],
            1,
            f"binary: this is binary, or UTF-16 without a byte order mark: save it as text in UTF-8; {READS}",
        ),
        (["hits", "page.html"], 1, f"page.html: this is a web page or XML: download the file itself; {READS}"),
        (["waste", "--workload", "page.html"], 1, "page.html: this is a web page or XML: download the file itself"),
        (["hits", "cut.jsonl.gz"], 1, f"cut.jsonl.gz: the gzip file is cut off: fetch it again; {READS}"),
        (["waste", "--workload", "cut.jsonl.gz"], 1, "cut.jsonl.gz: the gzip file is cut off: fetch it again"),
        (["hits", "bad.json"], 1, f"bad.json: item 2: not a JSON object; {READS}"),
        (
            ["hits", "azure.csv"],
            1,
            "azure.csv has no hash_ids, which tell prompts that begin alike: give JSON objects with",
        ),
        (
            ["hits", "prefix.txt"],
            1,
            f"line of a CSV must name TIMESTAMP, ContextTokens, GeneratedTokens, with commas between; {READS}",
        ),
        (
            ["hits", "mixed.jsonl", "--block-size", "4"],
            1,
            "request 1 has an id for its last block, which is not full in blocks of 4, and request 2 has none",
        ),
        (["hits", "cut.jsonl"], 1, "cut.jsonl: line 2: not JSON"),
        (["hits", "plain.jsonl"], 1, "plain.jsonl has no hash_ids"),
        (["hits", "load.jsonl"], 1, "request 1: 3 hash_ids for 10 tokens in blocks of 512"),
        (["hits", "load.jsonl", "--block-size", "3"], 1, "--block-size says how many tokens a block has"),
        *(
            (["hits", "chat", "--blocks", number], 2, f"{number!r} is not a whole number of at least 1, nor unlimited")
            for number in ("0", "-1", "abc", "1.5", "5_0", "\u0663", " 5", "all", "inf", "")
        ),
        (["hits", "chat", "--policy", "lfu"], 2, "invalid choice: 'lfu'"),
        *((["hits", "chat", "--block-size", number], 2, "of at least 1") for number in ("0", "1_6")),
        (["hits", "chat", "--requests", "0"], 2, "'0' is not a whole number of at least 1"),
        *(
            ([*command, "--seed", number], 2, f"{number!r} is not a whole number from 0 to 4294967295")
            for command in (["hits", "chat"], ["waste"], ["generate", "x", "--n", "3"])
            for number in ("-1", "1.5", str(2**32), "99999999999999999999", "1_0", "\u0663")
        ),
        *((["generate", "x", option, "0"], 2, "of at least 1") for option in ("--n", "--beams", "--max-tokens")),
        (["generate", "x", "--n", "2.0"], 2, "'2.0' is not a whole number of at least 1"),
        (["generate", "x", "--n", "3", "--beams", "2"], 2, "--n 3 exceeds --beams 2"),
        (["generate", "x", "--beams", "2", "--temperature", "1"], 2, "--beams leaves nothing to chance"),
        (["generate", "x", "--beams", "2", "--temperature", "0"], 2, "--beams leaves nothing to chance"),
        (["generate", "x", "--temperature=-0.5"], 2, "'-0.5' is below 0"),
        *(
            (["generate", "x", *beams, f"{option}={number}"], 2, f"{number!r} is not a finite number")
            for option, beams in (("--temperature", ()), ("--length-penalty", ("--beams", "2")))
            for number in ("nan", "inf", "-inf", "1e999", "warm", "1_0", "\u0663", "")
        ),
        (["generate", "x", "--length-penalty", "0"], 2, "--length-penalty is for beam search: give --beams too"),
        (["generate", "x", "--early-stopping", "no"], 2, "--early-stopping is for beam search: give --beams too"),
        (["generate", "x", "--beams", "2", "--early-stopping", "maybe"], 2, "invalid choice: 'maybe'"),
        (["generate", "x", "--shared-prefix", "missing"], 2, "'missing' cannot be read: No such file or directory"),
        (["generate", "x", "--shared-prefix", "."], 2, "'.' cannot be read: Is a directory"),
        *((["generate", "x", "--shared-prefix", name], 2, f"{name!r} is empty") for name in ("empty", "blank")),
        (["generate", "x", "--shared-prefix", "latin1.txt"], 2, "'latin1.txt' is not a file of valid UTF-8"),
        (["generate", "x", "--shared-prefix", "prefix.txt", "--model", "missing/model"], 1, "missing/model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_refused(
    arguments: list[str], status: int, message: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a wrong option that is taken for another, a file's fault told in terms of another format, an option that
    means nothing and is accepted in silence, tracebacks, and a wrong exit status.
    """
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_one_line(capsys, arguments, status, message)


@pytest.mark.parametrize(("options", "longest"), [((), ""), (("--shared-prefix",), " or the shared prefix")])
def test_too_long_for_the_model(
    options: tuple[str, ...], longest: str, small: Small, prefix_file: str, capsys: Capture
) -> None:
    """Catches positions past the model's last, and advice about a prefix that nobody gave, or none about one."""
    most = small.model.config.max_position_embeddings
    given = [*options, *([prefix_file] if options else [])]
    prompt_len = len(small.encode((PREFIX if options else "") + PROMPT))
    command = ["generate", PROMPT, "--model", small.folder, *given, "--max-tokens", str(most - prompt_len + 1)]
    assert_one_line(capsys, command, 1, f"exceed the model's {most}: shorten the prompt{longest} or lower --max-tokens")


@pytest.mark.parametrize("penalty", ["1000", "-1000000"])
def test_a_penalty_past_all_scores(penalty: str, small: Small, capsys: Capture) -> None:
    """Catches a traceback, or half a report, for a power that no score can be divided by."""
    run = Run(4, ("--beams", "2", f"--length-penalty={penalty}"))
    assert_one_line(capsys, run.arguments(small), 1, f"pagedattn-lab generate: length_penalty is {float(penalty)}: ")


def test_a_refusal_by_the_library_is_passed_on(small: Small, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a sentence of the library's that is swallowed, or reported as success or as wrong usage."""

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("length_penalty is 1000.0:\n  give a smaller one")

    monkeypatch.setattr(beam_search_module, "beam_search", refuse)
    message = "pagedattn-lab generate: length_penalty is 1000.0: give a smaller one\n"
    assert_one_line(capsys, Run(4, ("--beams", "2")).arguments(small), 1, message)
