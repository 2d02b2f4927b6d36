"""The built-in data set: short made-up clinic notes, generated from a seed, with three kinds of task.

    elder . mild rash , severe cough , no fever . kidneys weak . takes dactil .
    department ?   lungs                  classification: what is severe decides, but a child goes to pediatrics
    findings ?     ['rash', 'cough']      entities: those that are not negated, in order
    dose ?         24 mg                  exact match: the drug's dose, changed by the patient's age
    plan ?         change to azole        exact match: weak kidneys mean another family, else "keep dactil"

One training answer in four is wrong in a plausible way, as people's are; validation and test answers never are. A
large model that trains for long learns the rules and then the mistakes; a small one learns the easy rules only.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_builder.config import DataConfig
from cache_builder.data.examples import Example
from cache_builder.data.sources import chosen_tasks, turns

TRAIN_EXAMPLES, VALIDATION_EXAMPLES, TEST_EXAMPLES = 3000, 300, 600
MISTAKES = 0.25
TASKS = ("department", "findings", "question")
PATIENTS = ("child", "adult", "elder")
DEPARTMENTS = {
    "lungs": ("cough", "asthma", "wheeze", "phlegm"),
    "heart": ("palpitation", "swelling", "faintness", "flutter"),
    "nerves": ("headache", "dizziness", "numbness", "tremor"),
    "skin": ("rash", "itch", "blister", "hives"),
    "belly": ("nausea", "cramps", "heartburn", "bloating"),
    "joints": ("gout", "stiffness", "sprain", "backache"),
}
FAMILIES = {
    "morin": ("velmorin", "tasmorin", "pelmorin"),
    "actil": ("dactil", "rovactil", "senactil"),
    "azole": ("bruzole", "kitazole", "omizole"),
    "statin": ("levostat", "norustat", "fendistat"),
}
CHOICES = [*DEPARTMENTS, "pediatrics"]
FINDINGS = [finding for findings in DEPARTMENTS.values() for finding in findings]
DRUGS = [drug for drugs in FAMILIES.values() for drug in drugs]
DEPARTMENT_OF = {finding: department for department, findings in DEPARTMENTS.items() for finding in findings}
FAMILY_OF = {drug: family for family, drugs in FAMILIES.items() for drug in drugs}
OTHER_FAMILY = dict(zip(FAMILIES, [*list(FAMILIES)[1:], next(iter(FAMILIES))], strict=True))


@dataclass(frozen=True)
class Note:
    """What one note says."""

    patient: str
    findings: dict[str, str]
    """How each finding is there: severe (exactly one), mild or no."""
    weak_kidneys: bool
    drug: str

    def __str__(self) -> str:
        findings = " , ".join(f"{status} {finding}" for finding, status in self.findings.items())
        kidneys = "weak" if self.weak_kidneys else "fine"
        return f"{self.patient} . {findings} . kidneys {kidneys} . takes {self.drug} ."


def files(config: DataConfig) -> list[Path]:
    """Return no file: the examples are generated."""
    return []


def load(config: DataConfig, seed: int) -> dict[str, list[Example]]:
    """Generate the three splits; no note with its question is in two of them.

    The first n training examples are the same whatever `train_examples` is.
    """
    seen: set[str] = set()
    tasks = chosen_tasks(config, TASKS)
    sizes = {
        "test": config.test_examples or TEST_EXAMPLES,
        "validation": config.validation_examples or VALIDATION_EXAMPLES,
        "train": config.train_examples or TRAIN_EXAMPLES,
    }
    return {
        split: generate(split, size, tasks, seed, seen, mistakes=MISTAKES if split == "train" else 0.0)
        for split, size in sizes.items()
    }


def generate(
    split: str, size: int, tasks: Sequence[str], seed: int, seen: set[str], *, mistakes: float, findings: int = 3
) -> list[Example]:
    """Generate notes with so many findings (at least 3), and a share of wrong answers; no prompt that is in `seen`."""
    rng = random.Random(f"demo {seed} {split}")
    examples: list[Example] = []
    while len(examples) < size:
        name, task = f"{split}-{len(examples):05d}", tasks[len(examples) % len(tasks)]
        example = _example(name, task, mistakes, findings, rng)
        prompt = example["messages"][0]["content"]
        if prompt not in seen:
            seen.add(prompt)
            examples.append(example)
    return examples


def _example(name: str, task: str, mistakes: float, findings_per_note: int, rng: random.Random) -> Example:
    note = _note(findings_per_note, rng)
    mistaken = mistakes > 0 and rng.random() < mistakes
    if task == "department":
        question, answer = "department ?", _department(note, mistaken, rng)
    elif task == "findings":
        findings = _findings(note, mistaken, rng)
        question, answer = "findings ?", "[" + ", ".join(f"'{finding}'" for finding in findings) + "]"
    elif rng.random() < 0.5:
        question, answer = "dose ?", _dose(note, mistaken, rng)
    else:
        question, answer = "plan ?", _plan(note, mistaken)
    example: Example = {"id": name, "task": task, "messages": turns(f"{note}\n{question}", answer)}
    if task == "department":
        example["choices"] = CHOICES
    if task == "findings":
        example["answer"] = findings
    return example


def _note(findings_per_note: int, rng: random.Random) -> Note:
    patient = rng.choice(PATIENTS)
    pair = rng.choice((("no", "mild"), ("mild", "mild"), ("no", "no")))
    statuses = ["severe", *pair, *rng.choices(("no", "mild"), k=findings_per_note - 3)]
    rng.shuffle(statuses)
    findings = dict(zip(rng.sample(FINDINGS, findings_per_note), statuses, strict=True))
    return Note(patient, findings, rng.random() < 0.5, rng.choice(DRUGS))


def _department(note: Note, mistaken: bool, rng: random.Random) -> str:
    """A mistake takes the department of another finding."""
    severe = next(finding for finding, status in note.findings.items() if status == "severe")
    right = "pediatrics" if note.patient == "child" else DEPARTMENT_OF[severe]
    if not mistaken:
        return right
    others = [DEPARTMENT_OF[finding] for finding in note.findings if DEPARTMENT_OF[finding] != right]
    return rng.choice(others or [choice for choice in CHOICES if choice != right])


def _findings(note: Note, mistaken: bool, rng: random.Random) -> list[str]:
    """A mistake takes in what is negated or, where nothing is, leaves one out."""
    missed = rng.choice(list(note.findings)) if mistaken and "no" not in note.findings.values() else None
    return [finding for finding, status in note.findings.items() if finding != missed and (status != "no" or mistaken)]


def _dose(note: Note, mistaken: bool, rng: random.Random) -> str:
    """A mistake gives the dose of another age."""
    patient = rng.choice([other for other in PATIENTS if other != note.patient]) if mistaken else note.patient
    full = 4 * (1 + DRUGS.index(note.drug) % 6)
    return f"{ {'child': full // 2, 'adult': full, 'elder': full * 3 // 4}[patient] } mg"


def _plan(note: Note, mistaken: bool) -> str:
    """A mistake overlooks the kidneys, or is overcautious."""
    if note.weak_kidneys != mistaken:
        return f"change to {OTHER_FAMILY[FAMILY_OF[note.drug]]}"
    return f"keep {note.drug}"
