"""Final weights as a plain safetensors file with the job's settings beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from llf_ray.config import flatten, to_plain
from llf_ray.engine.base import Engine
from llf_ray.engine.team import Team
from llf_ray.journal import replace_text
from llf_ray.run import RunConfig

__all__ = ["export"]


def export(folder: Path, config: RunConfig, engine: Engine, team: Team, scores: Mapping[str, float]) -> None:
    """Every rank calls: gather the weights that were scored (averaged where the run has averages); rank 0 writes them.

    The names are the model's own, so ``timm.create_model(...).load_state_dict`` takes the file.
    """
    averaged = config.optim.averaged is not None
    values = {}
    for name in (*engine.names, *engine.buffers):
        value = engine.read(name, average=averaged).cpu().contiguous()
        if team.rank == 0:
            values[name] = value
    problem = None
    if team.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(values, folder / ".model.tmp", metadata={"format": "pt"})
            (folder / ".model.tmp").chmod(folder.stat().st_mode & 0o666)  # safetensors makes its files private
            os.replace(folder / ".model.tmp", folder / "model.safetensors")
            settings = {
                "job": to_plain(config),
                "settings": {k: str(v) for k, v in flatten(config).items()},
                "scores": dict(scores),
            }
            replace_text(folder / "settings.json", json.dumps({**settings, "averaged": averaged}, indent=1))
        except Exception as error:  # safetensors has its own error type for a full disk
            problem = str(error)
    problem = team.share((problem,) if team.rank == 0 else None)[0]
    if problem:
        raise OSError(problem)
