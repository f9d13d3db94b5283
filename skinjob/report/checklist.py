"""What reporting guidelines ask for, filled with what the sweep knows, or "not stated".

T: TRIPOD+AI (Collins et al. 2024). C: CLAIM (Mongan et al. 2020). M: MI-CLAIM (Norgeot et al.
2020). There is no score, because a filled row is not a good row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from skinjob.report.baselines import baselines
from skinjob.report.comparison import NAMES, Comparison
from skinjob.report.details import verdict_text
from skinjob.report.mistakes import Mistakes
from skinjob.sweeps.records import filled_recipe
from skinjob.words import counts_text, pluralize

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Case:
    """The facts that fill the rows."""

    comparison: Comparison
    mistakes: Mistakes | None
    training: str
    """The sentences of the Methods paragraph about the training."""
    has_clinical: bool
    num_copies: int | None
    """Test images with a copy in train; None if it is not known."""


@dataclass(frozen=True)
class Item:
    """A row of the table."""

    what: str
    codes: str
    text: Callable[[Case], str]


def checklist(case: Case) -> list[list[str]]:
    """Returns the rows of the table: what is asked for, by which guideline, and the answer."""
    return [[item.what, item.codes, item.text(case) or NOT_STATED] for item in ITEMS]


def _stated(name: str) -> Callable[[Case], str]:
    return lambda case: case.comparison.table.info.study.get(name, "")


def _partition(case: Case) -> str:
    table = case.comparison.table
    fraction = float(filled_recipe(table.info.recipe)["val_fraction"] or 0)
    held = (
        f"{100 * fraction:g} % of the training images of each class are held out as val, drawn by "
        "their content with a fixed seed. "
        if fraction
        else "There is no validation split. "
    )
    return (
        f"Train and test are the folders of the data set. {held}"
        "images.csv has the split and SHA-256 of each image."
    )


def _flow(case: Case) -> str:
    images = case.comparison.table.info.images
    used = [
        f"{split}: {sum(counts.values())} ({counts_text(counts)})"
        for split, counts in case.comparison.table.counts.items()
    ]
    return "; ".join(
        [
            *used,
            f"faulty and left out: {len(images.skipped)}",
            "test images with a copy in train: "
            f"{'not looked for' if case.num_copies is None else case.num_copies}",
        ]
    )


def _patients(case: Case) -> str:
    stated = _stated("patients")(case)
    return stated or f"{NOT_STATED}: images are treated as independent, but for copies"


def _choice(case: Case) -> str:
    table = case.comparison.table
    split = table.choosing.split
    about = "" if split == "val" else ", so its number is too good for new images"
    return (
        "The numbers are those of the last epoch, which nobody chose. "
        f"The best epoch was chosen by accuracy on {split}{about}."
    )


def _sample_size(case: Case) -> str:
    comparison = case.comparison
    lead = comparison.lead
    if lead is None or not lead.contrasts:
        return ""
    widest = max(
        lead.contrasts, key=lambda contrast: contrast.interval.high - contrast.interval.low
    )
    low, high = widest.interval
    if low != low:
        return f"{pluralize(len(widest.seeds), 'seed')}: too few for an interval"
    return (
        f"Not planned here. The widest 95 % interval of a difference in {NAMES[lead.outcome]} is "
        f"{high - low:.3f} wide with {pluralize(len(widest.seeds), 'seed')} and "
        f"{comparison.table.num_compared} test images; its verdict: {verdict_text(widest)}"
    )


def _imbalance(case: Case) -> str:
    counts = case.comparison.table.counts.get("train", {})
    if not sum(counts.values()):
        return ""
    shares = {name: f"{100 * num / sum(counts.values()):.1f} %" for name, num in counts.items()}
    named = ", ".join(f"{share} {name}" for name, share in shares.items())
    return f"Training images: {named}. Classes are neither weighted nor sampled."


def _baselines(case: Case) -> str:
    known = baselines(case.comparison.table)
    return "; ".join(f"{baseline.name}: {baseline.words}" for baseline in known)


def _robustness(case: Case) -> str:
    seeds, lrs = (
        len(values) for values in (case.comparison.table.info.seeds, case.comparison.table.info.lrs)
    )
    return (
        f"{pluralize(seeds, 'seed')}, {pluralize(lrs, 'learning rate')}, "
        "stability after equal epochs and updates. Other cameras, clinics and skin: not examined"
    )


def _failures(case: Case) -> str:
    mistakes = case.mistakes
    if mistakes is None:
        return ""
    return (
        f"{len(mistakes.always)} of {mistakes.num_images} test images are wrong in all "
        f"{mistakes.num_runs} runs, {len(mistakes.sometimes)} in some; see the mistakes"
    )


ITEMS = (
    Item("Source of the images", "T5a, C7", _stated("data_source")),
    Item("Licence of the images", "T18e", _stated("licence")),
    Item("Ethics approval", "T17", _stated("ethics")),
    Item("Reference standard", "T8a, C14", _stated("reference_standard")),
    Item("Partition, and how it was made", "T12a, C20", _partition),
    Item("Images and events, from found to used", "T20a, C33", _flow),
    Item("Patients or lesions", "T20b, C34", _patients),
    Item("Preprocessing, network and training", "T7, T12c, C9, C22", lambda case: case.training),
    Item("How the model was chosen", "T12c, C26", _choice),
    Item("Sample size", "T10, C19", _sample_size),
    Item("Imbalance of classes", "T13", _imbalance),
    Item(
        "Cutoff, and why",
        "T15",
        lambda case: (
            "0.5 for accuracy, not tuned. Cutoffs for a sensitivity are under Clinical numbers"
        ),
    ),
    Item(
        "Discrimination with intervals",
        "T23a, C36",
        lambda case: "see The comparison" if case.comparison.families else "see The table",
    ),
    Item("Calibration", "T23a", lambda case: "see Clinical numbers" if case.has_clinical else ""),
    Item(
        "Clinical utility",
        "T12e",
        lambda case: "net benefit, see Clinical numbers" if case.has_clinical else "",
    ),
    Item("Simple baselines", "M", _baselines),
    Item("Robustness", "C30", _robustness),
    Item("Analysis of failures", "C37", _failures),
    Item("Subgroups, skin tone", "T14", lambda case: "not examined"),
    Item("Intended users", "T3b, C3", _stated("users")),
    Item("Funding and interests", "T18a, T18b, C42", _stated("funding")),
)
"""The rows, in the order of the page."""
