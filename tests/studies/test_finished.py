"""What is read of a run that is over."""

from __future__ import annotations

import pytest
import torch

from llf_ray.config import SettingError
from llf_ray.studies.finished import network_with
from tests.toy import Toy


def test_weights_of_another_network_are_one_line() -> None:
    values = dict(Toy().initial(0).state_dict())
    assert not network_with(Toy(), values).training
    name = next(iter(values))
    for wrong in ({**values, name: torch.zeros(3, 3)}, {key: value for key, value in values.items() if key != name}):
        with pytest.raises(SettingError, match="final weights do not fit the task's network: .*" + name) as caught:
            network_with(Toy(), wrong)
        assert "\n" not in str(caught.value)
