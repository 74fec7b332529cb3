"""Files of weights: one way to read them, whoever wrote them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from llf_ray.config import SettingError

__all__ = ["read_weights"]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights and buffers by name, on the CPU: a safetensors file, or what ``torch.save`` wrote and ``weights_only``
    can read.

    Raises:
        SettingError: in one line, the file and why it cannot be read.
    """
    try:
        loaded: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except FileNotFoundError:
        raise SettingError(f"{path} does not exist: expected a file of weights") from None
    except Exception as error:  # what is no file of weights makes the unpickler fail in any way
        reason = " ".join(str(error).split())[:200]
        raise SettingError(
            f"{path} cannot be read as a file of weights: {type(error).__name__}: {reason or 'no message'}"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise SettingError(
            f"{path} holds no weights by name: expected a mapping of names to tensors, or one under 'state_dict'"
        )
    return dict(loaded)
