"""The fused loop: logits of transformers' own modules in float32, or a reason why it does not take a model."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import PreTrainedModel

from pagedattn_lab import models
from pagedattn_lab.attention import cpu
from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.engine.core import EngineCore
from pagedattn_lab.engine.sampling import generate_greedily
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.models import fused_decoder
from pagedattn_lab.models.support import UnsupportedModelError
from tests.helpers.draws import ENGINE
from tests.helpers.engine import requests_of, shuffle
from tests.helpers.models import tiny

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}

HEADS_OF_45 = {"hidden_size": 45, "head_dim": 12}  # so all heads together are wider or narrower than the stream

KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, one KV head": ("llama", HEADS_OF_45 | {"num_attention_heads": 5, "num_key_value_heads": 1}),
    "llama, odd group": ("llama", HEADS_OF_45 | {"num_attention_heads": 9, "num_key_value_heads": 3}),
    "llama, every head its own": ("llama", {"num_key_value_heads": 6}),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "llama, yarn": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 7, "head_dim": 16}),
    "qwen2": ("qwen2", {}),
    "qwen2, some windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3": ("qwen3", {}),
    "qwen3, all biases": ("qwen3", {"attention_bias": True, "num_attention_heads": 3, "num_key_value_heads": 3}),
}  # fmt: skip


def tiny_kind(kind: str) -> PreTrainedModel:
    """A small model whose norms and biases are not the ones and zeros that they begin with."""
    name, changes = KINDS[kind]
    model = tiny(name, **changes)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
            elif parameter_name.endswith("bias"):
                parameter.normal_(0, 0.3)
    return model


@pytest.fixture(params=["reordered", "plain"])
def weights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Products with oneDNN's order of weights, and without."""
    if request.param == "plain":
        monkeypatch.setattr(fused_decoder, "reordered", lambda dtype: False)
    return request.param


def poisoned(runner: ModelRunner) -> ModelRunner:
    for cache in runner.cache.key_caches + runner.cache.value_caches:
        cache.fill_(torch.nan)
    return runner


class Sequences:
    """Token sequences that grow step by step on a paged cache; the oracle is a forward pass of each, all at once."""

    def __init__(self, runner: ModelRunner, lens: Sequence[int], seed: int = 0) -> None:
        source = random.Random(seed)
        self.runner, cache = runner, runner.cache
        self.pool = BlockPool(cache.num_blocks, cache.block_size)
        shuffle(self.pool, seed)
        self.tokens = [source.choices(range(3, 99), k=length) for length in lens]
        self.tables = [BlockTable(self.pool) for _ in lens]

    def step(self, query_lens: Sequence[int], logits_of: Sequence[int] | None = None) -> torch.Tensor:
        """Compute the next tokens of those sequences that compute any."""
        active = [i for i, query_len in enumerate(query_lens) if query_len]
        token_ids = []
        for i in active:
            begin = self.tables[i].num_tokens
            token_ids += self.tokens[i][begin : begin + query_lens[i]]
            self.tables[i].append_tokens(query_lens[i])
        metadata = attention_metadata([self.tables[i] for i in active], [query_lens[i] for i in active])
        return self.runner.execute(token_ids, metadata, logits_of)

    @torch.inference_mode()
    def expected(self, which: Sequence[int]) -> torch.Tensor:
        rows = [self.tokens[i][: self.tables[i].num_tokens] for i in which]
        return torch.stack([self.runner.model(torch.tensor([row]), use_cache=False).logits[0, -1] for row in rows])


def bound(model: PreTrainedModel, logits: torch.Tensor, num_tokens: int) -> float:
    """How far two orders of the same sums may be apart.

    On its way to the logits a number passes, layer by layer, through sums of ``hidden_size`` terms (two norms and two
    products), of all heads' widths, of ``intermediate_size``, and over the tokens, and last through one of
    ``hidden_size``. Each term may be off by a rounding of a number as large as the largest logit.
    """
    config = model.config
    heads = config.num_attention_heads * model.model.layers[0].self_attn.head_dim
    per_layer = 4 * config.hidden_size + heads + config.intermediate_size + num_tokens
    terms = config.num_hidden_layers * per_layer + config.hidden_size
    return torch.finfo(model.dtype).eps * terms * float(logits.abs().max())


def assert_close(model: PreTrainedModel, got: torch.Tensor, expected: torch.Tensor, num_tokens: int) -> None:
    error, allowed = float((got - expected).abs().max()), bound(model, expected, num_tokens)
    assert got.shape == expected.shape and error <= allowed, f"{error} apart, {allowed} allowed"
    assert allowed < 0.01 * expected.abs().max(), "the bound would let anything pass"


@pytest.mark.when_changed(*ENGINE)
@pytest.mark.parametrize("block_size", [1, 5, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_the_modules(kind: str, block_size: int, weights: str) -> None:
    """Catches halves rotated the other way, a norm of what is not yet summed, a slot, bias, scale or norm missing or
    another's, heads of one product cut in the wrong place, windows ignored, and slots that hold nothing read.
    """
    model = tiny_kind(kind)
    runner = poisoned(ModelRunner(model, num_blocks=2 + 120 // block_size + 6, block_size=block_size, forward="fused"))
    assert runner.forward == "fused"
    sequences = Sequences(runner, [30, 12, 25, 9, 20, 14])
    # Whole prompts; prompts beside decodes and chunks; two and four tokens of one sequence; a sequence that pauses; one
    # that becomes more than twice as long as any was at first.
    for query_lens in ([11, 1, 6, 0, 0, 0], [1, 1, 9, 9, 13, 0], [4, 2, 1, 0, 1, 14], [14, 1, 1, 0, 1, 0]):
        got = sequences.step(query_lens)
        active = [i for i, query_len in enumerate(query_lens) if query_len]
        assert_close(model, got, sequences.expected(active), 30)


def test_bfloat16_is_as_near_to_float32_as_the_modules(weights: str) -> None:
    """Catches bits read as whole numbers, and sums taken in bfloat16."""
    for kind in ("llama", "llama, all biases", "qwen3"):
        model = tiny_kind(kind).to(torch.bfloat16)
        steps = [30, 12], [1, 5], [1, 1]
        errors = {}
        for forward in ("fused", "modules"):
            sequences = Sequences(poisoned(ModelRunner(model, 40, 4, forward=forward)), [32, 18])
            got = [sequences.step(query_lens) for query_lens in steps][-1].float()
            exact = Sequences(ModelRunner(tiny_kind(kind).to(torch.bfloat16).float(), 40, 4), [32, 18])
            expected = [exact.step(query_lens) for query_lens in steps][-1]
            errors[forward] = float((got - expected).norm() / expected.norm())
        assert errors["fused"] < 1.25 * errors["modules"], errors


@pytest.mark.parametrize("kind", ["llama, tied", "qwen2"])
def test_logits_of_some_sequences(kind: str) -> None:
    """Catches logits of other rows than those asked for."""
    sequences = Sequences(ModelRunner(tiny_kind(kind), 40, 4, forward="fused"), [20, 9, 14])
    model = sequences.runner.model
    assert_close(model, sequences.step([7, 3, 5], [2, 0]), sequences.expected([2, 0]), 20)
    assert sequences.step([5, 1, 1], []).shape == (0, 99)
    assert_close(model, sequences.step([1, 1, 1], [1]), sequences.expected([1]), 20)


def test_the_modules_stay_as_they_were() -> None:
    """Catches weights that were moved instead of copied: the model's own generate is the oracle."""
    model = tiny_kind("llama")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    expected = model(torch.tensor([[5, 6, 7]])).logits
    sequences = Sequences(ModelRunner(model, 40, 4, forward="fused"), [20])
    sequences.step([20])
    assert torch.equal(model(torch.tensor([[5, 6, 7]])).logits, expected)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


def test_a_shared_prefix_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a cascade that the loop leaves out, or merges wrongly."""
    calls = []
    prefix_by_group = cpu.prefix_by_group
    monkeypatch.setattr(cpu, "prefix_by_group", lambda *call: calls.append(call) or prefix_by_group(*call))
    model = tiny_kind("llama")
    sequences = Sequences(poisoned(ModelRunner(model, 400, 4, forward="fused")), [300])
    sequences.step([280])
    table, tokens = sequences.tables[0], sequences.tokens[0]
    sequences.tables = [table, *(table.fork() for _ in range(17))]
    sequences.tokens = [tokens[:280] + [20 + i] * 20 for i in range(18)]
    got = sequences.step([2] * 3 + [1] * 15)
    assert len(calls) == 4, "one for each layer"
    assert_close(model, got, sequences.expected(range(18)), 300)


REFUSED: dict[str, tuple[Callable[[], ModelRunner], str]] = {
    "another model": (lambda: fused(tiny("gemma2")), "Gemma2ForCausalLM is none of LlamaForCausalLM"),
    "kin": (lambda: fused(tiny("olmo2")), "Olmo2ForCausalLM is none of"),
    "dynamic": (lambda: fused(tiny("llama", rope_parameters=DYNAMIC)), "rotary angles depend on the length"),
    "gelu": (lambda: fused(tiny("llama", hidden_act="gelu")), "its activation is gelu"),
    "half": (lambda: fused(tiny("llama").half()), "torch.float16: one of float32 and bfloat16"),
    "mixed": (lambda: fused(with_bfloat16_head()), "torch.bfloat16, torch.float32: one of"),
    "8 bits": (lambda: fused(tiny("llama"), kv_cache_dtype="int8"), "torch.float32, torch.int8: one of"),
    "backend": (lambda: fused(tiny("llama"), attention="reference"), 'by the cpu backend, not by "reference"'),
    "replaced": (lambda: fused(with_a_replaced_projection()), "q_proj is a Scaled"),
    "own class": (lambda: fused(of_own_class()), "LlamaForCausalLM is none of"),
    "own norm": (lambda: fused(with_part("model.norm", torch.nn.LayerNorm(48))), "model.norm is a LayerNorm"),
    "no norm": (lambda: fused(with_part("model.layers.1.input_layernorm", torch.nn.Identity())), "is a Identity"),
    "own layer": (lambda: fused(of_own_mlp()), "model.layers.2.mlp is a Negated"),
    "hook": (lambda: fused(with_a_hook()), "model.layers.1 has a hook"),
    "own forward": (lambda: fused(with_a_forward()), "model.layers.1.mlp has a hook or a forward of its own"),
}


def fused(model: PreTrainedModel, **options: object) -> ModelRunner:
    """Ask for the loop by name; under "auto", whatever is refused runs through its modules."""
    assert ModelRunner(model, 8, 4, forward="auto", **options).forward == "modules"
    return ModelRunner(model, 8, 4, forward="fused", **options)


def with_bfloat16_head() -> PreTrainedModel:
    model = tiny("llama")
    model.lm_head.to(torch.bfloat16)
    return model


def with_a_replaced_projection() -> PreTrainedModel:
    class Scaled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = tiny("llama")
    model.model.layers[2].self_attn.q_proj = Scaled(48, 48, bias=False)
    return model


def of_own_class() -> PreTrainedModel:
    model = tiny("llama")
    model.__class__ = type("LlamaForCausalLM", (type(model),), {"__module__": "elsewhere"})
    return model


def with_part(name: str, module: torch.nn.Module) -> PreTrainedModel:
    model = tiny("llama")
    model.set_submodule(name, module)
    return model


def of_own_mlp() -> PreTrainedModel:
    model = tiny("llama")
    mlp = model.model.layers[2].mlp
    mlp.__class__ = type("Negated", (type(mlp),), {"__module__": "elsewhere"})
    return model


def with_a_hook() -> PreTrainedModel:
    model = tiny("llama")
    model.model.layers[1].register_forward_hook(lambda module, args, output: 2 * output)
    return model


def with_a_forward() -> PreTrainedModel:
    model = tiny("llama")
    model.model.layers[1].mlp.forward = lambda x: x
    return model


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_what_transformers_notes_down_is_no_obstacle(kind: str) -> None:
    """Catches a model that is no longer fused because somebody looked at its hidden states: that leaves hooks."""
    model = tiny(kind)
    model(torch.tensor([[1, 2]]), output_hidden_states=True, output_attentions=True)
    assert ModelRunner(model, 8, 4, forward="fused").forward == "fused"


@pytest.mark.parametrize("which", REFUSED)
def test_what_the_loop_does_not_compute_is_refused_by_name(which: str) -> None:
    """Catches a model that would run and answer nonsense, or an "auto" that fails where the modules work."""
    make, reason = REFUSED[which]
    with pytest.raises(UnsupportedModelError, match="cannot be fused: .*" + reason):
        make()


def test_without_numba_modules_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an optional package that "auto" needs."""
    monkeypatch.setattr("pagedattn_lab.models.support.find_spec", lambda name: None)
    assert ModelRunner(tiny("llama"), 8, 4, forward="auto").forward == "modules"


def test_an_unknown_forward_is_refused() -> None:
    """Catches a misspelt name that counts as another."""
    with pytest.raises(ValueError, match="forward 'fussed' is unknown: use one of modules, fused, auto"):
        ModelRunner(tiny("llama"), 8, 4, forward="fussed")
    assert ModelRunner(tiny("llama"), 8, 4).forward == "modules"
    assert ModelRunner(tiny("llama"), 8, 4, forward="auto").forward == "fused"


@pytest.mark.when_changed(*ENGINE)
def test_greedy_tokens_of_the_real_model_equal_generate() -> None:
    """Catches an error too small for a toy: 24 tokens of several prompts, computed in one batch."""
    model, tokenizer = models.load()
    texts = ["The capital of France is", "def fibonacci(n):", "Once upon a time, in a village by the sea,", "1, 2, 3,"]
    prompts = [tokenizer(text).input_ids for text in texts]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 24, "do_sample": False}
        expected.append(model.generate(ids, **options, eos_token_id=None)[0, len(prompt) :].tolist())
    runner = ModelRunner(model, num_blocks=40, block_size=16, forward="auto")
    assert runner.forward == "fused"
    runner.warm_up()
    assert generate_greedily(EngineCore(runner), requests_of(prompts), max_tokens=24) == expected
