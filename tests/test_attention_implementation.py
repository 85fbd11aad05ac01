"""A step borrows the model's attention: every part of the model has its own back afterwards."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.gemma3 import Gemma3Config
from transformers.models.llava import LlavaConfig

from pagedattn_lab.attention.metadata import attention_metadata
from pagedattn_lab.block_pool import BlockPool
from pagedattn_lab.block_table import BlockTable
from pagedattn_lab.forward_context import ATTENTION_NAME
from pagedattn_lab.model_runner import ModelRunner
from pagedattn_lab.models.implementation import attention_of
from tests.helpers.models import SMALL, tiny

VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
TEXT = SMALL | {"num_hidden_layers": 2, "head_dim": 8}
MIXTURES = [
    {"": "sdpa", "text_config": "eager", "vision_config": "sdpa"},
    {"": "eager", "text_config": "sdpa", "vision_config": "eager"},
    {"": "eager", "text_config": "eager", "vision_config": "sdpa"},
]
"""Which attention each part of a model has before a step."""


def multipart(kind: str, mixture: dict[str, str]) -> PreTrainedModel:
    """Build a small model that reads pictures and text, each part with its own attention."""
    torch.manual_seed(0)
    if kind == "llava":
        text = TEXT | {"model_type": "llama"}
        vision = VISION | {"model_type": "clip_vision_model", "projection_dim": 16}
        config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=98)
    else:
        parts = {"text_config": TEXT | {"sliding_window": 7, "query_pre_attn_scalar": 16}, "vision_config": VISION}
        config = Gemma3Config(**parts, mm_tokens_per_image=4)
    return AutoModelForImageTextToText.from_config(config, attn_implementation=mixture).eval()


def parts_of(model: PreTrainedModel) -> dict[str, str]:
    """The attention of the model, of its parts, and of each module that holds a configuration."""
    found = {
        name: module.config._attn_implementation
        for name, module in model.named_modules()
        if isinstance(getattr(module, "config", None), PreTrainedConfig)
    }
    return found | {
        f"config.{part}": getattr(model.config, part)._attn_implementation for part in model.config.sub_configs
    }


@pytest.mark.parametrize("mixture", MIXTURES, ids=lambda mixture: "-".join(mixture.values()))
@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_a_step_leaves_every_part_as_it_was(kind: str, mixture: dict[str, str]) -> None:
    """Catches parts that are given the whole model's attention back in the place of their own, after a step and after
    one that failed.
    """
    model = multipart(kind, mixture)
    before = parts_of(model)
    assert {part: before[f"config.{part}"] for part in ("text_config", "vision_config")} | {"": before[""]} == mixture
    runner = ModelRunner(model, num_blocks=8, block_size=4)
    table = BlockTable(BlockPool(runner.cache.num_blocks, runner.cache.block_size))
    table.append_tokens(3)
    logits = runner.execute([5, 9, 2], attention_metadata([table], [3]))
    assert parts_of(model) == before
    expected = model(torch.tensor([[5, 9, 2]]), use_cache=False).logits[0, -1]
    torch.testing.assert_close(logits[0], expected)

    runner.cache.value_caches.clear()  # a layer finds no cache to write to
    with pytest.raises(IndexError):
        runner.execute([5, 9, 2], attention_metadata([table], [3]))
    assert parts_of(model) == before


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_every_part_is_set_and_given_back(kind: str) -> None:
    """Catches a part that is never set, and parts not given back when the block inside raises."""
    model = multipart(kind, MIXTURES[0])
    before = parts_of(model)
    with pytest.raises(RuntimeError, match="in the middle"), attention_of(model, ATTENTION_NAME):
        assert set(parts_of(model).values()) == {ATTENTION_NAME}
        raise RuntimeError("in the middle")
    assert parts_of(model) == before


def test_a_name_that_nobody_registered() -> None:
    """Catches a model half set when transformers refuses the name, or a part of the model does."""
    model = multipart("llava", MIXTURES[0])
    before = parts_of(model)
    with pytest.raises(ValueError, match="nobody"), attention_of(model, "nobody"):
        raise AssertionError("never reached")
    assert parts_of(model) == before
    model.model.vision_tower.get_correct_attn_implementation = lambda *_: (_ for _ in ()).throw(ValueError("not here"))
    with pytest.raises(ValueError, match="not here"), attention_of(model, ATTENTION_NAME):
        raise AssertionError("never reached")
    assert parts_of(model) == before


def test_a_configuration_of_its_own_in_a_module() -> None:
    """Catches a search that knows the model's configuration and its parts only: a module may hold a copy."""
    model = multipart("llava", MIXTURES[0])
    language = model.model.language_model
    language.config = type(language.config).from_dict(language.config.to_dict())
    language.config._attn_implementation = "eager"
    before = parts_of(model)
    with attention_of(model, ATTENTION_NAME):
        assert language.config._attn_implementation == ATTENTION_NAME
    assert parts_of(model) == before


def test_a_part_without_its_module() -> None:
    """Catches a search through modules only: transformers also sets the configuration of a part that is gone."""
    model = multipart("llava", MIXTURES[0])
    del model.model.vision_tower
    before = parts_of(model)
    with attention_of(model, ATTENTION_NAME):
        assert model.config.vision_config._attn_implementation == ATTENTION_NAME
    assert parts_of(model) == before


def test_two_threads_on_one_model() -> None:
    """Catches a model left with the name that another thread had put there for a while."""
    model = tiny("llama")
    usual, first_is_in, second_is_done = model.config._attn_implementation, threading.Event(), threading.Event()

    def first() -> None:
        with attention_of(model, ATTENTION_NAME):
            first_is_in.set()
            second_is_done.wait(0.2)  # in vain, if the second waits for this one

    def second() -> None:
        first_is_in.wait()
        with attention_of(model, "sdpa"):
            one.join(1)
            assert model.config._attn_implementation == "sdpa"
        second_is_done.set()

    with ThreadPoolExecutor(1) as pool:
        one = threading.Thread(target=first)
        one.start()
        pool.submit(second).result()
    assert model.config._attn_implementation == usual
