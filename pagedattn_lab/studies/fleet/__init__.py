"""A fleet of replicas, each with a prefix cache, behind a router (chapter 11).

* :mod:`.requests`: what arrives, from a log or from synthetic conversations;
* :mod:`.cache`: the prefix cache of one replica;
* :mod:`.replicas`: all replicas together, and what routers see of them;
* :mod:`.servers`: how a replica spends its time;
* :mod:`.routers`: who gets the next request, by load or by session;
* :mod:`.prefix_routers`: or by what the caches hold;
* :mod:`.events`: what happens, for whoever watches;
* :mod:`.report`: what a fleet was like;
* :mod:`.collector`: fewer visits of Python's collector of cycles meanwhile;
* :mod:`.simulation`: all of it together;
* :mod:`.sweep`: many simulations, on whatever runs them;
* :mod:`.cluster`: workers of a Dask cluster, which do.
"""

from __future__ import annotations

from pagedattn_lab.studies.fleet.events import Arrived, Evicted, Failed, Finished, FleetEvent, Recovered, Started
from pagedattn_lab.studies.fleet.prefix_routers import ROUTERS, PrefixEventsRouter, PrefixLoadRouter, PrefixRouter
from pagedattn_lab.studies.fleet.replicas import Fleet
from pagedattn_lab.studies.fleet.report import FleetReport, LogHistogram, ReplicaReport
from pagedattn_lab.studies.fleet.requests import FleetRequest, chat_requests, log_requests
from pagedattn_lab.studies.fleet.routers import (
    FleetView,
    LeastLoadedRouter,
    RandomRouter,
    RoundRobinRouter,
    Router,
    SessionRouter,
    TwoChoicesRouter,
)
from pagedattn_lab.studies.fleet.servers import A100_LLAMA_8B, ExponentialServer, Server
from pagedattn_lab.studies.fleet.simulation import Failure, simulate

__all__ = [
    "A100_LLAMA_8B",
    "ROUTERS",
    "Arrived",
    "Evicted",
    "ExponentialServer",
    "Failed",
    "Failure",
    "Finished",
    "Fleet",
    "FleetEvent",
    "FleetReport",
    "FleetRequest",
    "FleetView",
    "LeastLoadedRouter",
    "LogHistogram",
    "PrefixEventsRouter",
    "PrefixLoadRouter",
    "PrefixRouter",
    "RandomRouter",
    "Recovered",
    "ReplicaReport",
    "RoundRobinRouter",
    "Router",
    "Server",
    "SessionRouter",
    "Started",
    "TwoChoicesRouter",
    "chat_requests",
    "log_requests",
    "simulate",
]
