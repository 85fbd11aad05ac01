"""A model's configuration, wherever it is: a well-known name, a folder, a file, a mapping, the Hub.

The well-known ones lie in ``known_models.json``, so that a budget needs neither the network nor transformers. The file
is written by ``tools/known_models.py``, which says where its figures come from.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pagedattn_lab.budget.errors import BudgetError
from pagedattn_lab.kv_config import CompleteConfig, text_fields


@cache
def _known() -> dict[str, dict[str, Any]]:
    """Read the file of well-known models: by Hub id, the figures of the text decoder and its numbers of parameters."""
    text = resources.files("pagedattn_lab.budget").joinpath("known_models.json").read_text(encoding="utf-8")
    models: dict[str, dict[str, Any]] = json.loads(text)["models"]
    return models


def known_models() -> tuple[str, ...]:
    """Names of the models whose figures are here, without the network.

    Example:
        >>> "meta-llama/Llama-3.1-8B" in known_models()
        True
    """
    return tuple(_known())


def _find_known(name: str) -> CompleteConfig | None:
    """Look a model up by its id, with or without the owner, in any case; an instruct version has its base's figures."""
    short = name.rstrip("/").rsplit("/", 1)[-1].lower()
    bare = short.removesuffix("-instruct").removesuffix("-it").removesuffix("-chat").removesuffix("-hf")
    for wanted in (name.lower(), short, bare):
        for known, entry in _known().items():
            names = {part.lower() for also in (known, *entry.get("also", ())) for part in (also, also.split("/")[-1])}
            if wanted in names and ("/" not in name or name.split("/")[0] == known.split("/")[0]):
                return CompleteConfig(entry["config"], parameters=entry["parameters"], name=known)
    return None


def _nearest(name: str) -> str:
    """Ask for the known models that are written most like a name, whoever owns them; nothing if none is."""
    short = {known.split("/")[-1].lower(): known for known in _known()}
    close = difflib.get_close_matches(name.rstrip("/").split("/")[-1].lower(), short, n=3)
    return f"; did you mean {' or '.join(short[each] for each in close)}?" if close else ""


def load_config(model: Any) -> CompleteConfig:
    """Read what a model's configuration says of its text decoder.

    Args:
        model: the id of a well-known model (see :func:`known_models`; upper and lower case and the owner do not matter,
            ``-Instruct`` may follow), a folder with a ``config.json``, such a file, the mapping in it, or a
            transformers configuration object. Any other string is looked up by transformers, in its cache or on the
            Hub.

    Returns:
        The figures under their usual names, with what the model's class fills in. ``parameters`` holds the numbers of
        parameters of a well-known model, ``published`` the mapping that any other was read from.

    Raises:
        BudgetError: there is no such model or file, or it holds no configuration.
        ValueError: the configuration is not one of a decoder (see :mod:`pagedattn_lab.kv_config`).

    Example:
        >>> config = load_config("Llama-3.1-8B-Instruct")
        >>> config["name"], config["num_hidden_layers"], config["num_key_value_heads"]
        ('meta-llama/Llama-3.1-8B', 32, 8)
        >>> load_config(config) is config
        True
    """
    if isinstance(model, CompleteConfig):
        return model
    if isinstance(model, str | Path):
        path = Path(model).expanduser()
        file = path / "config.json" if path.is_dir() else path
        if file.suffix == ".json" or path.is_dir():
            return _complete(_read_file(file), name=str(model))
        known = _find_known(str(model))
        return known if known is not None else _complete(_look_up(str(model)), name=str(model))
    return _complete(model)


def _complete(config: Any, name: str | None = None) -> CompleteConfig:
    """Fill in what the class of a configuration knows, and keep what was published."""
    if not isinstance(config, Mapping) and not hasattr(config, "get_text_config"):
        raise BudgetError(
            f"a {type(config).__name__} is no model: give a Hub id, a folder, a config.json, the mapping in it or a "
            "transformers configuration"
        )
    published = dict(config) if isinstance(config, Mapping) else config.to_dict()
    for source in (published, published.get("text_config") or {}):
        for heads in ("num_attention_heads", "num_key_value_heads"):  # 0 would pass for a figure that is left out
            number = source.get(heads) if isinstance(source, Mapping) else None
            if isinstance(number, int) and number < 1:
                raise BudgetError(f"the configuration says {heads} = {number}: give at least 1")
    complete = CompleteConfig(text_fields(config), published=published)
    complete["name"] = name or published.get("_name_or_path") or published.get("model_type") or "this model"
    return complete


def _read_file(file: Path) -> dict[str, Any]:
    try:
        mapping = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BudgetError(f"there is no {file}: give the folder of a model, or its config.json") from None
    except (OSError, ValueError) as error:
        raise BudgetError(f"{file} cannot be read as a config.json ({error}): give another file") from None
    if not isinstance(mapping, dict):
        raise BudgetError(f"{file} holds a {type(mapping).__name__}, a config.json holds an object: give another file")
    return mapping


def _look_up(name: str) -> Any:
    """Let transformers find a configuration in its cache or on the Hub."""
    try:
        from transformers import AutoConfig
    except ImportError:
        raise BudgetError(
            f"{name!r} is not one of the {len(_known())} models known here, and transformers, which could look it up, "
            f"is not installed: install it, or give the path of the model's config.json{_nearest(name)}"
        ) from None
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        cause = str(error).strip().splitlines()[0]
        raise BudgetError(
            f"{name!r} is not one of the {len(_known())} models known here, and transformers does not find it "
            f"({cause}): give the path of its config.json, or the name of a model like it{_nearest(name)}"
        ) from None
