"""A second right answer to every exercise of chapter 09, found by another way than the one that the book shows."""

from __future__ import annotations

from itertools import chain


def schedule_step(running, waiting, budget, max_num_seqs, num_free_blocks, block_size, keep_free):
    """Count blocks as a whole, anew each time, and never keep how many are free."""

    def blocks(tokens):
        return -(-tokens // block_size)

    total = num_free_blocks + sum(blocks(computed) for _, _, computed in running)
    known = {name: tokens for name, tokens, _ in running}
    held = {name: computed for name, _, computed in running}  # tokens that have room, in the order of admission
    step, lost = {}, []

    def used():
        return sum(map(blocks, held.values()))

    for name, start in list(held.items()):
        left = budget - sum(step.values())
        if name in held and left > 0:
            held[name] = min(known[name], start + left)
            while name in held and used() > total:
                lost.append(list(held)[-1])
                del held[lost[-1]]
            if name in held:
                step[name] = held[name] - start
    queue = [] if lost else list(waiting)
    while queue and sum(step.values()) < budget and len(held) < max_num_seqs:
        name, tokens = queue.pop(0)
        if used() + blocks(tokens) + (keep_free if held else 0) > total:
            return step, lost
        step[name] = held[name] = min(tokens, budget - sum(step.values()))
    return step, lost


def diagnose(log, budget, max_num_seqs):
    """Look back from each preemption to the one before, and at each step by itself."""
    stays = []  # what a victim computed in each step since its last preemption
    for end, (_, preempted, _) in enumerate(log):
        for name in preempted:
            begin = max((at for at in range(end) if name in log[at][1]), default=0)
            stays.append([tokens[name] for tokens, _, _ in log[begin:end] if name in tokens])
    reasons = [
        "max_num_batched_tokens"
        if sum(tokens.values()) >= budget
        else "max_num_seqs"
        if len(tokens) >= max_num_seqs
        else "num_blocks"
        for tokens, _, num_waiting in log
        if num_waiting > 0
    ]
    names = ("max_num_seqs", "num_blocks", "max_num_batched_tokens")
    return {
        "change": max(names, key=reasons.count),
        "held_up": {name: reasons.count(name) for name in names},
        "recomputed": sum(chain.from_iterable(stays)),
        "too_early": len([stay for stay in stays if len(stay) < 3]),
    }


def share_out(prompts, plan, budget):
    """Keep lists of what is left to compute, each token by itself."""
    known, to_do = dict(prompts), {name: list(range(prompt)) for name, prompt in prompts.items()}
    steps = []
    for running, preempted in plan:
        to_do |= {name: list(range(known[name])) for name in preempted}
        step = {}
        for name in running:
            chunk = to_do[name][: budget - sum(step.values())]
            if not chunk:
                continue
            step[name] = len(chunk)
            del to_do[name][: len(chunk)]
            if not to_do[name]:
                to_do[name] = [known[name]]
                known[name] += 1
        steps.append(step)
    return steps, known


def next_to_run(waiting, now, patience):
    """Whoever has waited as long as its priority asks comes first, the oldest first; until then, priorities rule."""
    overdue = [name for name, priority, arrival in waiting if now - arrival >= patience * priority]
    return overdue[0] if overdue else min(waiting, key=lambda each: each[1])[0]
