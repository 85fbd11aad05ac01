"""Write down what vLLM's own ``KVCacheManager`` does with several groups, for ``test_vllm_groups.py`` to compare.

Not part of the tests, which need no vLLM. To record anew, in an environment that has vLLM (a CPU build will do):

    VLLM_TARGET_DEVICE=cpu python tests/record_vllm_groups.py [FIRST STOP FILE]

Without arguments it records seeds 0 to 59 into ``vllm_groups.json``.

A history is how the manager was made, and a list of operations. Each is its name, its arguments, the events that it
caused, the page tables of the request that it was about, and last the free queue after it. Tokens are digits in a text.
An event names blocks by numbers that count the different hashes of a history, since hashes are vLLM's own.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

TRANSCRIPT = Path(__file__).parent / "vllm_groups.json"
SHAPES = ("FW", "WF", "FWW", "WFV", "FFW", "WV", "FVWV", "LW", "LFW", "WWFF", "F", "W")
"""Kinds of groups: full attention, latents, a window, and a second width of window."""


def draw_tokens(rng: random.Random, texts: list[list[int]], block_size: int) -> list[int]:
    """Make a prompt that begins as others do, and ends on or off the end of a block."""
    longest = len(texts[0])
    shared = rng.choice([rng.randint(1, longest), block_size * rng.randint(1, longest // block_size)])
    own = rng.choice([0, 1, 1, rng.randint(1, 2 * block_size + 1)])
    return rng.choice(texts)[:shared] + [rng.randint(0, 1) for _ in range(own)]


def draw_settings(rng: random.Random, seed: int) -> dict[str, Any]:
    """Choose groups, sizes and limits; a window may end anywhere in a block, and may be shorter than one."""
    shape, block_size = SHAPES[seed % len(SHAPES)], rng.choice([1, 2, 3, 4, 16])
    width, other = rng.sample(range(1 if seed % 7 == 0 else 2, 4 * block_size + 3), 2)
    extra = rng.choice([0, 0, 0, 0, 2])
    groups = [
        ["F"] if kind == "F" else ["L"] if kind == "L" else [width if kind == "W" else other, extra] for kind in shape
    ]
    has_window = "W" in shape
    return {
        "groups": groups,
        "block_size": block_size,
        "num_blocks": rng.randint(7, 24) * len(groups) + 1,
        "enable_prefix_caching": seed % 10 > 0,
        "retention_interval": rng.choice([0, 0, 0, None, block_size, 3 * block_size]) if has_window else 0,
        "max_in_flight_tokens": rng.choice([None, 1, 3, 8, 40]),
    }  # fmt: skip


def vllm_groups(settings: dict[str, Any]) -> list[Any]:
    """Make vLLM's groups of such layers."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, MLAAttentionSpec, SlidingWindowSpec

    size: dict[str, Any] = {
        "block_size": settings["block_size"],
        "num_kv_heads": 1,
        "head_size": 8,
        "dtype": torch.float32,
    }
    groups = []
    for number, (kind, *extra) in enumerate(settings["groups"]):
        if kind == "F":
            spec: Any = FullAttentionSpec(**size)
        elif kind == "L":
            spec = MLAAttentionSpec(**size)
        else:
            spec = SlidingWindowSpec(**size, sliding_window=kind, extra_retained_tokens=extra[0])
        groups.append(KVCacheGroupSpec([f"layers.{number}"], spec))
    return groups


class Recorder:
    """One manager of vLLM's, and the list of what has been done to it."""

    def __init__(self, seed: int) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.core.kv_cache_utils import init_none_hash
        from vllm.v1.kv_cache_interface import KVCacheConfig

        init_none_hash(sha256)
        self.rng = random.Random(seed)
        self.settings = draw_settings(self.rng, seed)
        length = 6 * self.settings["block_size"] + 1
        self.texts = [[number] + [self.rng.randint(0, 1) for _ in range(length)] for number in (0, 0, 1)]
        self.block_size, caching = self.settings["block_size"], self.settings["enable_prefix_caching"]
        self.manager = KVCacheManager(
            KVCacheConfig(
                self.settings["num_blocks"],
                [],
                vllm_groups(self.settings),
                prefix_cache_retention_interval=self.settings["retention_interval"],
            ),
            max_model_len=8192,
            max_in_flight_tokens=self.settings["max_in_flight_tokens"],
            scheduler_block_size=self.block_size,
            hash_block_size=self.block_size,
            enable_caching=caching,
            enable_kv_cache_events=caching,
        )
        self.numbers: dict[Any, int] = {}
        self.requests: dict[str, Any] = {}
        self.operations: list[list] = []
        self.num_made = 0

    def write(self, name: str | None, *operation: Any) -> None:
        queue = self.manager.block_pool.free_block_queue.get_all_free_blocks()
        events = [self.plain(event) for event in self.manager.take_events()]
        tables = self.manager.get_block_ids(name) if name in self.requests else []
        self.operations.append([*operation, events, tables, [block.block_id for block in queue]])

    def plain(self, event: Any) -> list:
        """Name the fields that are the same everywhere, in their order, after the kind of event."""
        fields: list[Any] = [type(event).__name__]
        if fields[0] == "AllBlocksCleared":
            return fields
        fields.append([self.number(block_hash) for block_hash in event.block_hashes])
        if fields[0] == "BlockStored":
            parent = event.parent_block_hash
            fields += [None if parent is None else self.number(parent), text(event.token_ids), event.block_size]
            fields.append(event.extra_keys)
        return [*fields, event.medium, event.group_idx]

    def number(self, block_hash: Any) -> int:
        return self.numbers.setdefault(block_hash, len(self.numbers))

    def admit(self) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request

        rng = self.rng
        name, salt = f"r{self.num_made}", rng.choice([None] * 7 + ["a"])
        tokens = draw_tokens(rng, self.texts, self.block_size)
        self.num_made += 1
        request = Request(
            request_id=name,
            prompt_token_ids=tokens,
            sampling_params=SamplingParams(max_tokens=1000),
            pooling_params=None,
            cache_salt=salt,
            block_hasher=get_request_block_hasher(self.block_size, sha256),
        )
        found, num_hit, request.shared_prefix_boundary = self.manager.get_computed_blocks(request)
        rest = len(tokens) - num_hit
        num_new = rest if rng.random() < 0.6 else rng.randint(1, rest)  # all of the prompt, or a chunk
        num_new = min(num_new, self.settings["max_in_flight_tokens"] or num_new)
        must_fit = rng.random() < 0.5
        blocks = self.manager.allocate_slots(request, num_new, num_hit, found, full_sequence_must_fit=must_fit)
        if blocks is not None:
            request.num_computed_tokens = num_hit + num_new
            self.requests[name] = request
        found_ids, junction = found.get_block_ids(), request.shared_prefix_boundary
        self.write(name, "admit", name, text(tokens), salt, found_ids, junction, num_new, must_fit, ids(blocks))

    def step(self) -> None:
        name = self.rng.choice(list(self.requests))
        request = self.requests[name]
        appended, drafts = [], 0
        if request.num_computed_tokens == request.num_tokens:
            appended = [self.rng.choice([0, 0, 1]) for _ in range(self.rng.choice([1, 1, 1, 3]))]
            request.append_output_token_ids(appended)
        rest = request.num_tokens - request.num_computed_tokens
        num_new = min(self.rng.randint(1, rest), self.settings["max_in_flight_tokens"] or rest)
        if num_new == rest:
            drafts = self.rng.choice([0, 0, 0, 1, 3])
            drafts = min(drafts, (self.settings["max_in_flight_tokens"] or 1000) - num_new)
        blocks = self.manager.allocate_slots(request, num_new + drafts)
        accepted: list[int] = []
        preempted = blocks is None and self.rng.random() < 0.5
        if preempted:
            self.manager.free(request)
            del self.requests[name]
        elif blocks is not None:
            accepted = [self.rng.randint(0, 1) for _ in range(self.rng.randint(0, drafts))]
            if accepted:
                request.append_output_token_ids(accepted)
            request.num_computed_tokens += num_new + len(accepted)
        self.write(
            name, "step", name, text(appended), num_new + drafts, num_new, text(accepted), ids(blocks), preempted
        )

    def free(self) -> None:
        name = self.rng.choice(list(self.requests))
        self.manager.free(self.requests.pop(name))
        self.write(name, "free", name)

    def reset(self) -> None:
        self.write(None, "reset", self.manager.reset_prefix_cache())

    def run(self, num_operations: int) -> dict[str, Any]:
        for _ in range(num_operations):
            chance = self.rng.random()
            if chance < 0.33 or not self.requests:
                self.admit()
            elif chance < 0.76:
                self.step()
            elif chance < 0.99:
                self.free()
            else:
                self.reset()
        while self.requests:
            self.free()
        self.reset()
        return self.settings | {"operations": self.operations}


def text(tokens: list[int]) -> str:
    """Tokens below 10 as digits."""
    return "".join(map(str, tokens))


def ids(blocks: Any) -> list[list[int]] | None:
    """Numbers of the blocks that a call gave in each group, or ``None`` where it gave none."""
    return None if blocks is None else blocks.get_block_ids()


def main(first: int = 0, stop: int = 60, file: str | Path = TRANSCRIPT) -> None:
    """Record managers, sixty of them unless said otherwise."""
    import vllm

    runs = ",\n".join(json.dumps(Recorder(seed).run(120), separators=(",", ":")) for seed in range(first, stop))
    Path(file).write_text(f'{{"vllm": "{vllm.__version__}", "runs": [\n{runs}\n]}}\n')
    print(f"wrote {file}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(*map(int, arguments[:2]), *arguments[2:])
