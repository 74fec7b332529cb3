"""The page of methods names every recipe with its source, jobs at both sizes and a picture, and all are there."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import llf_ray.recipes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
RECIPES = {
    name: importlib.import_module(f"llf_ray.recipes.{name}")
    for _, name, _ in pkgutil.iter_modules(llf_ray.recipes.__path__)
    if name != "base"
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_table_leads_from_each_recipe_to_its_section(name: str) -> None:
    recipe = type(RECIPES[name].tiny).__name__
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| [") and f"| `{recipe}` |" in line]
    anchor = re.search(r"\(#([a-z-]+)\)", row)
    assert anchor
    (section,) = [text for title, text in SECTIONS.items() if title.lower().replace(" ", "-") == anchor[1]]
    sources = re.findall(r"arXiv:\d{4}\.\d{5}", f"{RECIPES[name].__doc__} {type(RECIPES[name].tiny).__doc__}")
    assert set(sources) <= set(re.findall(r"arXiv:\d{4}\.\d{5}", section))
    jobs = re.findall(r"jobs/[a-z0-9_/]+\.py", section)
    assert any("/paper/" in job for job in jobs)
    assert any("/paper/" not in job for job in jobs)
    assert "](figures/methods/" in section


VARIANTS = {  # of a recipe, methods of their own: section, small job, job at paper size, picture
    "weights": ("Knowledge evolution", "wels_small", "wels_flowers_resnet18", "wels"),
    "adaptive": ("SEAL", "seal_adaptive_small", "seal_adaptive_tiny_imagenet_resnet50", "seal_adaptive"),
    "alternating": ("AC/DC", "alternating_small", "alternating_imagenet_resnet50", "alternating"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_with_a_name_of_its_own_has_jobs_and_a_picture_too(name: str) -> None:
    title, small, paper, picture = VARIANTS[name]
    for words in (f"jobs/{small}.py", f"jobs/paper/{paper}.py", f"](figures/methods/{picture}.png)"):
        assert words in SECTIONS[title], words


def test_what_the_page_names_is_there() -> None:
    for job in re.findall(r"jobs/[a-z0-9_/]+\.py", PAGE):
        assert (ROOT / job).is_file(), job
    pictures = re.findall(r"\]\((figures/[^)]+)\)", PAGE)
    assert all((ROOT / "docs" / picture).is_file() for picture in pictures)
    assert len(set(pictures)) == len(pictures)
    assert {path.name for path in (ROOT / "docs/figures/methods").iterdir()} == {Path(p).name for p in pictures}
