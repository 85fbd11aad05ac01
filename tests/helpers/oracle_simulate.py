"""A server that is slow and plain: one step and one token at a time, in exact fractions, with no code of the library's.

It follows the rules that ``pagedattn_lab.studies.simulate`` states, and keeps its memory as lists of what lies where.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(eq=False)
class Client:
    """One request: where it stands in its life."""

    arrival: Fraction
    prompt_len: int
    output_len: int
    cached: int = 0
    generated: int = 0
    admissions: int = 0

    @property
    def needed(self) -> int:
        return self.prompt_len + self.output_len - 1


class Strip:
    """Regions as ``[start, size, reserved, client]``, in the order of their addresses."""

    def __init__(self, num_slots: int, scheme: str, max_model_len: int) -> None:
        self.num_slots, self.scheme, self.max_model_len = num_slots, scheme, max_model_len
        self.regions: list[tuple[int, int, int, Client]] = []

    def reserved(self, client: Client) -> int:
        if self.scheme == "max":
            return self.max_model_len
        if self.scheme == "pow2":
            output = 1
            while output < client.output_len:
                output *= 2
            return min(client.prompt_len + output, self.max_model_len)
        return client.needed

    def size(self, client: Client) -> int:
        size = self.reserved(client)
        if self.scheme in ("max", "oracle, first fit"):
            return size
        power = 1
        while power < size:
            power *= 2
        return power

    def gaps(self) -> list[tuple[int, int]]:
        """Free runs; for the buddy schemes, free blocks in chunks that are halved until they are all free or taken."""
        runs, end = [], 0
        for start, size, *_ in [*sorted(self.regions, key=lambda region: region[0]), (self.num_slots, 0)]:
            if start > end:
                runs.append((end, start - end))
            end = start + size
        if self.scheme in ("max", "oracle, first fit"):
            return runs
        free, pieces, start = [], [], 0
        for size in (1 << order for order in reversed(range(self.num_slots.bit_length()))):
            if start + size <= self.num_slots:
                pieces.append((start, size))
                start += size
        while pieces:
            start, size = pieces.pop()
            if any(low <= start and start + size <= low + length for low, length in runs):
                free.append((start, size))
            elif any(low < start + size and start < low + length for low, length in runs):
                pieces += [(start, size // 2), (start + size // 2, size // 2)]
        return free

    def admit(self, client: Client) -> bool:
        size = self.size(client)
        fitting = [gap for gap in self.gaps() if gap[1] >= size]
        if not fitting:
            return False
        first_fit = self.scheme in ("max", "oracle, first fit")
        start = min(fitting)[0] if first_fit else min(fitting, key=lambda gap: (gap[1], gap[0]))[0]
        self.regions.append((start, size, self.reserved(client), client))
        return True

    def more(self, client: Client) -> bool:
        return True  # its whole life is reserved

    def free(self, client: Client) -> None:
        self.regions = [region for region in self.regions if region[3] is not client]

    def account(self, head: Client | None) -> tuple[int, ...]:
        wanted = 0 if head is None else self.size(head)
        tokens = sum(client.cached for *_, client in self.regions)
        needed = sum(client.needed for *_, client in self.regions)
        reserved = sum(reserved for _, _, reserved, _ in self.regions)
        rounding = sum(size for _, size, *_ in self.regions) - reserved
        short = sum(size for _, size in self.gaps() if size < wanted)
        free = sum(size for _, size in self.gaps() if size >= wanted)
        return tokens, needed - tokens, reserved - needed, short + rounding, free, rounding


class Blocks:
    """How many blocks each client has."""

    def __init__(self, num_slots: int, block_size: int) -> None:
        self.num_slots, self.block_size = num_slots, block_size
        self.free_blocks = num_slots // block_size - 1
        self.clients: list[Client] = []
        self.blocks: list[int] = []

    def admit(self, client: Client) -> bool:
        blocks = -(-(client.prompt_len + client.generated) // self.block_size)
        if blocks > self.free_blocks:
            return False
        self.clients.append(client)
        self.blocks.append(blocks)
        self.free_blocks -= blocks
        return True

    def more(self, client: Client) -> bool:
        index = self.clients.index(client)
        if client.cached + 1 > self.blocks[index] * self.block_size:
            if self.free_blocks == 0:
                return False
            self.free_blocks -= 1
            self.blocks[index] += 1
        return True

    def free(self, client: Client) -> None:
        index = self.clients.index(client)
        del self.clients[index]
        self.free_blocks += self.blocks.pop(index)

    def account(self, head: Client | None) -> tuple[int, ...]:
        tokens = useful = taken = 0
        for client, blocks in zip(self.clients, self.blocks, strict=True):
            slots = blocks * self.block_size
            tokens += client.cached
            useful += min(slots, client.needed)
            taken += slots
        free = self.free_blocks * self.block_size
        return tokens, useful - tokens, taken - useful, self.num_slots - taken - free, free, 0


@dataclass(eq=False)
class Result:
    """What the library's report must say; ``states`` are all steps and idle times: seconds, running, account."""

    shares: list[Fraction] = field(default_factory=list)
    mean_running: Fraction = Fraction(0)
    requests_per_second: Fraction = Fraction(0)
    num_finished: int = 0
    num_steps: int = 0
    seconds: Fraction = Fraction(0)
    num_preemptions: int = 0
    num_recomputed: int = 0
    waits: list[Fraction] = field(default_factory=list)
    states: list[tuple[Fraction, int, tuple[int, ...]]] = field(default_factory=list)


def serve(
    requests: list[tuple[float, int, int]],
    memory: Strip | Blocks,
    weights: float,
    compute: float,
    read: float,
    max_num_seqs: int | None = None,
) -> Result:
    """Serve ``(arrival, prompt_len, output_len)`` one step at a time."""
    waiting = [Client(Fraction(arrival), *lengths) for arrival, *lengths in requests]
    never_admitted = len(waiting)
    running: list[Client] = []
    result = Result()
    start = now = waiting[0].arrival
    spent: list[tuple[Fraction, int, tuple[int, ...]]] = []  # seconds, running, account: until the last admission
    while waiting or running:
        if not running and waiting[0].arrival > now:
            account = memory.account(None)
            result.states.append((now - start, 0, account))
            spent.append((waiting[0].arrival - now, 0, account))
            now = waiting[0].arrival
        measuring = never_admitted > 0

        preempted = False
        for client in list(running):
            while client in running and not memory.more(client):
                victim = running.pop()
                memory.free(victim)
                result.num_preemptions += 1
                result.num_recomputed += victim.cached
                victim.cached = 0
                waiting.insert(0, victim)
                preempted = True
        computed = dict.fromkeys(map(id, running), 1)
        while (
            not preempted and waiting and waiting[0].arrival <= now and len(running) < (max_num_seqs or len(requests))
        ):
            client = waiting[0]
            if not memory.admit(client):
                break
            running.append(waiting.pop(0))
            computed[id(client)] = client.prompt_len + client.generated
            if client.admissions == 0:
                never_admitted -= 1
                result.waits.append(now - client.arrival)
            client.admissions += 1

        head = waiting[0] if waiting and waiting[0].arrival <= now else None
        for client in running:
            for _ in range(computed[id(client)]):
                client.cached += 1
        cached = sum(client.cached for client in running)
        duration = max(Fraction(weights), sum(computed.values()) * Fraction(compute)) + cached * Fraction(read)
        now += duration
        account = memory.account(head)
        result.states.append((now - start, len(running), account))
        if measuring:
            spent.append((duration, len(running), account))
        result.num_steps += 1
        for client in list(running):
            client.generated += 1
            if client.generated == client.output_len:
                assert client.cached == client.needed
                memory.free(client)
                running.remove(client)
                result.num_finished += 1
        if measuring and never_admitted == 0:
            window = sum(seconds for seconds, *_ in spent)
            result.requests_per_second = result.num_finished / window
    result.seconds = now - start
    result.mean_running = sum(seconds * number for seconds, number, _ in spent) / window
    result.shares = [
        sum(seconds * account[entry] for seconds, _, account in spent) / window / memory.num_slots for entry in range(6)
    ]
    return result
