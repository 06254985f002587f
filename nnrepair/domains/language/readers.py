"""Published data sets of edits, read from files of yours: zsRE, CounterFact and FEVER.

Nothing is downloaded: their authors publish no hashes, so that a download could not be told from a forgery. The files
are JSON, which runs no code; their form is checked record by record.

* CounterFact (Meng et al., 2022): `counterfact.json` of https://rome.baulab.info/data/dsets/
* zsRE in the form of the same authors (questions of Levy et al., 2017): `zsre_mend_eval.json`, at the same place
* FEVER in the form of De Cao et al. (2021), https://github.com/nicola-decao/KnowledgeEditor: a JSON object a line
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnrepair.domains.language.knowledge import Statement
from nnrepair.errors import DataUnavailable, InvalidInput, first_line, printable

#: Bytes of a file, at most: CounterFact has 45 million.
LARGEST = 500_000_000


@dataclass(frozen=True)
class Case:
    """One edit of a published data set.

    Attributes:
        asked: what the edit asks for.
        paraphrases: the same in other words.
        neighbours: what is to stay, with what is true of it where the file says so, else with an empty object.
        old: what the answer was; empty where the file does not say.
    """

    asked: Statement
    paraphrases: tuple[Statement, ...]
    neighbours: tuple[Statement, ...]
    old: str


def counterfact(path: str | Path) -> list[Case]:
    """Read the edits of a file `counterfact.json`.

    Raises:
        DataUnavailable: there is no such file.
        InvalidInput: it is none of CounterFact; what is wrong is said.
    """
    return _cases(path, "CounterFact", _whole, _counterfact)


def zsre(path: str | Path) -> list[Case]:
    """Read the edits of a file `zsre_mend_eval.json`; what is to stay are questions of another data set.

    Raises:
        DataUnavailable: there is no such file.
        InvalidInput: it is none of zsRE; what is wrong is said.
    """
    return _cases(path, "zsRE", _whole, _zsre)


def fever(path: str | Path) -> list[Case]:
    """Read the edits of a file of FEVER: claims whose verdict a model got wrong, in the form of KnowledgeEditor.

    Claims without rephrasings or other verdicts are left out, as there. A claim is its own subject.

    Raises:
        DataUnavailable: there is no such file.
        InvalidInput: it is none of FEVER; what is wrong is said.
    """
    return _cases(path, "FEVER", _lines, _fever)


def _cases(
    path: str | Path, what: str, read: Callable[[str], Iterator[Any]], made: Callable[[Any], Case | None]
) -> list[Case]:
    path, found, number = Path(path), list[Case](), -1
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise InvalidInput(f"{path} has more than {LARGEST} bytes, which no file of {what} has.")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataUnavailable(f"No file of {what} at {path}. Its module says where the authors publish it.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read as a file of {what}: {first_line(error)}") from error
    try:
        for number, record in enumerate(read(text)):  # noqa: B007 (said where it fails)
            case = made(record)
            if case is not None:
                found.append(case)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else printable(first_line(error))
        raise InvalidInput(f"{path} is no file of {what}, or damaged: record {number + 1}: {said}.") from error
    if not found:
        raise InvalidInput(f"{path} has no edits of {what}.")
    return found


def _whole(text: str) -> Iterator[Any]:
    records = json.loads(text)
    if not isinstance(records, list):
        raise ValueError("a list of records was expected")
    yield from records


def _lines(text: str) -> Iterator[Any]:
    yield from (json.loads(line) for line in text.splitlines() if line.strip())


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"text was expected, not {value!r}")
    return value.strip()


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list):
        raise ValueError(f"a list of texts was expected, not {type(values).__name__}")
    return [_text(value) for value in values]


def _about(prompt: str, subject: str, answer: str) -> Statement:
    """Return a statement; where the subject is not in the prompt, as in some paraphrases, the prompt is its own."""
    return Statement(prompt, subject if subject in prompt else prompt, answer)


def _counterfact(record: Any) -> Case:
    asked = record["requested_rewrite"]
    subject, new, old = _text(asked["subject"]), _text(asked["target_new"]["str"]), _text(asked["target_true"]["str"])
    prompt = _text(asked["prompt"])
    if prompt.count("{}") != 1:
        raise ValueError(f"a prompt with one {{}} was expected, not {prompt!r}")
    return Case(
        Statement(prompt.replace("{}", subject), subject, new),
        tuple(_about(text, subject, new) for text in _texts(record["paraphrase_prompts"])),
        tuple(Statement(text, text, old) for text in _texts(record["neighborhood_prompts"])),
        old,
    )


def _zsre(record: Any) -> Case:
    subject, question, answer = _text(record["subject"]), _text(record["src"]), _text(_texts(record["answers"])[0])
    return Case(
        _about(question, subject, answer),
        (_about(_text(record["rephrase"]), subject, answer),),
        (Statement(f"{_text(record['loc'])}?", _text(record["loc"]), _text(record["loc_ans"])),),
        "",
    )


def _fever(record: Any) -> Case | None:
    claim, others, rephrased = _text(record["input"]), _texts(record["alternatives"]), record["filtered_rephrases"]
    if not others or not rephrased:
        return None
    asked = tuple(Statement(text, text, others[0]) for text in _texts(rephrased))
    return Case(Statement(claim, claim, others[0]), asked, (), _text(record["prediction"]))
