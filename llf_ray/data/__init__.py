"""Data sets with three roles, sample order, augmentation and batches."""

from llf_ray.data.arrays import Arrays
from llf_ray.data.augment import Augment, TimmAugment
from llf_ray.data.folder import Folder
from llf_ray.data.hugging_face import HuggingFace
from llf_ray.data.mosaic import Mosaic
from llf_ray.data.photographs import FashionOnPhotographs
from llf_ray.data.sample import FashionSample
from llf_ray.data.synthetic_languages import SyntheticLanguages
from llf_ray.data.torchvision_sets import Torchvision

__all__ = [
    "Arrays",
    "Augment",
    "FashionOnPhotographs",
    "FashionSample",
    "Folder",
    "HuggingFace",
    "Mosaic",
    "SyntheticLanguages",
    "TimmAugment",
    "Torchvision",
]
