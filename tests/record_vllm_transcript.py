"""Write down what vLLM's own ``KVCacheManager`` does with random requests, for ``test_vllm_transcript.py`` to compare.

Not part of the tests, which need no vLLM. To record anew, in an environment that has vLLM (a CPU build will do):

    python tests/record_vllm_transcript.py

Every operation is one list: its name, its arguments, the events that it caused, and last the free queue after it. An
event names blocks by numbers that count the different hashes of a recording, since hashes are vLLM's own.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

TRANSCRIPT = Path(__file__).parent / "vllm_transcript.json"


def draw_tokens(rng: random.Random, block_size: int) -> list[int]:
    """Make a prompt of few different tokens that begins as others do and ends on or off the end of a block."""
    length = rng.choice([rng.randint(1, 3 * block_size + 2), block_size * rng.randint(1, 4)]) + rng.randint(0, 1)
    tokens: list[int] = []
    while len(tokens) < length:
        tokens += [rng.randint(0, 1)] * rng.choice([block_size, block_size, 1])
    return tokens[:length]


class Recorder:
    """One manager of vLLM's, and the list of what has been done to it."""

    def __init__(self, seed: int) -> None:
        import torch
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_manager import KVCacheManager
        from vllm.v1.core.kv_cache_utils import init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

        init_none_hash(sha256)
        self.rng = random.Random(seed)
        self.block_size = self.rng.choice([1, 2, 3, 4, 16])
        self.num_blocks = self.rng.randint(4, 20)
        self.caching = seed % 10 > 0
        spec = FullAttentionSpec(block_size=self.block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
        self.manager = KVCacheManager(
            KVCacheConfig(self.num_blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            max_model_len=8192,
            scheduler_block_size=self.block_size,
            hash_block_size=self.block_size,
            enable_caching=self.caching,
            enable_kv_cache_events=self.caching,
        )
        self.numbers: dict[Any, int] = {}
        self.requests: dict[str, Any] = {}
        self.operations: list[list] = []
        self.num_made = 0

    def write(self, *operation: Any) -> None:
        queue = self.manager.block_pool.free_block_queue.get_all_free_blocks()
        events = [self.plain(event) for event in self.manager.take_events()]
        self.operations.append([*operation, events, [block.block_id for block in queue]])

    def plain(self, event: Any) -> list:
        """Name the fields that are the same everywhere, in their order, after the kind of event."""
        fields: list[Any] = [type(event).__name__]
        if fields[0] == "AllBlocksCleared":
            return fields
        fields.append([self.number(block_hash) for block_hash in event.block_hashes])
        if fields[0] == "BlockStored":
            parent = event.parent_block_hash
            fields += [None if parent is None else self.number(parent), event.token_ids, event.block_size]
            fields.append(event.extra_keys)
        return [*fields, event.medium, event.group_idx]

    def number(self, block_hash: Any) -> int:
        return self.numbers.setdefault(block_hash, len(self.numbers))

    def admit(self) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request

        name, salt = f"r{self.num_made}", self.rng.choice([None, None, None, "a"])
        tokens = draw_tokens(self.rng, self.block_size)
        self.num_made += 1
        request = Request(
            request_id=name,
            prompt_token_ids=tokens,
            sampling_params=SamplingParams(max_tokens=1000),
            pooling_params=None,
            cache_salt=salt,
            block_hasher=get_request_block_hasher(self.block_size, sha256),
        )
        found, num_hit, *_ = self.manager.get_computed_blocks(request)
        rest = len(tokens) - num_hit
        num_new = rest if self.rng.random() < 0.6 else self.rng.randint(1, rest)  # all of the prompt, or a chunk
        blocks = self.manager.allocate_slots(request, num_new, num_hit, found)
        if blocks is not None:
            request.num_computed_tokens = num_hit + num_new
            self.requests[name] = request
        self.write("admit", name, tokens, salt, found.get_block_ids()[0], num_new, ids(blocks))

    def step(self) -> None:
        name = self.rng.choice(list(self.requests))
        request = self.requests[name]
        appended, drafts = [], 0
        if request.num_computed_tokens == request.num_tokens:
            appended = [self.rng.randint(0, 1) for _ in range(self.rng.choice([1, 1, 1, 3]))]
            request.append_output_token_ids(appended)
        rest = request.num_tokens - request.num_computed_tokens
        num_new = self.rng.randint(1, rest)
        if num_new == rest:
            drafts = self.rng.choice([0, 0, 0, 1, 3])
        blocks = self.manager.allocate_slots(request, num_new + drafts)
        accepted: list[int] = []
        if blocks is None and self.rng.random() < 0.5:  # preempt it
            self.manager.free(request)
            del self.requests[name]
        elif blocks is not None:
            accepted = [self.rng.randint(0, 1) for _ in range(self.rng.randint(0, drafts))]
            if accepted:
                request.append_output_token_ids(accepted)
            request.num_computed_tokens += num_new + len(accepted)
        self.write("step", name, appended, num_new + drafts, num_new, accepted, ids(blocks), name not in self.requests)

    def free(self) -> None:
        name = self.rng.choice(list(self.requests))
        self.manager.free(self.requests.pop(name))
        self.write("free", name)

    def reset(self) -> None:
        self.write("reset", self.manager.reset_prefix_cache())

    def run(self, num_operations: int) -> dict[str, Any]:
        for _ in range(num_operations):
            chance = self.rng.random()
            if chance < 0.4 or not self.requests:
                self.admit()
            elif chance < 0.75:
                self.step()
            elif chance < 0.97:
                self.free()
            else:
                self.reset()
        while self.requests:
            self.free()
        self.reset()
        return {
            "num_blocks": self.num_blocks,
            "block_size": self.block_size,
            "enable_prefix_caching": self.caching,
            "operations": self.operations,
        }


def ids(blocks: Any) -> list[int] | None:
    """Numbers of the blocks that a call gave, or ``None`` where it gave none."""
    return None if blocks is None else blocks.get_block_ids()[0]


def main() -> None:
    """Record forty managers."""
    import vllm

    runs = ",\n".join(json.dumps(Recorder(seed).run(50), separators=(",", ":")) for seed in range(40))
    TRANSCRIPT.write_text(f'{{"vllm": "{vllm.__version__}", "runs": [\n{runs}\n]}}\n')
    print(f"wrote {TRANSCRIPT}")


if __name__ == "__main__":
    main()
