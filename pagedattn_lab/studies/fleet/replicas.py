"""The replicas of a fleet: which of them live, what each has cached, and how much each has to do (chapter 11)."""

from __future__ import annotations

import math
import random

from pagedattn_lab.studies.fleet.cache import ReplicaCache
from pagedattn_lab.studies.fleet.requests import FleetRequest


class Fleet:
    """Replicas, and what is known of them: a :class:`pagedattn_lab.studies.fleet.routers.FleetView`.

    Args:
        num_replicas: how many.
        num_blocks: blocks of each one's cache; ``None``: as many as it takes.
        block_size: tokens per block.
        rng: decides between replicas that are alike.
    """

    def __init__(self, num_replicas: int, num_blocks: int | None, block_size: int, rng: random.Random) -> None:
        self.num_replicas, self.num_blocks, self.block_size = num_replicas, num_blocks, block_size
        self.now = 0.0
        self.alive = (1 << num_replicas) - 1
        self.caches = [ReplicaCache(num_blocks, block_size) for _ in range(num_replicas)]
        self._loads = [0] * num_replicas
        self._with_load = [self.alive]  # load -> the set of replicas that have it
        self._lowest = 0  # no replica has less load
        self._random = rng.random

    def load(self, replica: int) -> int:
        """How many requests wait and run on a replica."""
        return self._loads[replica]

    def hit_blocks(self, replica: int, request: FleetRequest) -> int:
        """How many leading blocks of a prompt a replica would find at this moment."""
        return self.caches[replica].num_hits(request.hash_ids, (request.prompt_len - 1) // self.block_size)

    def is_alive(self, replica: int) -> bool:
        """Whether a replica has not failed."""
        return self.alive >> replica & 1 == 1

    def least_loaded(self, among: int) -> int:
        """The one with the least load in a set that is not empty; of several, one by chance."""
        if not among & (among - 1):
            return among.bit_length() - 1
        if among.bit_count() <= 4:
            return self._least_of_few(among)
        while not self._with_load[self._lowest]:
            self._lowest += 1
        level = self._lowest
        while not (found := self._with_load[level] & among):
            level += 1
        return self._any(found)

    def _least_of_few(self, among: int) -> int:
        least, found = math.inf, 0
        while among:
            bit = among & -among
            among ^= bit
            load = self._loads[bit.bit_length() - 1]
            if load < least:
                least, found = load, bit
            elif load == least:
                found |= bit
        return self._any(found)

    def _any(self, replicas: int) -> int:
        """Draw one of a set, each with the same chance: the half that has it, then the half of that, and so on."""
        num_alike = replicas.bit_count()
        if num_alike == 1:
            return replicas.bit_length() - 1
        number, place, width = int(self._random() * num_alike), 0, replicas.bit_length()
        while width > 1:
            width = (width + 1) // 2
            low = replicas & ((1 << width) - 1)
            num_low = low.bit_count()
            if number < num_low:
                replicas = low
            else:
                number, place, replicas = number - num_low, place + width, replicas >> width
        return place

    def change_load(self, replica: int, change: int) -> None:
        """Count requests in or out."""
        before, bit, levels = self._loads[replica], 1 << replica, self._with_load
        after = before + change
        self._loads[replica] = after
        while after >= len(levels):
            levels.append(0)
        levels[before] ^= bit
        levels[after] |= bit
        if after < self._lowest:
            self._lowest = after
