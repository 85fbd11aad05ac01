"""The benchmark of the second tier measures returns in the state that it says, and takes ratios within a repetition."""

from __future__ import annotations

import json
from functools import partial
from statistics import median
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pagedattn_lab.bench import tier
from pagedattn_lab.cli import main
from pagedattn_lab.engine.llm_engine import LLMEngine
from pagedattn_lab.engine.scheduler_output import SchedulerOutput


@pytest.fixture(scope="module")
def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def engine_of(model: LlamaForCausalLM) -> LLMEngine:
    return LLMEngine(model, None, num_blocks=40, block_size=16, num_offload_blocks=39, max_num_batched_tokens=100)


NEW_TURNS = {"resident": [5] * 32, "reloaded": [6] * 32, "recomputed": [7] * 32}


@pytest.mark.parametrize("order", [["resident", "reloaded", "recomputed"], ["recomputed", "reloaded", "resident"]])
def test_a_conversation_returns_in_each_state(
    order: list[str], tiny: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a state that is another one: tokens computed that should be there, or the reverse; a reload that also
    pays for making room; a repetition that finds what the one before has left.
    """
    engine, steps = engine_of(tiny), []
    execute = engine.core._execute

    def seen(output: SchedulerOutput) -> Any:
        steps.append((output.total_num_scheduled_tokens, len(output.loads), len(output.stores)))
        return execute(output)

    monkeypatch.setattr(engine.core, "_execute", seen)
    computed = {"recomputed": [(100, 0, 0), (60, 0, 0)], "resident": [(32, 0, 0)], "reloaded": [(32, 8, 0)]}
    for _ in range(2):
        taken = tier.returns(engine, [9, 8] * 64, {state: NEW_TURNS[state] for state in order})
        assert sorted(taken) == ["recomputed", "reloaded", "resident", "stored"] and min(taken.values()) > 0
        asked = ["recomputed", *(state for state in order if state != "recomputed")]
        assert steps == [step for state in asked for step in computed[state]]
        steps.clear()
    assert engine.core.manager.block_pool.num_used_blocks == 0 and not engine.has_unfinished_requests()


def test_another_state_is_refused(tiny: LlamaForCausalLM) -> None:
    """Catches a time that is kept although the cache held something else."""
    engine = engine_of(tiny)
    with pytest.raises(RuntimeError, match="0 of 40 tokens were cached, not 32"):
        tier.first_token_ms(engine, [9] * 40, num_cached=32)


def test_ratios_and_turns(tiny: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a ratio of medians, or upside down; a first run that counts; a length that always comes first."""
    seen: list[int] = []
    times = iter([(10.0, 1.0), (10.0, 5.0), (9.0, 1.0), (8.0, 4.0), (2.0, 1.0), (1.0, 5.0), (9.0, 3.0)])

    def returns(engine: LLMEngine, history: list[int], new_turns: dict[str, list[int]]) -> dict[str, float]:
        seen.append(len(history))
        recomputed, reloaded = next(times)
        return {"recomputed": recomputed, "reloaded": reloaded, "resident": 1.0, "stored": 0.5}

    monkeypatch.setattr(tier, "returns", returns)
    report = tier.measure([32, 64], repetitions=3, model=tiny, progress=False)
    assert seen == [32, 32, 64, 64, 32, 32, 64]
    short, long = report["conversations"]
    assert short["recomputed_over_reloaded"] == median([10 / 5, 2 / 1, 1 / 5])
    assert long["recomputed_over_reloaded"] == median([9 / 1, 8 / 4, 9 / 3])
    assert short["reloaded_over_resident"] == 5 and short["stored_ms"] == 0.5
    assert report["pays_from"] == 64, "one short conversation came back later"
    assert torch.get_num_threads() >= 1 and report["threads"] == 1


def test_the_model_counts_the_new_turn() -> None:
    """Catches a new turn left out, weights read twice, a copy that hides behind the step, and bits taken for bytes."""
    weights, compute, read = 2 * 8.030e9 / 3.35e12, 2 * 8.030e9 / 989.5e12, 131_072 / 3.35e12
    for length in (64, 300, 4_096):
        whole, copy = length + 32, length * 131_072 / 63.015e9
        expected = {
            "recomputed": max(weights, whole * compute) + whole * read,
            "reloaded": weights + whole * read + copy,
            "resident": weights + whole * read,
        }
        assert tier.modelled(length) == pytest.approx({state: 1000 * s for state, s in expected.items()}, rel=1e-3)
    # (length + 32) * compute = weights + copy
    exact = (weights - 32 * compute) / (compute - 131_072 / 63.015e9)
    assert exact <= tier.modelled_pays_from() < exact + 16


@pytest.mark.parametrize(
    ("lengths", "repetitions", "message"),
    [([], 3, "lengths"), ([64, 32], 3, "lengths"), ([24], 3, "24 tokens is not found whole"), ([32], 1, "repetitions")],
)
def test_what_cannot_be_measured(lengths: list[int], repetitions: int, message: str) -> None:
    """Catches a benchmark that runs for minutes and then has no quartile, or a last block that is always computed."""
    with pytest.raises(ValueError, match=message):
        tier.measure(lengths, repetitions=repetitions)


def test_the_command(
    tiny: LlamaForCausalLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a command that measures something else than the library does, or mixes JSON with other output; a table
    wider than a terminal once its numbers are large.
    """
    measure = partial(tier.measure, model=tiny)
    monkeypatch.setattr(tier, "measure", measure)
    assert main(["bench", "tier", "--quick", "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert [row["num_tokens"] for row in report["conversations"]] == list(tier.QUICK_LENGTHS) and printed.err == ""
    assert report["repetitions"] == 2 and report["model"]["pays_from"] == tier.modelled_pays_from()
    assert main(["bench", "tier", "--quick"]) == 0
    assert "In the model" in capsys.readouterr().out
    for row in report["conversations"]:
        row |= {name: 999_999.9 for name in row if name.endswith("_ms")}
        row |= {"recomputed_over_reloaded": 99.9, "recomputed_over_reloaded_quartiles": [99.9, 99.9]}
    for pays_from in (None, 4_096):
        text = tier.describe(report | {"pays_from": pays_from, "device": "cuda:0"})
        assert max(map(len, text.splitlines())) <= 80
        assert ("never paid" in text) == (pays_from is None)
