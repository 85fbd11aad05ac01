"""A second right answer to every exercise, found by another way than the one that the book shows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import accumulate, chain, count, takewhile
from typing import Any

import torch

from tests.helpers import second_budgets, second_fleets, second_kernels, second_schedules


def bytes_per_token_per_rank(config, tensor_parallel_size, dtype_bytes):
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    dim = config.get("head_dim") or config["hidden_size"] / heads
    ranks_per_head = max(1, tensor_parallel_size / kv_heads)
    return config["num_hidden_layers"] * (kv_heads * ranks_per_head / tensor_parallel_size) * dim * 2 * dtype_bytes


def longest_context(config, memory_bytes, weight_bytes, dtype_bytes):
    """Let the text grow by one token after the other, and every layer pay for it."""
    heads, window = config["num_attention_heads"], config.get("sliding_window")
    dim = config["head_dim"] if "head_dim" in config else config["hidden_size"] // heads
    entry = (dim + dim) * dtype_bytes * config.get("num_key_value_heads", heads)
    kinds = Counter(config.get("layer_types") or {"full_attention": config["num_hidden_layers"]})
    left, tokens = memory_bytes - weight_bytes, 0
    while tokens < config["max_position_embeddings"] - 1:
        growing = kinds["full_attention"] + (kinds["sliding_attention"] if window and tokens < window else 0)
        if growing * entry > left or left < 0:
            break
        left, tokens = left - growing * entry, tokens + 1
    return tokens + 1 if tokens else 0


def positions_processed(prompt_len, output_len, lost_after):
    """Add up stretches: from one loss to the next, all that is known by then is processed once."""
    return sum(prompt_len + end - 1 for end in [*lost_after, output_len])


def compact(regions):
    order = sorted(regions, key=lambda region: region[0])
    starts = [0, *accumulate(size for _, size in order)][: len(order)]
    moved = [size for (old, size), new in zip(order, starts, strict=True) if old != new]
    return [[start, size] for start, (_, size) in zip(starts, order, strict=True)], sum(moved)


def buddy_release(gaps, region, num_slots):
    """Join any two buddies until there are none."""
    free = [*gaps, region]
    while True:
        pairs = [(a, b) for a in free for b in free if a[1] == b[1] and b[0] - a[0] == a[1] and a[0] % (2 * a[1]) == 0]
        if not pairs:
            return sorted(free)
        (low, size), high = pairs[0]
        free = [gap for gap in free if gap not in ((low, size), high)] + [(low, 2 * size)]


def admitted(requests, rule, num_slots, max_model_len):
    def needs(prompt, output):
        reserved = {
            "max": max_model_len,
            "pow2": min(max_model_len, prompt + next(2**k for k in count() if 2**k >= output)),
            "oracle": prompt + output - 1,
        }
        return reserved[rule]

    if not requests or needs(*requests[0]) > num_slots:
        return 0
    return 1 + admitted(requests[1:], rule, num_slots - needs(*requests[0]), max_model_len)


def admit_step(held, new, num_free_blocks, block_size):
    """Append token by token: a block is taken for each token that begins one."""
    granted = []
    for tokens, more in zip(held, new, strict=True):
        taken = sum(position % block_size == 0 for position in range(tokens, tokens + more))
        if taken + sum(granted) > num_free_blocks:
            return granted
        granted.append(taken)
    return granted


def predict_free_order(free, tables, cached):
    """A block is free once the last table that names it has ended."""
    last = {block: number for number, table in enumerate(tables) for block in table}
    queue = list(free)
    for number, table in enumerate(tables):
        back = [block for block in table[::-1] if last[block] == number]
        queue = [b for b in back if b not in cached] + queue + [b for b in back if b in cached]
    return queue


def choose_block_size(lengths, supported, target):
    for size in sorted(supported, reverse=True):
        if sum(lengths) >= target * size * sum(math.ceil(length / size) for length in lengths):
            return size
    return None


def step_slots(block_tables, num_computed, num_scheduled, block_size, padded_len):
    slots = []
    for row, start, number in zip(block_tables, num_computed, num_scheduled, strict=True):
        every = [block * block_size + offset for block in row for offset in range(block_size)]
        slots.extend(every[start : start + number])
    while len(slots) < padded_len:
        slots.append(-1)
    return slots


def owners_of_slot(slot, block_tables, seq_lens, block_size):
    found = []
    for request, (row, length) in enumerate(zip(block_tables, seq_lens, strict=True)):
        slots = [block * block_size + offset for block in row for offset in range(block_size)][:length]
        found += [(request, position) for position, each in enumerate(slots) if each == slot]
    return found


def illegal_blocks(block_tables, seq_lens, block_size):
    """Compare every two entries in use."""
    entries = []
    for request, (row, length) in enumerate(zip(block_tables, seq_lens, strict=True)):
        last = (length - 1) // block_size
        entries += [(row[logical], request, logical, logical == last) for logical in range(last + 1)]
    bad = {block for block, *_ in entries if block == 0}
    for i, (block, _, logical, writes) in enumerate(entries):
        for other, _, place, also in entries[:i]:
            if block == other and (logical != place or writes or also):
                bad.add(block)
    return bad


def append_one(tables, lengths, i, free, block_size):
    owners = Counter(chain.from_iterable(tables))
    logical, offset = divmod(lengths[i], block_size)
    copy = None
    if offset == 0:
        tables[i].append(free[0])
        del free[0]
    elif owners[tables[i][logical]] >= 2:
        copy = [tables[i][logical], free[0]]
        tables[i][logical] = free[0]
        del free[0]
    lengths[i] = lengths[i] + 1
    return copy


def continue_beams(tables, parents):
    counts = Counter(chain.from_iterable(tables))
    children = []
    for parent in parents:
        children.append(tables[parent][:])
        counts.update(tables[parent])
    for table in tables:
        counts.subtract(table)
    return children, [block for block, owners in counts.items() if owners == 0]


def blocks_and_copies(prompt_len, output_len, n, block_size):
    """Write token by token, on plain lists."""
    fresh = count()
    tables = [[next(fresh) for _ in range(0, prompt_len, block_size)]] * n
    tables = [list(table) for table in tables]
    copies = 0
    for position in range(prompt_len, prompt_len + output_len):
        for table in tables:
            if position % block_size == 0:
                table.append(next(fresh))
            elif sum(table[-1] in other for other in tables) > 1:
                table[-1] = next(fresh)
                copies += 1
    return len(set(chain.from_iterable(tables))), copies


def tokens_found(earlier, prompt, block_size):
    def names(tokens) -> Iterator[Any]:
        name: Any = None
        for start in range(0, len(tokens) - block_size + 1, block_size):
            name = (name, *tokens[start : start + block_size])
            yield name

    cached = set(chain.from_iterable(map(names, earlier)))
    hits = len(list(takewhile(cached.__contains__, names(prompt))))
    return min(hits, (len(prompt) - 1) // block_size) * block_size


def eviction_order(requests, num_blocks):
    """Stamp each block with the moment of its return; evict the oldest stamp that nobody holds."""
    clock, stamps = count(), {}
    for hashes in requests:
        held = list(takewhile(stamps.__contains__, hashes))
        for each in hashes[len(held) :]:
            stamps.pop(each, None)  # a copy of it takes its place
        while len(stamps) + len(hashes) - len(held) > num_blocks:
            del stamps[min((each for each in stamps if each not in held), key=stamps.__getitem__)]
        for each in reversed(hashes):
            stamps[each] = next(clock)
    return sorted(stamps, key=stamps.__getitem__)


def block_bytes(parent, tokens, salt):
    parts = [parent, " ".join(map(str, tokens)).encode(), b"" if salt is None else b"+" + salt.encode()]
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def merge_partials(first, second):
    """In terms of logarithms of sums: each part weighs exp(its log-sum - the larger maximum)."""
    maxima, sums, values = (torch.stack(pair) for pair in zip(first, second, strict=True))
    top = maxima.max(dim=0).values
    weights = torch.where(maxima == -torch.inf, torch.zeros_like(maxima), (maxima - top).exp())
    return [top, (weights * sums).sum(dim=0), torch.einsum("ph,phd->hd", weights, values)]


def element_offset(block_table, position, kv_head, dim, block_size, strides):
    logical, slot = divmod(position, block_size)
    return sum(
        index * stride for index, stride in zip((block_table[logical], slot, kv_head, dim), strides, strict=True)
    )


def launch_cost(seq_lens, num_heads, num_kv_heads, head_dim, dtype_bytes, tile):
    programs = [(length, head) for length in seq_lens for head in range(num_heads)]
    rows = {
        (number, kv, position)
        for number, n in enumerate(seq_lens)
        for kv in range(num_kv_heads)
        for position in range(n)
    }
    return {
        "programs": len(programs),
        "longest_loop": max(len(range(0, length, tile)) for length, _ in programs),
        "bytes_requested": sum(length * head_dim * dtype_bytes for length, _ in programs) * 2,
        "bytes_stored": len(rows) * head_dim * dtype_bytes * 2,
    }


def find_again(blocks, ref_cnt, free):
    free[:] = [block for block in free if block not in blocks]
    for block in blocks:
        ref_cnt[block] = ref_cnt[block] + 1


def positions_per_step(prompt_len, events):
    known, cached, steps = prompt_len, 0, []
    for event in events:
        if event == "preempt":
            cached = 0
        else:
            steps.append(range(cached, known))
            cached, known = known, known + 1
    return steps


def reorder(tables, parents, ref_cnt, free):
    children = [tables[parent][:] for parent in parents]
    kept = Counter(chain.from_iterable(children))
    gone = [block for table in tables for block in reversed(table)]
    last = {block: place for place, block in enumerate(gone)}
    free += [block for place, block in enumerate(gone) if not kept[block] and last[block] == place]
    for block in [*gone, *kept]:
        ref_cnt[block] = kept[block]
    tables[:] = children


def blocks_to_compute(hashes, cached_each_time):
    def rest(cached):
        first_gap = next((place for place, each in enumerate(hashes) if each not in cached), len(hashes))
        return tuple(hashes[first_gap:])

    return tuple(map(rest, cached_each_time))


SECOND: dict[str, Callable[..., Any]] = {
    "00.1": lambda prompt, new, size: len(range(0, prompt + new - 1, size)),
    "00.2": lambda memory, per_token, size, tokens: max(
        0, (memory // per_token // size - 1) // len(range(0, tokens, size))
    ),
    "01.1": bytes_per_token_per_rank,
    "01.2": longest_context,
    "01.3": positions_processed,
    "02.1": compact,
    "02.2": buddy_release,
    "02.3": admitted,
    "03.1": admit_step,
    "03.2": predict_free_order,
    "03.3": choose_block_size,
    "03.4": find_again,
    "04.1": step_slots,
    "04.2": owners_of_slot,
    "04.3": illegal_blocks,
    "04.4": positions_per_step,
    "05.1": append_one,
    "05.2": continue_beams,
    "05.3": blocks_and_copies,
    "05.4": reorder,
    "06.1": tokens_found,
    "06.2": eviction_order,
    "06.3": block_bytes,
    "06.4": blocks_to_compute,
    "07.1": merge_partials,
    "07.2": element_offset,
    "07.3": launch_cost,
    "07.4": second_kernels.grouped_decode,
    "07.5": second_kernels.windowed_decode,
    "07.6": second_kernels.padded_decode,
    "07.7": second_kernels.online_decode,
    "08.1": second_kernels.one_read_decode,
    "08.2": second_kernels.merge_splits,
    "08.3": second_kernels.quantised_write,
    "09.1": second_schedules.schedule_step,
    "09.2": second_schedules.diagnose,
    "09.3": second_schedules.share_out,
    "09.4": second_schedules.next_to_run,
    "10.1": second_budgets.log_figures,
    "10.2": second_budgets.why_no_hits,
    "10.3": second_budgets.make_it_fit,
    "10.4": second_budgets.pick_flags,
    "11.1": second_fleets.window_table,
    "11.2": second_fleets.melting_replica,
    "11.3": second_fleets.latent_budget,
    "11.4": second_fleets.choose,
}
