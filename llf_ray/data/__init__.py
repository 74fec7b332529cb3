"""Data sets with three roles, sample order, augmentation and batches."""

from llf_ray.data.ade20k import Ade20k
from llf_ray.data.arrays import Arrays
from llf_ray.data.augment import Augment, TimmAugment
from llf_ray.data.camvid import CamVid
from llf_ray.data.chest_xray import ChestXray
from llf_ray.data.coco import Coco
from llf_ray.data.coco128 import Coco128
from llf_ray.data.cub import Cub
from llf_ray.data.fashion_masks import FashionMasks
from llf_ray.data.fashion_scenes import FashionScenes
from llf_ray.data.flowers import Flowers102
from llf_ray.data.folder import Folder
from llf_ray.data.hugging_face import HuggingFace
from llf_ray.data.indoor import IndoorScenes
from llf_ray.data.isic import Isic
from llf_ray.data.jitter import LargeScaleJitter
from llf_ray.data.mask_augment import MaskAugment
from llf_ray.data.mask_folder import MaskFolder
from llf_ray.data.mosaic import Mosaic
from llf_ray.data.nuclei import Nuclei
from llf_ray.data.photographs import FashionOnPhotographs
from llf_ray.data.sample import FashionSample
from llf_ray.data.stanford_dogs import StanfordDogs
from llf_ray.data.synthetic_languages import SyntheticLanguages
from llf_ray.data.tiny_imagenet import TinyImageNet
from llf_ray.data.torchvision_sets import Torchvision

__all__ = [
    "Ade20k",
    "Arrays",
    "Augment",
    "CamVid",
    "ChestXray",
    "Coco",
    "Coco128",
    "Cub",
    "FashionMasks",
    "FashionOnPhotographs",
    "FashionSample",
    "FashionScenes",
    "Flowers102",
    "Folder",
    "HuggingFace",
    "IndoorScenes",
    "Isic",
    "LargeScaleJitter",
    "MaskAugment",
    "MaskFolder",
    "Mosaic",
    "Nuclei",
    "StanfordDogs",
    "SyntheticLanguages",
    "TimmAugment",
    "TinyImageNet",
    "Torchvision",
]
