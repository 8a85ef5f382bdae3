"""MMLU from the csv files of its authors, and the four groups of its 57 subjects.

Hendrycks et al., "Measuring Massive Multitask Language Understanding", ICLR 2021.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from bayeslora_cli.errors import DataError
from bayeslora_cli.tasks.sources.choice_tasks.questions import LETTERS, Question

FILES = {"dev": "dev", "validation": "val", "test": "test"}
"""By split, the folder of its csv files and the end of their names."""
_CHOICES = 4
GROUPS = {
    "stem": (
        "abstract_algebra anatomy astronomy college_biology college_chemistry "
        "college_computer_science college_mathematics college_physics computer_security "
        "conceptual_physics electrical_engineering elementary_mathematics high_school_biology "
        "high_school_chemistry high_school_computer_science high_school_mathematics "
        "high_school_physics high_school_statistics machine_learning"
    ),
    "humanities": (
        "formal_logic high_school_european_history high_school_us_history "
        "high_school_world_history international_law jurisprudence logical_fallacies "
        "moral_disputes moral_scenarios philosophy prehistory professional_law world_religions"
    ),
    "social_sciences": (
        "econometrics high_school_geography high_school_government_and_politics "
        "high_school_macroeconomics high_school_microeconomics high_school_psychology "
        "human_sexuality professional_psychology public_relations security_studies sociology "
        "us_foreign_policy"
    ),
    "other": (
        "business_ethics clinical_knowledge college_medicine global_facts human_aging management "
        "marketing medical_genetics miscellaneous nutrition professional_accounting "
        "professional_medicine virology"
    ),
}
_GROUP_OF = {subject: group for group, subjects in GROUPS.items() for subject in subjects.split()}


def group_of(subject: str) -> str:
    """Return a subject behind its group, as in stem/astronomy; an unknown one belongs to other."""
    return f"{_GROUP_OF.get(subject, 'other')}/{subject}"


def find_folder(data: Path, name: str) -> Path | None:
    """Return the folder that holds dev, val and test, at or below `data`; None: there is none.

    Args:
        name: the task's folder.
    """
    for folder in (data, data / "data", data / name, data / name / "data"):
        if any(any(folder.glob(f"{split}/*_{split}.csv")) for split in FILES.values()):
            return folder
    return None


def read_split(folder: Path, split: str) -> list[Question] | None:
    """Read one split, the subjects in the order of their names; None: there is no such split.

    Raises:
        DataError: a file is not as expected; the message names file and line.
    """
    if split not in FILES:
        return None
    ending = f"_{FILES[split]}.csv"
    paths = sorted((folder / FILES[split]).glob(f"*{ending}"))
    return [
        question
        for path in paths
        for question in _read_csv(path, group_of(path.name.removesuffix(ending)))
    ] or None


def _read_csv(path: Path, group: str) -> list[Question]:
    """Read a file without header: question, four choices, letter."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text in UTF-8: {error}") from error
    questions, reader, line = [], csv.reader(io.StringIO(text, newline="")), 1
    try:
        for row in reader:
            if len(row) != _CHOICES + 2 or row[-1] not in LETTERS[:_CHOICES]:
                raise DataError(
                    f"{path}, line {line}: found {len(row)} fields, the last {row[-1:]}; expected "
                    f"a question, {_CHOICES} choices and one of {', '.join(LETTERS[:_CHOICES])}"
                )
            questions.append(
                Question(
                    text=row[0].strip(),
                    choices=tuple(row[1:-1]),
                    answer=LETTERS.index(row[-1]),
                    group=group,
                )
            )
            line = reader.line_num + 1
    except csv.Error as error:  # such as a quotation mark that nothing closes
        raise DataError(f"{path}, line {line}: {error}") from error
    return questions
