"""Load a language model: the book's default one, or any other decoder (chapters 00 and 09)."""

from __future__ import annotations

import os
import re
import textwrap
from typing import TYPE_CHECKING

from pagedattn_lab.models.default import (
    DEFAULT,
    ModelLoadError,
    cache_directory,
    corrupted_file,
    ensure_default,
    is_cached,
)
from pagedattn_lab.models.detokenize import IncrementalDetokenizer, detokenize
from pagedattn_lab.models.prompts import encode_conversation, encode_prefix, encode_prompt
from pagedattn_lab.models.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "DEFAULT",
    "IncrementalDetokenizer",
    "ModelLoadError",
    "cache_directory",
    "configured_stop_token_ids",
    "corrupted_file",
    "detokenize",
    "encode_conversation",
    "encode_prefix",
    "encode_prompt",
    "ensure_default",
    "is_cached",
    "load",
    "stop_token_ids",
]


def load(
    name: str | os.PathLike[str] = DEFAULT, dtype: torch.dtype | None = None, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a decoder and its tokenizer, ready to generate.

    Args:
        name: :data:`~pagedattn_lab.models.default.DEFAULT`, a folder with a saved model, or the id of one on the
            Hugging Face hub. Code that comes with a model is never run.
        dtype: dtype of the weights; float32 by default, in which results can be compared token by token.
        device: by default a GPU where there is one, else the CPU.

    Returns:
        ``(model, tokenizer)``, the model in evaluation mode.

    Raises:
        ModelLoadError: it cannot be found, fetched, read, or is no decoder; the message says what to do.
    """
    name = os.fspath(name)
    folder, local_files_only = _find(name)  # before the imports, which take seconds
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    part = "weights"
    try:
        with quiet_transformers():
            source = {"trust_remote_code": False, "local_files_only": local_files_only}
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype or torch.float32, output_loading_info=True, **source
            )
            part = "tokenizer"
            tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    except Exception as error:  # whatever a stranger's folder provokes becomes one sentence, with the cause attached
        raise ModelLoadError(_explain(name, part, error)) from error
    if report["missing_keys"]:  # transformers would fill them with random numbers
        raise ModelLoadError(
            f"{name!r} lacks {len(report['missing_keys'])} of its weights, {min(report['missing_keys'])} among them: "
            "it is incomplete, or no decoder"
        )
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Give the tokens that end an answer, by the model's generation settings or else its tokenizer."""
    configured = configured_stop_token_ids(model)
    ids = [tokenizer.eos_token_id] if configured is None else configured
    return {token for token in ids if token is not None}


def configured_stop_token_ids(model: PreTrainedModel) -> list[int] | None:
    """Give the tokens that end an answer by the model's generation settings, in their order; ``None`` if they say none.

    There may be one or several, and the settings hold either a number or a list.
    """
    configured = model.generation_config.eos_token_id
    return configured if configured is None or isinstance(configured, list) else [configured]


def _find(name: str) -> tuple[str | os.PathLike[str], bool]:
    """Say where a model is, and whether only files on this machine can serve. Loads neither torch nor transformers.

    Raises:
        ModelLoadError: no model can be there: no such folder, one without a configuration, no id that the hub could
            have, one that it does not have, or no answer from the hub for a model never downloaded here.
    """
    if name == DEFAULT:
        return ensure_default(), True
    if os.path.isdir(name):
        if not os.path.isfile(os.path.join(name, "config.json")):
            raise ModelLoadError(f"the folder {name!r} holds no decoder that transformers can load: no config.json")
        return name, True
    if os.path.exists(name):
        raise ModelLoadError(f"{name!r} is a file: name the folder that holds config.json and the weights")
    if os.path.isabs(name) or name.startswith((".", "~")):
        raise ModelLoadError(f"there is no folder {name!r}: check the path")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ModelLoadError(
            f"{name!r} is neither a folder nor an id that the Hugging Face hub could have, such as gpt2 or owner/model"
        ) from None
    try:
        has_answered = _hub_knows(name)
    except Exception as error:
        raise ModelLoadError(_explain(name, "weights", error)) from error
    if not has_answered and not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise ModelLoadError(
            f"{name!r} could not be loaded (the hub gives no answer, and it was never downloaded here): check the id, "
            "and connect to the network"
        )
    return name, not has_answered


def _hub_knows(name: str) -> bool:
    """Ask the hub for a model once; ``False`` means it gave no answer, so only what was downloaded before can serve."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=10)
    except RepositoryNotFoundError:
        raise
    except Exception:  # no network, offline mode, a hub that is down: all the same to the caller
        return False
    return True


def _explain(name: str, part: str, error: Exception) -> str:
    """Turn what transformers raised over a model's weights or tokenizer into one sentence with the fix."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    reason = textwrap.shorten(text, 200)
    if "trust_remote_code" in text:
        return f"{name!r} needs code of its own, which this book never runs: choose a model that transformers includes"
    if part == "tokenizer" and name != DEFAULT:
        return f"{name!r} has weights and no tokenizer that can be read ({reason}): save its tokenizer beside them"
    if name == DEFAULT:
        return f"{name} could not be read ({reason}): make its files in {cache_directory()} readable, or delete them"
    if os.path.isdir(name):
        return f"the folder {name!r} holds no decoder that transformers can load ({reason})"
    if "Unrecognized configuration class" in text or "Unrecognized model" in text:
        return f"{name!r} is not a decoder-only language model that transformers includes: choose another"
    return (
        f"{name!r} could not be loaded ({reason}): check the id, sign in if the model is gated, and connect to the "
        "network if it was never downloaded here"
    )
