"""Every family of timm's plain vision transformers, small enough for laws, with weights that nothing hides behind.

timm starts many weights at zero or next to it (LayerScale, position embeddings, heads); a mistake there would not show.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

__all__ = ["FAMILIES", "ROTARY", "made"]

SMALL = {"depth": 4, "embed_dim": 48, "num_heads": 3, "num_classes": 5}
GRID = 4  # patches on a side
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "AugReg": ("vit_tiny_patch16_224.augreg_in21k", {}),
    "DeiT": ("deit_tiny_patch16_224", {}),
    "DeiT distilled": ("deit_tiny_distilled_patch16_224", {}),
    "DeiT III": ("deit3_small_patch16_224", {}),
    "MAE": ("vit_base_patch16_224.mae", {"global_pool": "avg"}),
    "MAE, pooled with class token": ("vit_base_patch16_224.mae", {"global_pool": "avg", "pool_include_prefix": True}),
    "DINO": ("vit_small_patch16_224.dino", {}),
    "DINOv2": ("vit_small_patch14_dinov2", {}),
    "DINOv2 with registers": ("vit_small_patch14_reg4_dinov2", {}),
    "DINOv2 giant": ("vit_giant_patch14_dinov2", {}),
    "SigLIP": ("vit_base_patch16_siglip_224", {}),
    "SigLIP, mean": ("vit_base_patch16_siglip_gap_224", {}),
    "CLIP": ("vit_base_patch32_clip_224", {}),
    "CLIP, quick GELU": ("vit_base_patch32_clip_quickgelu_224", {}),
    "SO150M": ("vit_so150m_patch16_reg4_map_256", {"mlp_ratio": 4.0}),
    "InternViT": ("vit_intern300m_patch14_448", {}),
    "AIMv2": ("aimv2_large_patch14_224", {}),
    "BEiT-3": ("beit3_base_patch16_224", {}),
    "RADIO": ("vit_base_patch16_radio_v3", {"num_classes": 0}),
    "FlexiViT": ("flexivit_small", {}),
    "qk-norm": ("vit_tiny_patch16_224", {"qk_norm": True}),
    "LayerScale": ("vit_tiny_patch16_224", {"init_values": 0.1}),
    "attention and MLP side by side": ("vit_base_patch16_xp_224", {}),
    "two attentions side by side": ("vit_small_patch16_18x2_224", {}),
    "norm behind": ("vit_base_patch16_rpn_224", {}),
    "differential attention": ("vit_dlittle_patch16_reg1_gap_256", {}),
    "differential, side by side": ("vit_dpwee_patch16_reg1_gap_256", {}),
    "behind a ResNet": ("vit_tiny_r_s16_p8_224", {"num_heads": 3, "img_size": 128}),
    "any image size": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    "EVA": ("eva_giant_patch14_224", {}),
    "EVA-02": ("eva02_tiny_patch14_224", {}),
    "EVA-02 CLIP": ("eva02_base_patch16_clip_224", {}),
    "EVA-02, norm behind": ("eva02_enormous_patch14_clip_224", {}),
    "DINOv3": ("vit_small_patch16_dinov3", {}),
    "DINOv3, gated MLP": ("vit_small_plus_patch16_dinov3", {}),
    "PE core": ("vit_pe_core_tiny_patch16_384", {"attn_pool_num_heads": 3}),
    "PE spatial": ("vit_pe_spatial_tiny_patch16_512", {}),
    "rotary": ("vit_small_patch16_rope_224", {}),
    "rotary with registers": ("vit_betwixt_patch16_rope_reg4_gap_256", {}),
    "rotary, mixed": ("vit_small_patch16_rope_mixed_224", {}),
    "rotary, mixed, and absolute": ("vit_small_patch16_rope_mixed_ape_224", {}),
    "rotary, grouped queries": ("vit_base_patch16_sapiens2", {"num_kv_heads": 1}),
}
ROTARY = tuple(
    family
    for family, (name, _) in FAMILIES.items()
    if any(word in name for word in ("eva02", "dinov3", "rope", "vit_pe", "sapiens"))
)


def made(family: str, *, seed: int = 0, **changed: Any) -> nn.Module:
    """A small model of a family in evaluation mode, float64 unless `dtype` is among what is ``changed``."""
    name, own = FAMILIES[family]
    settings = {**SMALL, **own, **changed}
    if "img_size" not in settings:
        settings["img_size"] = GRID * patch_size(name)
    torch.manual_seed(seed)
    model = timm.create_model(name, pretrained=False, **settings)
    return shaken(model, seed).double().eval()


def patch_size(name: str) -> int:
    """Of a timm model, by its name."""
    words = [word.removeprefix("patch") for word in name.replace(".", "_").split("_") if word.startswith("patch")]
    return int(words[0]) if words else 16


def shaken(model: nn.Module, seed: int) -> nn.Module:
    """All parameters moved by noise."""
    random = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn(value.shape, generator=random) * 0.2 / max(1, value[0].numel()) ** 0.5)
    return model
