"""What a model is made of, known without a download: layers, heads, vocabulary and the exact number of parameters.

Guarantees: nothing heavy is imported and nothing is fetched; `Architecture.count` equals what transformers builds for
qwen2, qwen3, llama and mistral (a test instantiates them); a folder's facts come from its own config.json, whatever the
config says; a model path that cannot work is named before anything is spent.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from sweeper.errors import Problem

CONF = Path(__file__).resolve().parents[2] / "conf" / "model"
"""The models that are known by name; their files are the only place where their facts are written."""

# What each family adds to a plain decoder: biases on q, k, v; a norm on each head of q and k.
_QKV_BIAS = {"qwen2"}
_HEAD_NORMS = {"qwen3"}
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer with gated MLPs and grouped key-value heads."""

    model_type: str
    """transformers' name of the family: `qwen2`."""
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    """Whether the output layer is the embedding itself."""
    params: int | None = None
    """None where the formula does not know the family's layers (mixtures of experts)."""

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Architecture:
        """From the `model.arch` mapping of a config."""
        return cls(**{f.name: facts[f.name] for f in fields(cls) if f.name in facts})

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Architecture:
        """From the content of a Hugging Face `config.json`.

        A model with a vision tower is described by its text part. Families that are not known are counted like
        Llama, which is right within a few per cent for dense decoders; a mixture of experts is not counted.

        Raises:
            KeyError: A field that every decoder has is missing.
        """
        text = config.get("text_config", config)
        heads, hidden = int(text["num_attention_heads"]), int(text["hidden_size"])
        arch = cls(
            model_type=str(text.get("model_type", "unknown")),
            layers=int(text["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(text.get("intermediate_size") or 4 * hidden),
            heads=heads,
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_dim=int(text.get("head_dim") or hidden // heads),
            vocab=int(text["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        )
        if any("expert" in key for key in text):
            return arch
        count = arch.count()
        if text.get("attention_bias") and arch.model_type not in _QKV_BIAS:
            count += arch.layers * ((arch.heads + 2 * arch.kv_heads) * arch.head_dim + hidden)
        if text.get("mlp_bias"):
            count += arch.layers * (2 * arch.intermediate + hidden)
        return cls(**{f.name: getattr(arch, f.name) for f in fields(cls) if f.name != "params"}, params=count)

    def count(self) -> int:
        """The number of parameters.

        embedding           vocab x hidden, twice unless tied
        attention, a layer  q and o: 2 x hidden x (heads x head_dim); k and v: 2 x hidden x (kv_heads x head_dim);
                            qwen2 adds biases of q, k, v; qwen3 norms of q and k, 2 x head_dim
        MLP, a layer        gate, up and down: 3 x hidden x intermediate
        norms               2 x hidden a layer, and a last one
        """
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = 2 * self.hidden * (q + kv) + 3 * self.hidden * self.intermediate + 2 * self.hidden
        if self.model_type in _QKV_BIAS:
            layer += q + 2 * kv
        if self.model_type in _HEAD_NORMS:
            layer += 2 * self.head_dim
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return embeddings + self.layers * layer + self.hidden

    def divides(self, tp: int) -> bool:
        """Whether the weights can be split over `tp` ranks.

        vLLM (0.24, vllm/model_executor/models/qwen2.py): heads % tp == 0, and kv % tp == 0 or tp % kv == 0; its
        parallel linear layers also need intermediate % tp == 0.
        """
        if tp < 1 or self.heads % tp or self.intermediate % tp:
            return False
        return self.kv_heads % tp == 0 or tp % self.kv_heads == 0

    def valid_tp(self, gpus_per_node: int) -> list[int]:
        """The tensor parallel sizes that work on nodes of that many ranks.

        A copy must not straddle nodes: gpus_per_node % tp == 0 (verl/workers/rollout/vllm_rollout/
        vllm_async_server.py:385).
        """
        return [tp for tp in range(1, gpus_per_node + 1) if gpus_per_node % tp == 0 and self.divides(tp)]


def known(hf_id: str) -> Architecture | None:
    """The facts of a hub id that one of our model files names, or of its base model; None for any other."""
    return _known().get(hf_id.removesuffix("-Instruct"))


@lru_cache(maxsize=1)
def _known() -> dict[str, Architecture]:
    found = {}
    for file in sorted(CONF.glob("*.yaml")):
        model = yaml.safe_load(file.read_text(encoding="utf-8"))["model"]
        if model["hf_id"]:
            # Qwen's base and instruct models share one architecture.
            found[str(model["hf_id"]).removesuffix("-Instruct")] = Architecture.from_facts(model["arch"])
    return found


def describe(config: Mapping[str, Any]) -> tuple[Architecture | None, list[Problem]]:
    """The facts of the model that this config trains, and what is wrong with its path.

    A local folder speaks for itself; an id of the hub is looked up among the known; a model that we build has the
    facts of its file. None: nothing is known, so nothing about it can be checked.
    """
    model = config.get("model") or {}
    path = config["actor_rollout_ref"]["model"].get("path") or model.get("path")
    if not path:
        if model.get("build"):
            return Architecture.from_facts(model["arch"]), []
        return None, [
            Problem(
                "no model: actor_rollout_ref.model.path is empty",
                fix="model=qwen0.5b, or model.path=<folder or hub id>",
                key="model.path",
            )
        ]
    if path == model.get("hf_id"):
        return Architecture.from_facts(model["arch"]), []
    return at(str(path))


def at(path: str) -> tuple[Architecture | None, list[Problem]]:
    """The facts of a folder or hub id, and what is wrong with it."""
    if "://" in path:  # a remote file system: the trainer fetches it, we cannot look
        return None, []
    folder = Path(path).expanduser()
    if folder.exists():
        stamp = folder.stat().st_mtime_ns
        return _at_folder(str(folder), stamp)
    if _is_hub_id(path):
        return known(path), []
    return None, [_missing(folder)]


def _is_hub_id(path: str) -> bool:
    """`Qwen/Qwen2.5-7B` is one; `models/qwen` is not where a folder `models` exists; a single word only if known."""
    if "/" not in path:
        return known(path) is not None
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).parent.is_dir()


def _missing(path: Path) -> Problem:
    near = nearest_sibling(path)
    return Problem(
        f"model path {path} does not exist",
        valid="a folder with config.json, weights and tokenizer, or an id of the Hugging Face hub",
        fix=f"model.path={near}" if near else "",
        key="model.path",
    )


def nearest_sibling(path: Path) -> Path | None:
    """The existing path that was probably meant: each missing part replaced by the closest name beside it."""
    missing, parent = path, path.parent
    while not parent.exists() and parent != parent.parent:
        missing, parent = parent, parent.parent
    try:
        names = [p.name for p in parent.iterdir()]
    except OSError:
        return None
    close = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.6)
    if not close:
        return None
    meant = parent / close[0] / path.relative_to(missing)
    return meant if meant.exists() else nearest_sibling(meant)


@lru_cache(maxsize=256)
def _at_folder(path: str, _mtime_ns: int) -> tuple[Architecture | None, list[Problem]]:
    folder = Path(path)
    if not folder.is_dir():
        return None, [Problem(f"model path {folder} is a file, not a folder", key="model.path")]
    lacks = _lacks(folder)
    if lacks:
        near = [p.parent for p in sorted(folder.glob("*/config.json"))]
        return None, [
            Problem(
                f"model folder {folder} has no {', no '.join(lacks)}",
                valid="config.json, weights (*.safetensors or *.bin) and a tokenizer",
                fix=f"model.path={near[0]}" if near else "",
                key="model.path",
            )
        ]
    try:
        return Architecture.from_hf(json.loads((folder / "config.json").read_text(encoding="utf-8"))), []
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        return None, [Problem(f"{folder / 'config.json'} does not describe a decoder: {reason}", key="model.path")]


def _lacks(folder: Path) -> list[str]:
    names = {p.name for p in folder.iterdir()}
    lacks = [] if "config.json" in names else ["config.json"]
    lacks += _missing_weights(folder, names)
    if not names & {"tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"}:
        lacks.append("tokenizer")
    return lacks


def _missing_weights(folder: Path, names: set[str]) -> list[str]:
    """A half-finished download has an index and lacks some of the shards that it lists."""
    for index in sorted(n for n in names if n.endswith((".safetensors.index.json", ".bin.index.json"))):
        try:
            shards = set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            return [f"readable {index}"]
        return sorted(shards - names)[:3]
    has = any(n.endswith(".safetensors") or (n.startswith("pytorch_model") and n.endswith(".bin")) for n in names)
    return [] if has else ["weights"]
