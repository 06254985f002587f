"""Models of transformers, tiny and with random weights, from a loader to a saved patch. Nothing is downloaded."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import nnrepair
from nnrepair import InvalidInput, LocalitySet
from nnrepair.methods import FineTune, MinimalNorm

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

PAGE = Path(__file__).parents[1] / "docs" / "your-model.md"
WORDS = [f"w{k}" for k in range(60)]
LAST = MinimalNorm(layer="classifier")


def made(kind: str, **more: Any) -> Any:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, **more
    )
    with torch.random.fork_rng([]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return getattr(transformers, kind)(config).eval()


def sentences(count: int, seed: int, length: int = 9) -> Any:
    draw = torch.Generator().manual_seed(seed)
    mask = (torch.arange(length) < torch.randint(4, length + 1, (count, 1), generator=draw)).long()
    ids = torch.randint(4, 64, (count, length), generator=draw) * mask
    return transformers.BatchEncoding({"input_ids": ids, "attention_mask": mask})


def rows(batch: Any, labels: torch.Tensor) -> list[dict[str, Any]]:
    """Return sentences without their padding, as a table has them."""
    lengths = batch["attention_mask"].sum(1).tolist()
    return [
        {"input_ids": ids[:n].tolist(), "attention_mask": [1] * n, "labels": int(label)}
        for ids, n, label in zip(batch["input_ids"], lengths, labels, strict=True)
    ]


def padded(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad to the longest of a batch, as DataCollatorWithPadding does."""
    longest = max(len(item["input_ids"]) for item in items)
    found = {
        name: torch.tensor([item[name] + [0] * (longest - len(item[name])) for item in items])
        for name in ("input_ids", "attention_mask")
    }
    return found | {"labels": torch.tensor([item["labels"] for item in items])}


def test_ten_lines_from_a_loader_to_a_patch(tmp_path: Path) -> None:
    model, wrong, others = made("BertForSequenceClassification", num_labels=3), sentences(2, 1), sentences(40, 2)
    right, today = model(**wrong).logits.argsort(1)[:, 1], model(**others).logits.argmax(1)

    kept = DataLoader(rows(others, today), batch_size=8, collate_fn=padded, shuffle=True)
    result = nnrepair.fix(model, (wrong, right), kept, method=LAST)
    path = result.save_patch(tmp_path / "fix.safetensors")
    repaired = nnrepair.Patch.load(path).apply(model)

    assert type(repaired) is type(model) and result.report.locality == 1.0 and result.report.drawdown == 0.0
    assert torch.equal(repaired(**wrong).logits.argmax(1), right)
    assert torch.equal(repaired(**others).logits.argmax(1), today)


def test_hidden_layers_and_methods() -> None:
    model, wrong, others = made("BertForSequenceClassification", num_labels=3), sentences(2, 1), sentences(20, 2)
    right = model(**wrong).logits.argsort(1)[:, 1]
    for method in (MinimalNorm(layer="bert.encoder.layer.1.output.dense"), FineTune(lr=1e-3, rehearsal=8)):
        result = nnrepair.fix(model, (wrong, right), LocalitySet(others), method=method)
        assert torch.equal(result.model(**wrong).logits.argmax(1), right)


def test_tokens_with_labels_of_their_own() -> None:
    model, batch = made("BertForTokenClassification", num_labels=4), sentences(12, 3)
    y = model(**batch).logits.detach()
    labels = torch.where(batch["attention_mask"] > 0, y.argmax(2), -100)
    wanted = labels[:1].clone()
    wanted[0, 2] = y[0, 2].argsort()[-2]
    first, rest = ({name: part[k] for name, part in batch.items()} for k in (slice(0, 1), slice(1, None)))
    result = nnrepair.fix(model, {**first, "labels": wanted}, {**rest, "labels": labels[1:]}, method=LAST)
    now = result.model(**first).logits.argmax(2)
    assert torch.equal(now[wanted >= 0], wanted[wanted >= 0]) and result.report.drawdown == 0.0


def test_several_scores_are_named() -> None:
    model, batch = made("BertForQuestionAnswering"), sentences(6, 4)
    with pytest.raises(nnrepair.UnsupportedModel, match="'start_logits' .*'end_logits' .*output=NAME"):
        nnrepair.fix(model, ({k: v[:1] for k, v in batch.items()}, [2]), LocalitySet(batch))
    start = model(**batch).start_logits[:1].argsort(1)[:, -2]
    one = {name: part[:1] for name, part in batch.items()}
    method = MinimalNorm(layer="qa_outputs", locality="soft")
    result = nnrepair.fix(model, (one, start), LocalitySet(batch), output="start_logits", method=method)
    assert torch.equal(result.model(**one).start_logits.argmax(1), start)


def test_rows_that_cannot_be_a_batch_are_told_with_what_to_do() -> None:
    table = rows(sentences(4, 1), torch.tensor([0, 1, 2, 0]))
    with pytest.raises(InvalidInput, match="'input_ids' has different lengths.*DataCollatorWithPadding"):
        nnrepair.Edits(table)
    with pytest.raises(InvalidInput, match="'text' is text, and models take numbers.*remove_columns"):
        nnrepair.Edits([{"text": "w1 w2", "input_ids": [1, 2], "labels": 0}])
    lists = {name: [row[name] for row in table] for name in table[0]}
    with pytest.raises(InvalidInput, match=r"different lengths: pad them.*tokenizer\(texts, padding=True"):
        nnrepair.Edits(lists)


def test_the_lines_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made("BertForSequenceClassification", num_labels=3).save_pretrained(tmp_path / "model")
    words = {"[PAD]": 0, "[UNK]": 1, **{word: k + 2 for k, word in enumerate(WORDS)}}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]")
    draw = torch.Generator().manual_seed(5)
    texts = [" ".join(WORDS[k] for k in torch.randint(60, (3 + n % 5,), generator=draw)) for n in range(20)]
    known: dict[str, Any] = {
        "nnrepair": nnrepair,
        "AutoModelForSequenceClassification": transformers.AutoModelForSequenceClassification,
        "name": str(tmp_path / "model"),
        "tokenizer": tokenizer,
        "wrong_texts": texts[:2],
        "right_labels": [1, 2],
        "dataset": [{**tokenizer(text), "label": k % 3} for k, text in enumerate(texts[4:])],
    }
    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) <= 10
    exec(lines, known)
    assert "success rate" in capsys.readouterr().out and (tmp_path / "fix.safetensors").exists()
