"""A load served by a scheduler alone: counts that can be made by hand, and a law that holds for every one of them."""

from __future__ import annotations

import pytest

from pagedattn_lab.engine.scheduler import Scheduler
from pagedattn_lab.hardware import StepTime
from pagedattn_lab.kv_manager import KVCacheManager
from pagedattn_lab.request import Request
from pagedattn_lab.studies.scheduling import serve


def scheduler(num_blocks: int = 9, budget: int | None = None) -> Scheduler:
    """Make one over blocks of 4 tokens, without prefix caching."""
    manager = KVCacheManager(num_blocks + 1, block_size=4, enable_prefix_caching=False)
    return Scheduler(manager, max_num_batched_tokens=budget)


def load() -> list[Request]:
    """Make seven requests, of which one or another has to make room in 9 blocks."""
    lengths = [(5, 3), (9, 12), (4, 5), (7, 8), (3, 10), (6, 4), (8, 6)]
    return [Request(str(i), [0] * prompt, max_tokens=answer) for i, (prompt, answer) in enumerate(lengths)]


def test_every_answer_gets_its_length_and_every_token_counts() -> None:
    """Catches a request that ends early or late, and tokens computed again that are not counted."""
    requests = load()
    served = serve(scheduler(), requests)
    assert [request.num_output_tokens for request in requests] == [request.max_tokens for request in requests]
    assert served.num_preemptions == sum(request.num_preemptions for request in requests) > 0
    needed = sum(request.num_tokens - 1 for request in requests)  # the last token is never computed
    assert served.num_computed_tokens > needed
    assert serve(scheduler(100), load()).num_computed_tokens == needed


@pytest.mark.parametrize("clients", [None, 1, 3])
@pytest.mark.parametrize("step_time", [None, StepTime(weights=2.0, compute=0.25, read=0.125)])
def test_littles_law(clients: int | None, step_time: StepTime | None) -> None:
    """Catches a request counted in the house a step too long or too short, and a stay from the wrong beginning."""
    served = serve(scheduler(), load(), step_time, clients)
    rate, stay = len(served.stays) / served.seconds, sum(served.stays.values()) / len(served.stays)
    assert served.mean_in_house == pytest.approx(rate * stay, rel=1e-12)
    assert max(step.num_in_house for step in served.steps) == (clients or 7)


def test_requests_that_come_over_a_wire() -> None:
    """Catches a server that waits for everybody before its first step, an answer whose client is back at once, and one
    that idles while a client is on its way and nobody else is there.
    """
    lengths = {"Ada": 2, "Bo": 4, "Cy": 1, "Di": 1}

    def steps(clients: int | None) -> list[str]:
        requests = [Request(name, [0], max_tokens=answer) for name, answer in lengths.items()]
        served = serve(scheduler(), requests, clients=clients, through_server=True)
        return [" ".join(step.tokens) for step in served.steps]

    assert steps(None) == ["Ada", "Ada Bo Cy Di", "Bo", "Bo", "Bo"]
    assert steps(2) == ["Ada", "Ada Bo", "Bo", "Bo Cy", "Bo", "Di"]
    assert steps(1) == ["Ada", "Ada", "Bo", "Bo", "Bo", "Bo", "Cy", "Di"]


def test_a_step_takes_what_the_model_of_time_says() -> None:
    """Catches a step that forgets the tokens that it reads, or those that it computes."""
    served = serve(scheduler(), [Request("Ada", [0] * 6, max_tokens=2)], StepTime(weights=1.0, compute=0.5, read=0.25))
    assert [step.seconds for step in served.steps] == [6 * 0.5 + 6 * 0.25, 1 + 7 * 0.25]
    assert served.mean_running == 1 and [step.num_used_blocks for step in served.steps] == [2, 2]


def test_what_is_refused() -> None:
    """Catches a load that would never end, or one that mixes with another."""
    with pytest.raises(ValueError, match="no max_tokens"):
        serve(scheduler(), [Request("Ada", [0])])
    with pytest.raises(ValueError, match="clients is 0"):
        serve(scheduler(), load(), clients=0)
    busy = scheduler()
    busy.add_request(Request("Bo", [0]))
    with pytest.raises(ValueError, match="has requests already"):
        serve(busy, load())
