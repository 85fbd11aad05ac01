"""What became of a simulated workload: averages over time, and states on the way (chapters 02 and 03)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from pagedattn_lab.baselines.accounting import Account

MOST_SAMPLES = 1024
"""How many states a :class:`Report` keeps at most."""


class Sample(NamedTuple):
    """The state at one moment: after the steps that lead to an event, or as idle time begins.

    Attributes:
        seconds: since the first arrival.
        num_running: requests that computed a token in the step.
        account: where every slot was.
    """

    seconds: float
    num_running: int
    account: Account


@dataclass(frozen=True)
class Report:
    """What became of a workload.

    Shares, ``mean_running`` and ``requests_per_second`` are averages over time, from the first arrival until the last
    request has been admitted; what comes after is only the load draining away.

    Attributes:
        token_states, reservation, internal, external, free, rounding: shares of memory, see
            :class:`pagedattn_lab.baselines.accounting.Account`.
        mean_running: requests that compute a token in a step.
        requests_per_second: requests finished per second.
        num_finished: requests finished in all.
        num_steps: steps in all.
        seconds: time in all, as the roofline has it.
        num_preemptions: how often a request lost its memory.
        num_recomputed: tokens whose keys and values were lost, and computed again.
        mean_wait, max_wait: seconds between arrival and first admission.
        samples: states over the whole time, at most :data:`MOST_SAMPLES`, evenly chosen among the steps at which
            something happened.
    """

    token_states: float
    reservation: float
    internal: float
    external: float
    free: float
    rounding: float
    mean_running: float
    requests_per_second: float
    num_finished: int
    num_steps: int
    seconds: float
    num_preemptions: int
    num_recomputed: int
    mean_wait: float
    max_wait: float
    samples: list[Sample] = field(repr=False)


class Ledger:
    """What a server writes down while it runs, from which the report is made.

    An average over time is an integral divided by a time. The integrals grow whenever time passes, in slot-seconds and
    request-seconds, and stop with the time that counts.

    Args:
        start: when the first request arrives, in seconds.
    """

    def __init__(self, start: float) -> None:
        self.start = start
        self.integrals = [0.0] * 7  # over time: the account's six entries, and running requests
        self.measured: tuple[float, int] | None = None  # seconds, and requests finished, when measuring ended
        self.num_waited = 0  # requests that were admitted, each counted once
        self.total_wait = self.max_wait = 0.0  # seconds
        self.num_preemptions = self.num_recomputed = 0
        self.samples: list[Sample] = []
        self.num_states, self.stride = 0, 1  # every stride-th state is kept

    def admitted_after(self, wait: float) -> None:
        """Note how many seconds a request waited for its first admission."""
        self.num_waited += 1
        self.total_wait += wait
        self.max_wait = max(self.max_wait, wait)

    def preempted(self, num_lost: int) -> None:
        """Note that a request lost its memory, and ``num_lost`` tokens with it."""
        self.num_preemptions += 1
        self.num_recomputed += num_lost

    def passed(self, at: float, seconds: float, token_seconds: float, num_running: int, account: Account) -> None:
        """Let time pass.

        Args:
            at: the time of the account, in seconds.
            seconds: how much has passed.
            token_seconds: integral of the tokens held over that time.
            num_running: requests that ran all the while.
            account: where every slot was.
        """
        self._sample(Sample(at - self.start, num_running, account))
        if self.measured is not None:
            return
        integrals = self.integrals
        integrals[0] += token_seconds
        # Slots of tokens that are there and slots of those to come add up to the same all the while.
        integrals[1] += (account.token_states + account.reservation) * seconds - token_seconds
        for index in range(2, 6):  # the other entries of the account stand still
            integrals[index] += account[index] * seconds
        integrals[6] += num_running * seconds

    def _sample(self, sample: Sample) -> None:
        """Keep every so many of the states. When there are too many, drop every other and go on half as often."""
        if self.num_states % self.stride == 0:
            if len(self.samples) == MOST_SAMPLES:
                del self.samples[1::2]
                self.stride *= 2
            if self.num_states % self.stride == 0:
                self.samples.append(sample)
        self.num_states += 1

    def stop_measuring(self, now: float, num_finished: int) -> None:
        """End the time that averages cover. Samples are still kept."""
        self.measured = now - self.start, num_finished

    def report(self, num_slots: int, now: float, num_steps: int, num_finished: int) -> Report:
        """Divide by the time and the memory."""
        assert self.measured is not None, "a report is made once the last request has been admitted"
        measured_seconds, measured_finished = self.measured
        # A reservation of nothing is a difference of two equal sums, which rounding may leave below zero.
        shares = [max(0.0, integral) / measured_seconds / num_slots for integral in self.integrals[:6]]
        token_states, reservation, internal, external, free, rounding = shares
        return Report(
            token_states,
            reservation,
            internal,
            external,
            free,
            rounding,
            mean_running=self.integrals[6] / measured_seconds,
            requests_per_second=measured_finished / measured_seconds,
            num_finished=num_finished,
            num_steps=num_steps,
            seconds=now - self.start,
            num_preemptions=self.num_preemptions,
            num_recomputed=self.num_recomputed,
            mean_wait=self.total_wait / self.num_waited,
            max_wait=self.max_wait,
            samples=self.samples,
        )
