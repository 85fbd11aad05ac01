"""The paper's comparison, redone: its token slots, its shares of memory, and how many requests fit into one step."""

from __future__ import annotations

from itertools import islice

import pytest

from pagedattn_lab import workloads
from pagedattn_lab.arithmetic import GIB
from pagedattn_lab.hardware import GPU, GPUS, StepTime
from pagedattn_lab.kv_shape import KVShape
from pagedattn_lab.studies.memory_shares import LABELS, allocators, compare
from pagedattn_lab.studies.paper import (
    A100_OPT_13B,
    FIG_2,
    FIG_11,
    FIG_13,
    FIG_13_RATES,
    NAMES,
    OPT_13B,
    PAPER_BUDGET,
    TABLE_1,
)
from pagedattn_lab.studies.report import Report

NUM_SLOTS = PAPER_BUDGET // OPT_13B.bytes_per_token


def to_hundreds(slots: float) -> int:
    return round(slots / 100) * 100


def test_slots_of_the_papers_table_1() -> None:
    """Catches a shape, a data type or a unit that is not the paper's: GB for GiB are 7 % fewer slots."""
    computed = {setting.model: setting.gib * GIB // setting.shape.bytes_per_token for setting in TABLE_1}
    assert computed == {"OPT-13B": 15_728, "OPT-66B": 9_557, "OPT-175B": 60_074}
    for setting in TABLE_1:
        # The table rounds its memory to whole GiB: its slots may be any that half a GiB more or less makes of it.
        low, high = ((setting.gib + half) * GIB / setting.shape.bytes_per_token for half in (-0.5, 0.5))
        assert to_hundreds(low) <= setting.slots <= to_hundreds(high)
        if setting.model != "OPT-66B":
            assert to_hundreds(computed[setting.model]) == setting.slots
    assert computed["OPT-13B"] == NUM_SLOTS and TABLE_1[0].gib * GIB == PAPER_BUDGET
    # Zhang et al. 2022, Table 1: width of the models, of which a token's keys and values have two per layer.
    widths = [setting.shape.num_kv_heads * setting.shape.head_dim for setting in TABLE_1]
    assert widths == [5120, 9216, 12288]


def test_what_the_paper_reports_is_complete() -> None:
    """Catches a scheme without a figure, and figures mistyped so far that a whole does not add up."""
    for named in (FIG_2, FIG_13["sharegpt"], FIG_13["alpaca"], LABELS, allocators(4096, 512, 16)):
        assert set(named) == set(NAMES)
    assert set(FIG_13) == set(FIG_13_RATES) == set(FIG_11)
    for name in ("max", "pow2", "oracle"):
        assert sum(FIG_2[name].values()) == pytest.approx(1, abs=0.0021)  # four figures of three decimals


@pytest.fixture(scope="module", params=[0, 1, 2])
def reports(request: pytest.FixtureRequest) -> dict[str, Report]:
    """3,000 requests that all wait from the start, in the paper's memory."""

    def load() -> object:
        return workloads.arrive(islice(workloads.sharegpt(request.param), 3000))

    return compare(load, NUM_SLOTS, max_model_len=2048, block_size=16)


@pytest.mark.parametrize(("name", "low", "high"), [("max", 0.17, 0.24), ("pow2", 0.23, 0.31), ("oracle", 0.34, 0.43)])
def test_token_states_are_the_papers(name: str, low: float, high: float, reports: dict[str, Report]) -> None:
    """Catches an allocator that reserves by other rules than the paper's: the band is about 4 points around Fig. 2."""
    assert low < FIG_2[name]["token_states"] < high
    assert low <= reports[name].token_states <= high


def test_paging_fills_its_memory(reports: dict[str, Report]) -> None:
    """Catches blocks handed out too early or kept too long: Fig. 2 has 96.3 %."""
    assert reports["paged"].token_states >= 0.96


def test_paging_serves_more_at_once(reports: dict[str, Report]) -> None:
    """Catches a batch that is smaller than memory allows: §6.2 has 2.2 times Oracle's and 4.3 times Max's."""
    running = {name: report.mean_running for name, report in reports.items()}
    assert list(running) == list(NAMES)
    assert running["max"] == pytest.approx(FIG_13["sharegpt"]["max"], rel=1e-9)  # sums of a thousand floats
    assert running["max"] < running["pow2"] < running["oracle"] < running["paged"]
    assert running["paged"] >= 2.0 * running["oracle"]
    assert running["paged"] >= 3.9 * running["max"]


def test_shares_add_up(reports: dict[str, Report]) -> None:
    """Catches a slot that is counted twice or not at all, and a scheme that did not serve the whole load."""
    for name, report in reports.items():
        shares = (report.token_states, report.reservation, report.internal, report.external, report.free)
        # Each is a sum of at most one float per step, and rounds at most 8 times more.
        assert abs(sum(shares) - 1) < 5 * (report.num_steps + 8) * 2**-53
        assert min(shares) >= 0 and 0 <= report.rounding <= report.external
        assert report.num_finished == 3000
        assert (report.num_preemptions > 0) == (name == "paged")
    assert reports["oracle"].internal == reports["max"].rounding == 0
    assert reports["max"].external == pytest.approx(1392 / NUM_SLOTS, rel=1e-3)  # what 7 strips leave, until the last


def test_requests_too_long_are_cut_or_refused_alike() -> None:
    """Catches a comparison in which one scheme gets requests that another refuses."""
    lengths = [(10, 10), (40, 1), (20, 50), (31, 1)]
    reports = compare(lambda: workloads.arrive(lengths), 128, max_model_len=32, block_size=4)
    assert {name: report.num_finished for name, report in reports.items()} == dict.fromkeys(NAMES, 3)


def test_the_machine_can_be_another() -> None:
    """Catches a comparison that forgets which machine it was asked about."""
    slow = compare(lambda: workloads.arrive([(4, 3)]), 128, 32, 4, step_time=StepTime(10.0, 0.0, 0.0))
    assert {report.seconds for report in slow.values()} == {30.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # A buddy system over 1,000 slots has no region above 512, so 513 tokens have none.
        (
            (1000, 513, 16),
            r"^pow2: a region of 1024 slots never fits a strip of 1000, whose longest region has 512: give",
        ),
        ((500, 513, 16), "^max: a region of 513 slots never fits a strip of 500"),
        ((528, 512, 600), "528 slots make 0 blocks of 600"),
        ((1024, 1024, 16), r"^paged: a request of 1 \+ 1024 tokens needs 64 blocks of 16, and there are 63: give more"),
        ((0, 16, 16), "num_slots is 0"),
        ((64, 0, 16), "max_model_len is 0"),
        ((64, 16, 0), "block_size is 0: give a whole number of at least 1"),
        ((64.0, 16, 4), "num_slots is 64.0"),
    ],
)
def test_memory_too_small_names_the_scheme(arguments: tuple[int, int, int], message: str) -> None:
    """Catches a comparison that fails in the middle, or blames another number."""
    with pytest.raises(ValueError, match=message):
        allocators(*arguments)
    with pytest.raises(ValueError, match=message):
        compare(lambda: iter(()), *arguments)


def test_a_step_of_the_papers_machine() -> None:
    """Catches a factor of two: weights of 2 bytes are read once, 2 operations per parameter and token are computed."""
    assert A100_OPT_13B.weights == pytest.approx(26e9 / 1.555e12)
    assert A100_OPT_13B.compute == pytest.approx(26e9 / 312e12)
    assert A100_OPT_13B.read == pytest.approx(2 * 40 * 5120 * 2 / 1.555e12)
    step = StepTime(weights=10.0, compute=2.0, read=0.5)
    assert [step.seconds(4, tokens) for tokens in (0, 5, 6)] == [12.0, 12.0, 14.0]
    gpu = GPU(gib=1, bandwidth=50, flops=25, source="made up")
    in_bytes = StepTime.roofline(KVShape(2, 4, 8, "float32"), 100, gpu, weight_bytes=1)
    assert in_bytes == StepTime(weights=2.0, compute=8.0, read=2 * 2 * 4 * 8 * 4 / 50)


def test_the_papers_machine_is_in_the_table() -> None:
    """Catches a machine whose memory could not hold what the paper put there: weights, and 12 GiB of cache beside."""
    assert GPUS["A100-40GB"].gib * GIB > 26e9 + PAPER_BUDGET


@pytest.mark.parametrize("name", GPUS)
def test_gpus_are_those_of_their_data_sheets(name: str) -> None:
    """Catches a unit that slipped: no GPU here reads its memory in under 10 ms or over 100, or its ratio is that of no
    GPU with tensor cores; a figure without a source and its year; and a driver that reports more than is built in, or
    so much less that it must be another card's."""
    gpu = GPUS[name]
    assert 0.01 < gpu.gib * GIB / gpu.bandwidth < 0.1
    assert 60 < gpu.flops / gpu.bandwidth < 500
    assert (gpu.driver_gib is None) is (gpu.driver_source == "")
    assert gpu.driver_gib is None or 0.9 * gpu.gib < gpu.driver_gib < gpu.gib
    assert name.split("-")[0] in gpu.source and ", 20" in gpu.source


@pytest.mark.parametrize("name", ["gib", "bandwidth", "flops"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_impossible_machines_are_refused(name: str, value: float) -> None:
    """Catches a machine that needs no time, less than none, or divides by zero."""
    sheet = {"gib": 40, "bandwidth": 1e12, "flops": 1e14, "source": "made up"} | {name: value}
    with pytest.raises(ValueError, match=f"{name} is {value!r}: give a number above 0"):
        GPU(**sheet)


@pytest.mark.parametrize("name", ["num_parameters", "weight_bytes"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_impossible_models_are_refused(name: str, value: float) -> None:
    """Catches a step that has no weights to read."""
    model = {"num_parameters": 13e9, "weight_bytes": 2} | {name: value}
    with pytest.raises(ValueError, match=f"{name} is {value!r}: give a number above 0"):
        StepTime.roofline(OPT_13B, gpu=GPUS["L4"], **model)


@pytest.mark.parametrize("times", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, -1.0), (float("nan"), 1.0, 1.0)])
def test_times_are_not_negative(times: tuple[float, float, float]) -> None:
    """Catches a clock that stands still or runs backwards."""
    with pytest.raises(ValueError, match="a step needs time to read the weights, and no time is negative"):
        StepTime(*times)
