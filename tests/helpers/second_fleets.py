"""A second right answer to each exercise of chapter 11, found in another way than the first."""

from __future__ import annotations

from collections import Counter
from typing import Any


def window_table(num_tokens: int, block_size: int, window: int, blocks: Any) -> list[int]:
    """Ask of each block whether its last token is one that is read."""
    last_tokens = range(block_size - 1, len(blocks) * block_size, block_size)
    return [block if last + window > num_tokens else 0 for block, last in zip(blocks, last_tokens, strict=True)]


def melting_replica(log: Any, price: int) -> dict[str, Any]:
    """Say of each request by how much the melting replica is dearer, and sort what is left."""
    worst = max(((queue, -replica) for _, _, queues, _ in log for replica, queue in enumerate(queues)), default=(0, 0))
    replica = -worst[1]
    drawn, kinds, begins = [], [], []
    for place in range(len(log)):
        blocks, hits, queues, chosen = log[place]
        others = [other for other in range(len(hits)) if other != replica]
        gain = [price * (queues[replica] - queues[other]) - (hits[replica] - hits[other]) for other in others]
        if chosen != replica or max(gain) <= 0:
            continue
        drawn.append(place)
        begins.append(blocks[0])
        lead = min(hits[replica] - hits[other] for other in others)
        kinds.append(0 if lead > 0 else 1 if lead == 0 else 2)
    if not drawn:
        return {"cause": "load", "prefix": None, "drawn": (), "replica": replica}
    times = Counter(sorted(begins)).most_common(1)[0][0]
    kind = min(range(3), key=lambda each: (-kinds.count(each), each))
    return {"cause": ("hits", "ties", "neither")[kind], "prefix": times, "drawn": tuple(drawn), "replica": replica}


def latent_budget(
    latent: Any, grouped: Any, tensor_parallel_size: int, available: int, block_size: int
) -> dict[str, Any]:
    """Halve the KV heads until one is left, and count blocks by how often they go into what is there."""
    wide = 2 * latent["num_hidden_layers"] * sum(latent[name] for name in ("kv_lora_rank", "qk_rope_head_dim"))
    on_gpus, heads, gpus = {}, grouped["num_key_value_heads"], 1
    while gpus <= 2**12:
        on_gpus[gpus] = 4 * grouped["num_hidden_layers"] * grouped["head_dim"] * heads
        heads, gpus = max(1, heads // 2), gpus * 2
    narrow = on_gpus[tensor_parallel_size]
    fits = [block_size * len(range(2, available // block_size // of_token + 1)) for of_token in (wide, narrow)]
    even = [gpus for gpus, of_token in on_gpus.items() if of_token <= wide]
    return {"even_at": min(even, default=None), "tokens": fits, "bytes_per_token": [wide, narrow]}


def choose(request: Any, fleet: Any) -> int:
    """Follow hits among replicas that have at most four requests more than the one with the fewest."""
    loads = [fleet.load(replica) for replica in range(fleet.num_replicas)]
    allowed = [replica for replica, load in enumerate(loads) if load <= min(loads) + 4]
    return max(allowed, key=lambda replica: (fleet.hit_blocks(replica, request), -loads[replica]))
