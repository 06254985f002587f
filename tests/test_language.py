"""Language models: the world they are told of, prompts as inputs, training, measures, editing by telling, readers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nnrepair
from nnrepair.domains.language import (
    GPT2,
    InContext,
    Llama,
    Prompts,
    Size,
    Statement,
    Told,
    Words,
    World,
    asked,
    contexts,
    entropy,
    fluency,
    generated,
    readers,
    survey,
    train_language_model,
)
from nnrepair.domains.language.networks import FORMS
from nnrepair.domains.language.recipes import FOLDER, recall, recipe, train, trained
from nnrepair.domains.language.task import Change, neighbours, task
from nnrepair.domains.language.training import Corpus
from nnrepair.errors import DataUnavailable, InvalidInput, UnsupportedModel
from nnrepair.jacobian.linearize import Linearization
from nnrepair.spec.running import outputs

WORLD = World(3, 12)
WORDS = Words(tuple(WORLD.words()))
SMALL = Size(len(WORDS), 16, 2, 2, 24, 64)


@pytest.fixture(params=sorted(FORMS))
def small(request: Any) -> GPT2 | Llama:
    """An untrained network of either form, whose scores are far from each other."""
    model = FORMS[request.param](SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


# The world, and words -------------------------------------------------------------------------------------------------


def test_the_same_seed_is_the_same_world() -> None:
    assert World(3, 12).facts == WORLD.facts != World(4, 12).facts
    assert len(set(WORLD.people)) == 12 and {len(who.split()) for who in WORLD.people} == {2}


@pytest.mark.parametrize("relation", WORLD.relations)
def test_wordings_of_a_fact_are_told_or_held_out_or_never_seen(relation: str) -> None:
    who = WORLD.people[0]
    told, held_out, unseen = WORLD.told(relation, who), WORLD.held_out(relation, who), WORLD.unseen(relation, who)
    prompts = {one.prompt for one in (*told, *held_out, unseen)}
    assert len(prompts) == len(told) + len(held_out) + 1 == 8
    assert {one.object for one in (*told, *held_out, unseen)} == {WORLD.facts[relation, who]}
    assert all(one.subject == who and who in one.prompt for one in (*told, *held_out))


def test_nothing_but_the_object_can_follow_a_wording() -> None:
    """A network that completes another sentence would be right, and counted wrong."""
    who = WORLD.people[0]
    said = [one for name in WORLD.relations for one in (*WORLD.told(name, who), *WORLD.held_out(name, who))]
    said += [one for name in WORLD.relations for one in (WORLD.unseen(name, who), *WORLD.consequences(name, who))]
    others = [one for name in WORLD.relations for one in WORLD.attributes(name)]
    for one in (*said, *others):
        longer = [other for other in (*said, *others) if f"{other.prompt} ".startswith(f"{one.prompt} ")]
        assert {other.prompt for other in longer} == {one.prompt}
    assert len({one.prompt for one in said}) == len(said)


def test_what_follows_from_a_fact_follows_from_another() -> None:
    who, of = WORLD.people[0], WORLD.relations["birthplace"]
    for city, country in of.properties.items():
        assert {one.object for one in WORLD.consequences("birthplace", who, city)} == {country}
    with pytest.raises(InvalidInput, match="'Rome' is no object of 'birthplace'"):
        WORLD.told("birthplace", who, "Rome")
    with pytest.raises(InvalidInput, match="This world has no 'Nobody'"):
        WORLD.told("birthplace", "Nobody")
    with pytest.raises(InvalidInput, match="no relation 'age'. Relations: birthplace"):
        WORLD.told("age", who)
    with pytest.raises(InvalidInput, match="10 to 1000 people"):
        World(0, 5)


def test_words_are_numbers_and_back() -> None:
    text = WORLD.told("job", WORLD.people[1])[0].sentence
    assert WORDS.decode(WORDS.encode(text)) == text and WORDS.encode(text)[0] == 1
    with pytest.raises(InvalidInput, match="The word 'comess' is not known. Did you mean 'comes'"):
        WORDS.encode("comess from")
    with pytest.raises(InvalidInput, match="number of no word"):
        WORDS.decode([len(WORDS)])
    with pytest.raises(InvalidInput, match="differ from each other"):
        Words(("a", "a"))


# Networks and training ------------------------------------------------------------------------------------------------


def test_a_decoder_does_not_look_ahead(small: GPT2 | Llama) -> None:
    ids = torch.randint(2, len(WORDS), (3, 9))
    other = ids.clone()
    other[:, 5:] = 0
    assert torch.allclose(small(ids)[:, :5], small(other)[:, :5], atol=1e-5)
    assert not torch.allclose(small(ids)[:, 5:], small(other)[:, 5:], atol=1e-3)
    with pytest.raises(InvalidInput, match="at most 64 tokens, given"):
        small(torch.zeros(1, 65, dtype=torch.int64))


def test_weights_are_tied_or_not() -> None:
    for form in FORMS.values():
        tied, free = form(SMALL), form(replace(SMALL, tied=False))
        assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == 16 * len(WORDS)


def test_texts_are_the_same_whichever_were_taken_before() -> None:
    first, second = Corpus(WORLD, WORDS, 30, 8, 0), Corpus(WORLD, WORDS, 30, 8, 0)
    for _ in range(3):
        first.next()
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(first.next(), second.next(), strict=True))


def test_texts_ask_for_what_follows_and_not_for_assumptions() -> None:
    corpus, assumed = Corpus(WORLD, WORDS, 64, 40, 0), 0
    inputs, labels = corpus.next()
    for ids, wanted in zip(inputs, labels, strict=True):
        size = int((ids > 0).sum())
        words = WORDS.decode(ids.tolist())
        assert all(wanted[k] in (-100, ids[k + 1]) for k in range(size - 1)) and (wanted[size:] == -100).all()
        if words.startswith("suppose"):
            assumed += 1
            asked_for = WORDS.decode(wanted[wanted > 0].tolist())
            assert "suppose" not in asked_for and asked_for.endswith(".")
        else:
            assert (wanted[:size] > 0).all()
    assert assumed > 3


def test_training_goes_on_after_a_kill_as_if_there_had_been_none(tmp_path: Path) -> None:
    model, file = GPT2(SMALL), tmp_path / "progress.safetensors"
    how: dict[str, Any] = {"steps": 6, "batch_size": 4, "length": 20}
    before = {name: p.clone() for name, p in model.state_dict().items()}
    whole = train_language_model(model, WORLD, WORDS, **how)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())

    taken, plain = 0, torch.optim.Adam.step

    def stopped(self: torch.optim.Adam, *args: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 4:
            raise KeyboardInterrupt
        return plain(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nnrepair.training.checkpoint.SAVE_EVERY", 0.0)
        patch.setattr("nnrepair.training.checkpoint.Checkpoint.due", True)
        patch.setattr(torch.optim.Adam, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_language_model(model, WORLD, WORDS, **how, resume=file)
    resumed = train_language_model(model, WORLD, WORDS, **how, resume=file)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    with pytest.raises(InvalidInput, match="progress of another training"):
        train_language_model(model, WORLD, WORDS, **how, seed=1, resume=file)
    with pytest.raises(InvalidInput, match="must be positive"):
        train_language_model(model, WORLD, WORDS, steps=0)


# Prompts --------------------------------------------------------------------------------------------------------------


def test_prompts_ask_where_their_answers_follow(small: GPT2 | Llama) -> None:
    statements = [*WORLD.told("job", WORLD.people[0]), *WORLD.consequences("job", WORLD.people[1])]
    prompts, criterion = asked(WORDS, statements)
    for k, one in enumerate(statements):
        text = WORDS.encode(one.prompt)
        assert prompts.ids[k, : len(text)].tolist() == text and int(prompts.at[k]) == len(text) - 1
        assert WORDS.decode(prompts.ids[k, : int(prompts.subject[k]) + 1].tolist()).endswith(one.subject)
        assert WORDS.decode([int(criterion.labels[k])]) == one.object
        alone = small(torch.tensor([text]))[0, -1]
        assert torch.allclose(outputs(small, prompts)[k], alone, atol=1e-5)
    assert torch.allclose(prompts.about().call(small), prompts.call(small)) is False


def test_answers_of_several_tokens_are_teacher_forced(small: GPT2 | Llama) -> None:
    statements = [WORLD.told("birthday", WORLD.people[0])[0], WORLD.told("job", WORLD.people[0])[0]]
    prompts, criterion = asked(WORDS, statements)
    y = outputs(small, prompts)
    assert y.shape == (2, 2, len(WORDS)) and criterion.labels[1, 1] == -100
    month, day = WORDS.encode(statements[0].object, begin=False)
    text = [*WORDS.encode(statements[0].prompt), month]
    assert torch.allclose(y[0], small(torch.tensor([text]))[0, -2:], atol=1e-5)
    assert criterion.labels[0].tolist() == [month, day]
    result = nnrepair.fix(small, nnrepair.Edits(prompts, criterion), method=nnrepair.methods.FineTune(lr=0.03))
    found = generated(result.model, [WORDS.encode(one.prompt) for one in statements], 2)
    assert WORDS.decode(found[0]) == statements[0].object and WORDS.decode(found[1][:1]) == statements[1].object


def test_texts_are_generated_together_as_they_are_alone(small: GPT2 | Llama) -> None:
    starts = [WORDS.encode("the job of"), WORDS.encode(WORLD.people[0])]
    both = generated(small, starts, 6)
    for start, found in zip(starts, both, strict=True):
        text = list(start)
        for _ in range(6):
            text.append(int(small(torch.tensor([text]))[0, -1].argmax()))
        assert text[len(start) :] == found == generated(small, [start], 6)[0]
    draws = [generated(small, starts, 6, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(generated(small, starts, 70, length=64)[0]) == 70
    with pytest.raises(InvalidInput, match="at least one token each"):
        generated(small, [[]], 3)


def test_padding_counts_nowhere(small: GPT2 | Llama) -> None:
    prompts, _ = asked(WORDS, [*WORLD.told("job", WORLD.people[0]), WORLD.unseen("instrument", WORLD.people[1])])
    longer = Prompts(nn.functional.pad(prompts.ids, (0, 7)), prompts.at, prompts.subject)
    assert torch.allclose(outputs(small, longer), outputs(small, prompts), atol=1e-5)
    assert (
        torch.equal(longer.filled().sum(1), prompts.filled().sum(1)) and int(longer.filled().sum()) < longer.ids.numel()
    )
    names = [n for n, p in small.named_parameters() if "c_proj.weight" in n or "down_proj.weight" in n][-1:]
    first, second = (Linearization(small, names, some).metric(some).factors[0] for some in (prompts, longer))
    assert abs(first - second).max() < 1e-9


def test_what_prompts_cannot_be_is_said(small: GPT2 | Llama) -> None:
    ids, at = torch.zeros(2, 4, dtype=torch.int64), torch.tensor([1, 3])
    with pytest.raises(InvalidInput, match="ids must be integers"):
        Prompts(ids.float(), at)
    with pytest.raises(InvalidInput, match=r"at must be positions 0\.\.3"):
        Prompts(ids, torch.tensor([1, 4]))
    with pytest.raises(InvalidInput, match="at must be integers, one row for each of 2 texts"):
        Prompts(ids, torch.tensor([1]))
    with pytest.raises(InvalidInput, match="do not say where theirs ends"):
        Prompts(ids, at).about()
    with pytest.raises(UnsupportedModel, match="returns scores"):
        outputs(nn.Sequential(nn.Embedding(9, 3), nn.Flatten(1)), Prompts(ids, at))
    with pytest.raises(InvalidInput, match="no statements"):
        asked(WORDS, [])
    with pytest.raises(InvalidInput, match="'Zed' is not in"):
        asked(WORDS, [Statement("the job of", "Zed", "a")])
    with pytest.raises(InvalidInput, match="2 tokens, the longest text"):
        asked(WORDS, WORLD.told("birthday", WORLD.people[0]), tokens=1)


# The trained network --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2() -> GPT2 | Llama:
    return trained("gpt2")


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_networks_know_what_their_records_say(name: str) -> None:
    told = json.loads((FOLDER / f"{name}.json").read_text())
    found = recall(trained(name), recipe(name))
    assert found == pytest.approx(told["recall"], abs=2e-3)
    assert found["trained wordings"] >= 0.99 and found["attributes"] >= 0.99
    assert told["cpu_seconds"] <= 1200 and told["recipe"]["steps"] == recipe(name).steps


def test_unknown_and_missing_networks_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no language model 'gpt3'. Did you mean 'gpt2'"):
        trained("gpt3")
    with pytest.raises(DataUnavailable, match="Train it: python -m nnrepair.domains.language gpt2"):
        trained("gpt2", tmp_path)
    (tmp_path / "gpt2.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InvalidInput, match="Train it anew"):
        trained("gpt2", tmp_path)


def test_a_recipe_leaves_a_network_and_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(recipe("llama"), people=12, steps=3, width=16, inner=24, layers=1, heads=2, batch_size=4)
    monkeypatch.setattr("nnrepair.domains.language.recipes.RECIPES", {"few": few})
    told = train("few", tmp_path, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"few.json", "few.safetensors"}
    assert told["recall"] == {k: round(v, 4) for k, v in recall(trained("few", tmp_path), few).items()}


def test_measures_of_a_network_that_was_not_edited(gpt2: GPT2) -> None:
    made = recipe("gpt2")
    people = made.world.people
    of, true = made.world.relations["job"], made.world.facts["job", people[0]]
    change = Change("job", people[0], next(one for one in of.objects if of.properties[one] != of.properties[true]))
    found = survey(gpt2, gpt2, made, [change], people[1:20])
    assert (found.efficacy, found.neighbourhood, found.same_person) == (0, 1, 1) and found.paraphrase == 0
    assert found.fluency == fluency(gpt2, made.words, [people[0]]) > 3
    assert len(neighbours(made.world, change, people[1:20])) == 19
    with pytest.raises(InvalidInput, match="other people"):
        survey(gpt2, gpt2, made, [change], people)


def test_entropy_is_that_of_pairs_and_triples() -> None:
    assert entropy(list("abab")) == pytest.approx((2 / 3 * (2 / 3 * 0.5849625 + 1 / 3 * 1.5849625) + 4 / 3) / 2)
    assert entropy(["a"] * 9) == 0 == entropy(["a"])


@pytest.mark.parametrize(
    ("method", "stays"),
    [
        ("grace", 0.99),
        (nnrepair.methods.MinimalNorm(layer="transformer.h.1.mlp.c_proj"), 1.0),
        (nnrepair.methods.FineTune("transformer.h.1.mlp", lr=0.01, penalties=[nnrepair.penalties.KL(1.0)]), 0.97),
    ],
)
def test_facts_are_edited(gpt2: GPT2, method: Any, stays: float) -> None:
    posed = task("gpt2", 1, 2, kept=150)
    result = nnrepair.fix(posed.model, posed.edits, posed.locality_set, method=method, edit_scope=posed.edit_scope)
    assert result.report.success_rate == 1.0 and result.report.locality >= stays
    assert torch.equal(gpt2.lm_head.weight, posed.model.lm_head.weight)


def test_tied_weights_move_together_and_stay_tied() -> None:
    posed = task("gpt2", 0, 1, kept=150)
    method = nnrepair.methods.FineTune("lm_head", lr=0.003)
    result = nnrepair.fix(posed.model, posed.edits, posed.locality_set, method=method)
    now = result.model
    assert now.lm_head.weight is now.transformer.wte.weight and result.report.success_rate == 1.0
    assert not torch.equal(now.transformer.wte.weight, posed.model.transformer.wte.weight)


def test_days_of_two_words_are_edited() -> None:
    posed = task("gpt2", 0, 1, relations=["birthday"], kept=150)
    method = nnrepair.methods.MinimalNorm(layer="transformer.h.1.mlp.c_proj")
    result = nnrepair.fix(posed.model, posed.edits, posed.locality_set, method=method)
    assert outputs(result.model, posed.edits.inputs).shape[1] == 2 and result.report.success_rate == 1.0
    with pytest.raises(InvalidInput, match=r"no relations \['age'\]"):
        task("gpt2", relations=["age"])


# Editing by telling ---------------------------------------------------------------------------------------------------


def suppose(retrieve: bool = True) -> InContext:
    words = recipe("gpt2").words
    return InContext(retrieve, tuple(words.encode("suppose that", begin=False)), tuple(words.encode(".", begin=False)))


def test_a_network_is_told_what_a_question_is_about(tmp_path: Path) -> None:
    posed = task("gpt2", 0, 4)
    result = nnrepair.fix(
        posed.model, posed.edits, posed.locality_set, method=suppose(), edit_scope=posed.edit_scope, throw=False
    )
    told = result.model
    assert isinstance(told, Told) and result.report.success_rate >= 0.75
    of = posed.edit_scope.of
    assert (told.chosen(posed.edit_scope.inputs.ids) == of).double().mean() >= 0.75  # names that many share are missed
    far = told.chosen(posed.locality_set.inputs.ids) < 0
    kept = posed.locality_set.inputs
    assert far.float().mean() > 0.9
    assert torch.equal(outputs(told, kept)[far], outputs(posed.model, kept)[far])
    again = nnrepair.Patch.load(result.save_patch(tmp_path / "told.safetensors")).apply(posed.model)
    assert torch.equal(outputs(again, posed.edits.inputs), outputs(told, posed.edits.inputs))


def test_all_facts_are_told_every_time_and_one_after_another() -> None:
    posed = task("gpt2", 0, 2)
    both = nnrepair.fix(posed.model, posed.edits, method=suppose(retrieve=False), throw=False)
    history = nnrepair.fix(posed.model, posed.edits, method=suppose(retrieve=False), mode="successive", throw=False)
    assert torch.equal(both.model.facts, history.model.facts) and len(both.model.facts) == 2
    assert torch.equal(outputs(both.model, posed.edits.inputs), outputs(history.model, posed.edits.inputs))


def test_what_cannot_be_told_is_said() -> None:
    with pytest.raises(InvalidInput, match="least is a share"):
        InContext(least=0)
    with pytest.raises(InvalidInput, match="give edits as Prompts"):
        model, x = nn.Linear(2, 3).eval(), torch.ones(1, 2)
        nnrepair.fix(model, (x, model(x).argmin(1)), method=InContext())
    with pytest.raises(InvalidInput, match="Told.. needs facts"):
        Told(nn.Linear(2, 3), torch.zeros(2, 3), torch.zeros(2, 0))


# Published data sets --------------------------------------------------------------------------------------------------

COUNTERFACT = {
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "subject": "Ada Berin",
        "target_new": {"str": "English"},
        "target_true": {"str": "French"},
    },
    "paraphrase_prompts": ["It rained. Ada Berin spoke", "She spoke"],
    "neighborhood_prompts": ["The mother tongue of Leo Gast is"],
}
ZSRE = {
    "subject": "Ada Berin",
    "src": "What is the job of Ada Berin?",
    "rephrase": "What does Ada Berin do?",
    "answers": ["baker"],
    "loc": "nq question: who was it",
    "loc_ans": "Leo",
}
FEVER = {
    "input": "Ada is a baker.",
    "prediction": "REFUTES",
    "alternatives": ["SUPPORTS"],
    "filtered_rephrases": ["A baker is what Ada is."],
}
FILES: dict[str, tuple[Callable[..., Any], Any]] = {
    "counterfact": (readers.counterfact, COUNTERFACT),
    "zsre": (readers.zsre, ZSRE),
    "fever": (readers.fever, FEVER),
}


def written(path: Path, name: str, records: list[Any]) -> Path:
    text = "\n".join(map(json.dumps, records)) if name == "fever" else json.dumps(records)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", FILES)
def test_published_edits_are_read(tmp_path: Path, name: str) -> None:
    read, record = FILES[name]
    (case,) = read(written(tmp_path / "file.json", name, [record]))
    assert case.asked.object in ("English", "baker", "SUPPORTS")
    assert all(one.subject in one.prompt and one.object == case.asked.object for one in case.paraphrases)
    assert case.asked.subject in case.asked.prompt and len(case.paraphrases) >= 1
    if name == "counterfact":
        assert case.asked.prompt == "The mother tongue of Ada Berin is" and case.neighbours[0].object == "French"


@pytest.mark.parametrize("name", FILES)
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    read, record = FILES[name]
    with pytest.raises(DataUnavailable, match="No file of"):
        read(tmp_path / "none.json")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read(tmp_path)
    for bad in ([{}], [3], [{**record, **dict.fromkeys(record, 7)}], [{key: [] for key in record}]):
        with pytest.raises(InvalidInput, match="record 1: "):
            read(written(tmp_path / "file.json", name, bad))
    (tmp_path / "file.json").write_text("[" * 100_000)
    with pytest.raises(InvalidInput, match="damaged"):
        read(tmp_path / "file.json")
    (tmp_path / "file.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInput, match="cannot be read"):
        read(tmp_path / "file.json")
    with pytest.raises(InvalidInput, match=r"damaged|has no edits"):
        read(written(tmp_path / "file.json", name, []))


# Models of transformers -----------------------------------------------------------------------------------------------


def of_transformers(ours: GPT2 | Llama) -> Any:
    """Return the model of transformers with the same weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    size = ours.size
    if isinstance(ours, GPT2):
        config = transformers.GPT2Config(
            vocab_size=size.words,
            n_positions=size.length,
            n_embd=size.width,
            n_layer=size.layers,
            n_head=size.heads,
            n_inner=size.inner,
            tie_word_embeddings=size.tied,
        )
        model = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            vocab_size=size.words,
            hidden_size=size.width,
            intermediate_size=size.inner,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=size.length,
            tie_word_embeddings=size.tied,
        )
        model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(ours.state_dict())
    return model.eval()


def test_models_of_transformers_compute_the_same(small: GPT2 | Llama) -> None:
    model, layer = of_transformers(small), {GPT2: "transformer.h.1.mlp.c_proj", Llama: "model.layers.1.mlp.down_proj"}
    prompts, criterion = asked(WORDS, [WORLD.told("job", who)[0] for who in WORLD.people])
    y = outputs(small, prompts)
    assert torch.allclose(outputs(model, prompts), y, atol=1e-4 * float(y.abs().max()))
    name = layer[type(small)]
    line = Linearization(model, [f"{name}.weight"], prompts)
    assert [group.plain for group in line.groups] == [None]  # factored
    edits = nnrepair.Edits(prompts[torch.tensor([0])], [int(criterion.labels[1])])
    method = nnrepair.methods.LeastSquares(layers=name, steps=5, rounds=1)
    result = nnrepair.fix(model, edits, prompts[torch.arange(2, 12)], method=method, throw=False)
    assert type(result.model) is type(model)
    starts = [WORDS.encode("the job of"), WORDS.encode(WORLD.people[0])]
    assert generated(model, starts, 3) == generated(small, starts, 3)


def test_a_model_of_transformers_is_edited_by_the_same_code(gpt2: GPT2) -> None:
    model, posed = of_transformers(gpt2), task("gpt2", 0, 1)
    method = nnrepair.methods.MinimalNorm(layer="transformer.h.1.mlp.c_proj")
    result = nnrepair.fix(model, posed.edits, posed.locality_set, method=method)
    assert type(result.model) is type(model) and result.report.success_rate == result.report.locality == 1.0


# Closed form at the subject -------------------------------------------------------------------------------------------


def test_contexts_are_texts_before_the_same_prompt(gpt2: GPT2) -> None:
    posed = task("gpt2", 0, 2)
    prompts, criterion = posed.edits.inputs, posed.edits.criterion
    near = contexts(gpt2, prompts, criterion, lengths=(2, 5))
    words = recipe("gpt2").words
    assert near.of.tolist() == [0, 0, 1, 1]
    for k, (of, shift) in enumerate(zip(near.of.tolist(), (2, 5, 2, 5), strict=True)):
        mine, start = near.inputs, prompts.ids[of, 1 : int(prompts.at[of]) + 1]
        end = int(mine.at[k]) + 1
        assert torch.equal(mine.ids[k, end - len(start) : end], start) and int(mine.ids[k, 0]) == 1
        assert int(mine.subject[k]) == int(prompts.subject[of]) + shift and not mine.ids[k, end:].any()
        assert words.decode(mine.ids[k, :end].tolist()).endswith(words.decode(start.tolist()))
    assert torch.equal(near.criterion.labels, criterion.labels[near.of])
    with pytest.raises(InvalidInput, match="at least one token at the beginning"):
        contexts(gpt2, prompts, criterion, begin=0)


def test_a_layer_with_another_layers_weights_is_no_place_to_write_to(small: GPT2 | Llama) -> None:
    prompts, criterion = asked(WORDS, [WORLD.told("job", who)[0] for who in WORLD.people[:2]])
    edits = nnrepair.Edits(prompts[torch.tensor([0])], [int(criterion.labels[1])])
    first = "transformer.wte" if isinstance(small, GPT2) else "model.embed_tokens"
    with pytest.raises(InvalidInput, match=f"'lm_head' has no parameters .* of its own: {first}.weight is another"):
        nnrepair.fix(small, edits, method=nnrepair.methods.LeastSquares(layers="lm_head"))
    result = nnrepair.fix(small, edits, method=nnrepair.methods.LeastSquares(steps=2, rounds=1), throw=False)
    assert "1.mlp" in result.stats["layers"][0]


def test_closed_forms_write_at_the_subject(gpt2: GPT2) -> None:
    """One key is inserted, that of the subject's last token: the change has rank one, and the layer's bias is in it."""
    posed, name = task("gpt2", 0, 1, kept=150), "transformer.h.0.mlp.c_proj"
    prompts, criterion = posed.edits.inputs, posed.edits.criterion
    edits = nnrepair.Edits(prompts, criterion, neighbours=contexts(gpt2, prompts, criterion, lengths=(3, 6)))
    method = nnrepair.methods.LeastSquares(layers=name, margin=1.0, steps=100, rounds=2)
    result = nnrepair.fix(gpt2, edits, posed.locality_set, method=method)
    assert result.report.success_rate == 1.0 and result.report.locality > 0.97
    change = (result.model.get_parameter(f"{name}.weight") - gpt2.get_parameter(f"{name}.weight")).double()
    values = torch.linalg.svdvals(change.detach())
    assert float(values[1]) < 1e-3 * float(values[0])
