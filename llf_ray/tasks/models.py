"""Networks as settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import nn

from llf_ray.config import SettingError, check_number, nearest, to_plain
from llf_ray.nn.cropr.settings import Cropping
from llf_ray.nn.normaliser import widths_behind, with_normalisers
from llf_ray.nn.perceptron import Perceptron
from llf_ray.nn.resnet import ResNet, kaiming_normal

__all__ = ["CroppedTransformer", "Model", "MultiLayerPerceptron", "Normalised", "SmallResNet", "TimmModel"]


class Model(Protocol):
    """Settings that make a network which turns images into class scores."""

    def make(self, num_classes: int, channels: int) -> nn.Module:
        """The network, its weights drawn from torch's ambient generator."""
        ...

    def head(self, network: nn.Module) -> tuple[str, ...]:
        """Names of the modules that depend on the number of classes."""
        ...

    def recipe(self, num_classes: int, channels: int) -> dict[str, Any]:
        """How to make the network without these settings, as plain data: see `llf_ray.nn.recipe.network_of`."""
        ...


@dataclass(frozen=True, kw_only=True)
class SmallResNet:
    """`llf_ray.nn.ResNet`, for small images; layers conv1, bn1, layer1, layer2, ..., fc."""

    widths: tuple[int, ...] = (16, 32, 64, 128)  # channels of each stage
    blocks: tuple[int, ...] = (1, 1, 1, 1)  # of each stage
    stem_stride: int = 1
    shortcut: Literal["conv", "pad"] = "conv"

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.blocks):
            raise SettingError(
                f"widths = {self.widths!r}, blocks = {self.blocks!r}: one number of each for every stage"
            )
        if min(self.widths) < 1 or min(self.blocks) < 1:
            raise SettingError(f"widths = {self.widths!r}, blocks = {self.blocks!r}: must be 1 or more")
        check_number("stem_stride", self.stem_stride, low=1)

    def make(self, num_classes: int, channels: int) -> nn.Module:
        return ResNet(
            num_classes=num_classes,
            in_chans=channels,
            widths=self.widths,
            blocks=self.blocks,
            stem_stride=self.stem_stride,
            shortcut=self.shortcut,
        )

    def head(self, network: nn.Module) -> tuple[str, ...]:
        return ("fc",)

    def recipe(self, num_classes: int, channels: int) -> dict[str, Any]:
        settings = {
            "widths": self.widths,
            "blocks": self.blocks,
            "stem_stride": self.stem_stride,
            "shortcut": self.shortcut,
        }
        return {"resnet": {"num_classes": num_classes, "in_chans": channels, **settings}}


@dataclass(frozen=True, kw_only=True)
class MultiLayerPerceptron:
    """`llf_ray.nn.perceptron.Perceptron`; layers fc1, fc2, ..., fc. ``size`` is the side of the images."""

    size: int = 28
    widths: tuple[int, ...] = (300, 100)

    def __post_init__(self) -> None:
        check_number("size", self.size, low=1)
        for place, width in enumerate(self.widths):
            check_number(f"widths.{place}", width, low=1)

    def make(self, num_classes: int, channels: int) -> nn.Module:
        return Perceptron(num_classes=num_classes, inputs=channels * self.size**2, widths=self.widths)

    def head(self, network: nn.Module) -> tuple[str, ...]:
        return ("fc",)

    def recipe(self, num_classes: int, channels: int) -> dict[str, Any]:
        inputs = channels * self.size**2
        return {"perceptron": {"num_classes": num_classes, "inputs": inputs, "widths": self.widths}}


@dataclass(frozen=True, kw_only=True)
class TimmModel:
    """Any network of timm, by its name there; ``options`` are its further arguments, such as ``{"img_size":
    64}``.

    ``init`` says how weights of convolutions and linear layers start: as timm draws them (in its ResNets Kaiming-normal
    by fan_out, in the classifier torch's default), or Kaiming-normal by fan_in, as in the code of KE, LLF and SEAL.
    Biases and normalisers start as timm has them.
    """

    name: str
    init: Literal["timm", "kaiming_normal"] = "timm"
    drop: float = 0.0  # dropout before the classifier
    drop_path: float = 0.0  # stochastic depth
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_number("drop", self.drop, low=0.0, high=1.0)
        check_number("drop_path", self.drop_path, low=0.0, high=1.0)
        check_name(self.name)
        ours = {
            "num_classes",
            "in_chans",
            "pretrained",
            "drop_rate",
            "drop_path_rate",
            "checkpoint_path",
        } & set(self.options)
        if ours:
            raise SettingError(
                f"options = {dict(self.options)!r}: {', '.join(sorted(ours))} comes from the data or from "
                "settings of its own"
            )

    def make(self, num_classes: int, channels: int) -> nn.Module:
        network = self._create(num_classes, channels, pretrained=False)
        if self.init == "kaiming_normal":
            kaiming_normal(network)
        return network

    def make_pretrained(self, num_classes: int, channels: int) -> nn.Module:
        """The network with timm's pretrained weights, downloaded or from the cache; a classifier of other
        size is drawn anew.

        Raises:
            SettingError: there are none for this name, or they cannot be had from here.
        """
        self.check_pretrained()
        try:
            return self._create(num_classes, channels, pretrained=True)
        except SettingError:
            raise
        except Exception as error:  # the download's libraries raise errors of many kinds
            reason = " ".join(str(error).split())[:200]
            raise SettingError(
                f"start: timm's weights for {self.name!r} could not be loaded ({reason}); offline, give a "
                "file by FromFile(path=...)"
            ) from None

    def check_pretrained(self) -> None:
        """Raise where timm has no pretrained weights for this name, or where they were to be drawn."""
        import timm

        if self.init != "timm":
            raise SettingError(f"init = {self.init!r}: pretrained weights are not drawn; leave it at 'timm'")
        if not _elsewhere(self.name) and not timm.is_model_pretrained(self.name):
            near = nearest(self.name, timm.list_models(pretrained=True))
            raise SettingError(
                f"start: timm has no pretrained weights for {self.name!r}"
                + (f"; nearest with: {near!r}" if near else "")
            )

    def pretrained_scaling(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and deviation of the pixels that the pretrained weights expect."""
        import timm

        found = timm.get_pretrained_cfg(self.name)
        return None if found is None else (tuple(found.mean), tuple(found.std))

    def head(self, network: nn.Module) -> tuple[str, ...]:
        named = getattr(network, "default_cfg", {}).get("classifier") or ()
        return (named,) if isinstance(named, str) else tuple(named)

    def recipe(self, num_classes: int, channels: int) -> dict[str, Any]:
        options = {"num_classes": num_classes, "in_chans": channels, **self.options}
        return {"timm": self.name, "options": options}

    def _create(self, num_classes: int, channels: int, *, pretrained: bool) -> nn.Module:
        import timm

        # Not every family of timm takes every argument: those that stay at zero are left out.
        drops: dict[str, Any] = {
            name: rate for name, rate in (("drop_rate", self.drop), ("drop_path_rate", self.drop_path)) if rate > 0
        }
        try:
            network: nn.Module = timm.create_model(
                self.name,
                pretrained=pretrained,
                num_classes=num_classes,
                in_chans=channels,
                **drops,
                **self.options,
            )
        except (TypeError, AssertionError) as error:
            raise SettingError(
                f"model: timm's {self.name!r} does not take { ({**drops, **self.options})!r}: {error}"
            ) from None
        return network


@dataclass(frozen=True, kw_only=True)
class Normalised:
    """A network with a `FrozenNormaliser` behind each of some blocks, for layer-wise re-initialisation.

    They change nothing until a pass of the plan switches them on. ``after`` names the blocks.
    """

    model: Model
    after: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.model, Normalised):
            raise SettingError("model = Normalised(...): normalisers go behind a network's own blocks, once")
        if not self.after:
            raise SettingError("after = (): name the blocks that are to have a normaliser behind them")

    def make(self, num_classes: int, channels: int) -> nn.Module:
        with torch.device("meta"):
            probe = self.model.make(num_classes, channels)
            example = torch.empty(2, channels, *_own_size(probe))
        try:
            widths = widths_behind(probe, self.after, example)
        except ValueError as error:
            raise SettingError(f"after = {self.after!r}: {error}{_nearest_block(self.after, probe)}") from None
        return with_normalisers(self.model.make(num_classes, channels), widths)

    def head(self, network: nn.Module) -> tuple[str, ...]:
        return self.model.head(network)

    def recipe(self, num_classes: int, channels: int) -> dict[str, Any]:
        return self.model.recipe(num_classes, channels)  # a slim network has none: see `llf_ray.nn.channels.extract`


@dataclass(frozen=True, kw_only=True)
class CroppedTransformer:
    """A vision transformer of timm that loses tokens on the way (Token Cropr, arXiv:2412.00965).

    Layers have timm's names, a module behind block i is ``blocks.{i - 1}.cropr``. A run that starts from another's
    dense weights says ``FromRun(run=..., head="fresh")``: modules, which the dense network lacks, are drawn anew.
    """

    model: TimmModel
    cropping: Cropping = Cropping()

    def make(self, num_classes: int, channels: int, *, outputs: int | None = None) -> nn.Module:
        """``outputs`` of the auxiliary heads, where they are not the classes."""
        from llf_ray.nn.cropr.transformer import apply  # here: it imports timm, which takes seconds

        return apply(self.model.make(num_classes, channels), self.cropping, outputs=outputs)

    def make_pretrained(self, num_classes: int, channels: int, *, outputs: int | None = None) -> nn.Module:
        """The transformer with timm's pretrained weights, its modules drawn anew. Raises as `TimmModel`'s does."""
        from llf_ray.nn.cropr.transformer import apply

        return apply(self.model.make_pretrained(num_classes, channels), self.cropping, outputs=outputs)

    def check_pretrained(self) -> None:
        """Raise where timm has no pretrained weights for this name."""
        self.model.check_pretrained()

    def pretrained_scaling(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and deviation of the pixels that the pretrained weights expect."""
        return self.model.pretrained_scaling()

    def head(self, network: nn.Module) -> tuple[str, ...]:
        from llf_ray.nn.cropr.transformer import module_names

        return (*self.model.head(network), *module_names(network))

    def recipe(self, num_classes: int, channels: int) -> dict[str, Any]:
        return {**self.model.recipe(num_classes, channels), "cropping": to_plain(self.cropping)}

    def kept(self, network: Any, key: tuple[int, ...] | None) -> tuple[int, ...]:
        """Patches alive behind each module for a draw's key, (seed, generation, epoch): the curriculum of `Cropping` is
        that of the first generation; later ones, and evaluation, prune as much as the schedule says.
        """
        training = key is not None and key[1] == 0
        kept: tuple[int, ...] = network.kept_at(key[2]) if training and key is not None else network.kept
        return kept


def _own_size(network: nn.Module) -> tuple[int, int]:
    """Height and width that a network is made for; any will do where it does not say."""
    _, high, wide = getattr(network, "default_cfg", {}).get("input_size", (3, 64, 64))
    return high, wide


def _nearest_block(wanted: Sequence[str], network: nn.Module) -> str:
    names = [name for name, _ in network.named_modules() if name]
    near = next((nearest(name, names) for name in wanted if name not in names), None)
    return f"; did you mean {near!r}?" if near else ""


def check_name(name: str) -> None:
    """Raise, with the nearest, where timm has no model of this name; names that lead to a hub or a folder are
    timm's to judge.
    """
    import timm  # here: it takes seconds, and a run of a small ResNet needs none of it

    if _elsewhere(name):
        return
    models = timm.list_models()
    base, dot, tag = name.partition(".")
    if base not in models:
        near = nearest(base, models)
        hint = f"; did you mean {near!r}?" if near else ""
        raise SettingError(
            f"name = {name!r}: timm has no model of this name{hint} ({len(models)} in all: timm.list_models())"
        )
    tagged = [other for other in timm.list_models(pretrained=True) if other.startswith(f"{base}.")]
    if dot and name not in tagged:
        near = nearest(name, tagged)
        hint = f"; did you mean {near!r}?" if near else ""
        raise SettingError(
            f"name = {name!r}: timm has no weights {tag!r} for {base}{hint} (there are: {', '.join(tagged) or 'none'})"
        )


def _elsewhere(name: str) -> bool:
    return name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))
