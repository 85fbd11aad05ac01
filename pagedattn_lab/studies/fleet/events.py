"""What happens in a fleet, for whoever watches (chapter 11)."""

from __future__ import annotations

from typing import NamedTuple

from pagedattn_lab.studies.fleet.requests import FleetRequest


class Arrived(NamedTuple):
    """A request was sent to a replica: when it came, or again after a failure.

    Attributes:
        time: seconds.
        replica: where it goes.
        number: requests count from 0, as they arrive.
        request: what arrived.
        load: requests on that replica, this one included.
    """

    time: float
    replica: int
    number: int
    request: FleetRequest
    load: int


class Started(NamedTuple):
    """A replica begins with a request: the prompt has been looked up, and its full blocks are cached.

    Attributes:
        time: seconds.
        replica: which.
        number: of the request.
        request: what is served.
        hit_blocks: leading blocks that were found.
        cached_blocks: blocks that hold cached contents now.
    """

    time: float
    replica: int
    number: int
    request: FleetRequest
    hit_blocks: int
    cached_blocks: int


class Finished(NamedTuple):
    """A request has its last token.

    Attributes:
        time: seconds.
        replica: where.
        number: of the request.
        request: what was served.
        ttft: seconds from its arrival to its first token.
    """

    time: float
    replica: int
    number: int
    request: FleetRequest
    ttft: float


class Evicted(NamedTuple):
    """Blocks lost their contents to make room.

    Attributes:
        time: seconds.
        replica: where.
        hash_ids: what can no longer be found there.
        cached_blocks: blocks that hold cached contents now.
    """

    time: float
    replica: int
    hash_ids: tuple[int, ...]
    cached_blocks: int


class Failed(NamedTuple):
    """A replica failed: its cache is lost, and what it had in hand must be sent again.

    Attributes:
        time: seconds.
        replica: which.
        num_sent_again: requests that waited or ran there.
    """

    time: float
    replica: int
    num_sent_again: int


class Recovered(NamedTuple):
    """A replica is back, with an empty cache.

    Attributes:
        time: seconds.
        replica: which.
    """

    time: float
    replica: int


FleetEvent = Arrived | Started | Finished | Evicted | Failed | Recovered
