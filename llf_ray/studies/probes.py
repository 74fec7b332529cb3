"""What a run's probes found (`llf_ray.measures.selectivity`): a table of its last probe, all of it as Markdown, and a
figure over training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group as Stacked
from rich.console import RenderableType
from rich.text import Text

from llf_ray import figures
from llf_ray.config import SettingError
from llf_ray.display import Trimmed
from llf_ray.journal import read, replace_text
from llf_ray.studies.show import markdown_table, table_like
from llf_ray.train.probing import BEFORE

__all__ = ["report", "write"]

TABLE = "tables/probes.md"
GROUPS = ("clean", "mislabelled", "easy", "hard")
WORDS = "right: accuracy in per cent; kept: accuracy after / before"
SELECTIVITIES = ("selectivity/mislabelled", "selectivity/hard")


def _records(run_folder: Path) -> list[dict[str, Any]]:
    """In order of steps.

    Raises:
        SettingError: the run has probed nothing.
    """
    found = [record for record in read(run_folder / "journal.jsonl") if record["kind"] == "probe"]
    if not found:
        raise SettingError(
            f"run {run_folder.name!r} has probed nothing yet: probes are the setting `probes` of its job, and the "
            "first comes after as many steps as it says"
        )
    return found


def _groups(records: Sequence[Mapping[str, Any]]) -> list[str]:
    there = {group for record in records for group in record["counts"]}
    return [group for group in GROUPS if group in there]


def _columns(records: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = ["perturbation", "step"]
    columns += [f"{group} right" for group in _groups(records)]
    columns += [f"{group} kept" for group in _groups(records)]
    return [*columns, *(_title(key) for key in SELECTIVITIES if any(key in record["values"] for record in records))]


def _title(key: str) -> str:
    return "clean - mislabelled" if key.endswith("mislabelled") else "easy - hard"


def _row(record: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[str]:
    values, groups = record["values"], _groups(records)
    shown = [f"{100 * values[f'{group}/accuracy']:.1f}" for group in groups]
    shown += [_number(values.get(f"{group}/retention")) for group in groups]
    shown += [
        _number(values.get(key), sign=True) for key in SELECTIVITIES if any(key in other["values"] for other in records)
    ]
    return [record["perturbation"], f"{record['step']:,}", *shown]


def _number(value: float | None, *, sign: bool = False) -> str:
    return "" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def report(run_folder: Path) -> RenderableType:
    """The last probe as a table, with the size of each group.

    Raises:
        SettingError: the run has probed nothing.
    """
    records = _records(run_folder)
    last = max(record["step"] for record in records)
    columns = _columns(records)
    heads = [column.replace(" ", "\n") if " kept" in column or " right" in column else column for column in columns]
    heads = [head.replace(" - ", " -\n") for head in heads if head != "step"]
    table = table_like(*heads, right=range(1, len(heads)), fold=(0,))
    for record in records:
        if record["step"] == last:
            name, _, *numbers = _row(record, records)
            table.add_row(name, *numbers)
    head = Text(f"{run_folder.name}: {_sizes(records)}, at step {last:,}", style="bold")
    return Stacked(head, Trimmed(table), Text(f"{WORDS}; {figures.NUMBERS}", style="dim"))


def _sizes(records: Sequence[Mapping[str, Any]]) -> str:
    counts = next(record["counts"] for record in reversed(records) if record["perturbation"] == BEFORE)
    return ", ".join(f"{counts[group]:,} {group}" for group in GROUPS if group in counts) + " examples"


def write(run_folder: Path) -> list[Path]:
    """Write every probe as a Markdown table, and draw them.

    Raises:
        SettingError: the run has probed nothing.
    """
    records = _records(run_folder)
    columns = _columns(records)
    lines = [
        f"# {run_folder.name}: targeted forgetting on a clone",
        "",
        f"{_sizes(records)}; {WORDS}; {figures.NUMBERS}.",
        "",
        *markdown_table(columns, [_row(record, records) for record in records]),
    ]
    (run_folder / TABLE).parent.mkdir(exist_ok=True)
    replace_text(run_folder / TABLE, "\n".join(lines) + "\n")
    figures.draw_probes(run_folder, run_folder / figures.PROBES)
    return [run_folder / TABLE, run_folder / figures.PROBES]
