"""From MODEL, as a user writes it, to a folder and a DecoderSpec.

A folder has the Hugging Face layout. Nothing in it is ever executed: configs are read as JSON, and code
that `auto_map` names is left alone.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from headway.core.errors import ModelError, shorten
from headway.model.checkpoint import INDEX, read_object
from headway.model.families import FAMILIES, Family
from headway.model.families.fields import eos_ids
from headway.model.spec import DecoderSpec

DEMO = "demo"
HUB_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>\w[\w./-]*))?")
HUB_TIMEOUT_S = 5.0  # for the hub to answer; a download that has begun may take longer
HUB_ANSWERS = {401: "unknown or private", 403: "gated or private", 404: "unknown"}
CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
WEIGHT_FILES = ("model*.safetensors", INDEX)


def resolve(model: str, *, weights: bool = True) -> Path:
    """The folder of `model`: a folder, "demo" (the bundled model), or a hub name such as "owner/name".

    A hub name is fetched into the hub's cache (without weights where `weights` is False), or taken from
    there when the hub cannot be reached; "owner/name@revision" is its state at a commit, branch or tag.
    Raises ModelError.
    """
    if model == DEMO:
        return Path(__file__).parent.parent / "demo"
    path = Path(model)
    try:
        is_folder, is_file = bool(model) and path.is_dir(), path.is_file()
    except OSError as error:
        raise ModelError(f"model {shorten(model)} cannot be read: {error.strerror}") from error
    if is_folder:
        return path
    if is_file:
        raise ModelError(f"model {shorten(model)} is a file; give the folder that holds config.json")
    hub_name = HUB_NAME.fullmatch(model)
    if not hub_name:
        raise ModelError(f"model {shorten(model)} is not a folder, a hub name (owner/name) or {DEMO!r}")
    patterns = [*CONFIG_FILES, *WEIGHT_FILES] if weights else [*CONFIG_FILES]
    return _fetch(hub_name["name"], hub_name["revision"], patterns)


def pinned(model: str, folder: Path) -> str:
    """What gives any host the files in `folder`, to which `model` was resolved: a hub name at its commit.

    Another host may have a later state of the model in its cache, or fetch one. What is no hub name stays.
    """
    if model == DEMO or folder == Path(model):
        return model
    return f"{model.partition('@')[0]}@{folder.name}"  # the hub's cache names a snapshot by its commit


def _fetch(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    reason = "not in the local cache"
    reachable = False
    try:
        # asked first, as snapshot_download may wait for ever
        HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S)
        reachable = True
    except HfHubHTTPError as error:
        hint = HUB_ANSWERS.get(error.response.status_code, "try again later")
        reason = f"the hub answers {error.response.status_code}: {hint}"
    except Exception as error:  # the client's transport errors have no base that the hub library names
        reason = f"the hub cannot be reached: {_first_line(error)}"
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, local_files_only=not reachable
            )
        )
    except Exception as error:
        if reachable:
            reason = _first_line(error)
        model = f"{name}@{revision}" if revision else name
        raise ModelError(
            f"model {model!r} is neither a folder nor a model that can be fetched ({reason})"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_spec(folder: Path) -> DecoderSpec:
    """The decoder that config.json and generation_config.json in `folder` describe; raises ModelError."""
    if not folder.is_dir():
        raise ModelError(f"model folder {folder} does not exist")
    config = _read_config(folder / "config.json")
    family = _family(folder, config)
    if config.get("quantization_config"):
        method = config["quantization_config"]
        method = method.get("quant_method", method) if isinstance(method, dict) else method
        raise ModelError(f"{folder} is quantised ({shorten(method)}); only unquantised weights are supported")
    spec = family.spec(config)
    generation = folder / "generation_config.json"
    if generation.is_file():
        ids = eos_ids(_read_config(generation), spec.vocab_size)
        spec = replace(spec, eos_token_ids=ids or spec.eos_token_ids)
    return spec


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(f"{file.parent} has no {file.name}; give a folder in Hugging Face layout")
    return read_object(file)


def _family(folder: Path, config: Mapping[str, Any]) -> Family:
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if model_type is None:
        raise ModelError(f"{folder}: config.json lacks model_type; supported: {', '.join(FAMILIES)}")
    if family is None:
        text = _unsupported(folder, "model_type", model_type, list(FAMILIES))
        named = config.get("architectures")
        raise ModelError(f"{text}; its architectures are {shorten(named)}" if named else text)
    architectures = config.get("architectures") or []
    for architecture in architectures if isinstance(architectures, list) else [architectures]:
        if architecture not in family.ARCHITECTURES:
            raise ModelError(_unsupported(folder, "architecture", architecture, list(family.ARCHITECTURES)))
    return family


def _unsupported(folder: Path, field: str, value: Any, supported: list[str]) -> str:
    nearest = get_close_matches(str(value), supported, n=1, cutoff=0.0)[0]
    return (
        f"{folder}: {field} {shorten(value)} is not supported; "
        f"supported: {', '.join(supported)} (nearest: {nearest})"
    )
