"""What is counted in a decode step: the products of linear layers, and all else that torch is asked for."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pagedattn_lab.bench.forward import where_a_step_goes
from pagedattn_lab.engine.llm_engine import LLMEngine

CONFIG = LlamaConfig(
    vocab_size=2000, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
)  # fmt: skip


def engine(forward: str, **options: int) -> LLMEngine:
    """Make an engine of a model of two layers."""
    torch.manual_seed(0)
    return LLMEngine(LlamaForCausalLM(CONFIG).eval(), None, num_blocks=60, forward=forward, **options)


@pytest.mark.parametrize(("forward", "products"), [("modules", 7 * 2 + 1), ("fused", 4 * 2 + 1)])
def test_products_are_counted(forward: str, products: int) -> None:
    """Catches a product under a name that is not looked for, an engine that keeps blocks, and time from nowhere."""
    server = engine(forward)
    found = where_a_step_goes(server, num_seqs=3, seq_len=5, repetitions=2)
    assert found["num_products"] == products
    assert found["num_others"] > 0 and found["step_ms"] > 0 and found["products_ms"] > 0
    assert not server.has_unfinished_requests() and server.core.manager.block_pool.num_used_blocks == 0


def test_what_is_refused() -> None:
    """Catches prompts that the first step does not finish, so that a chunk is taken for a decode step."""
    with pytest.raises(ValueError, match="2 prompts of 9 tokens are more than a step's 16"):
        where_a_step_goes(engine("modules", max_num_batched_tokens=16), num_seqs=2, seq_len=9)
    with pytest.raises(ValueError, match="repetitions is 0"):
        where_a_step_goes(engine("modules"), repetitions=0)
    busy = engine("modules")
    busy.add_request("Ada", [5, 6])
    with pytest.raises(ValueError, match="has requests already"):
        where_a_step_goes(busy)
