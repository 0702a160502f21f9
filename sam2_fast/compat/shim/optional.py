"""Names that official modules import from other packages: resolved when they are first used.

Programs reach these packages through them (`sam2.sam2_video_predictor.torch`). Some are not
installed with sam2_fast; their names are then missing, with an explanation.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_SOURCES = {
    "F": "torch.nn.functional",
    "GlobalHydra": "hydra.core.global_hydra:GlobalHydra",
    "Image": "PIL.Image",
    "Normalize": "torchvision.transforms:Normalize",
    "OmegaConf": "omegaconf:OmegaConf",
    "OrderedDict": "collections:OrderedDict",
    "Resize": "torchvision.transforms:Resize",
    "Tensor": "torch:Tensor",
    "Thread": "threading:Thread",
    "ToTensor": "torchvision.transforms:ToTensor",
    "compose": "hydra:compose",
    "copy": "copy",
    "deepcopy": "copy:deepcopy",
    "g_pathmgr": "iopath.common.file_io:g_pathmgr",
    "initialize_config_module": "hydra:initialize_config_module",
    "instantiate": "hydra.utils:instantiate",
    "logging": "logging",
    "math": "math",
    "nn": "torch.nn",
    "np": "numpy",
    "os": "os",
    "partial": "functools:partial",
    "product": "itertools:product",
    "sam2": "sam2",
    "torch": "torch",
    "tqdm": "tqdm:tqdm",
    "trunc_normal_": "torch.nn.init:trunc_normal_",
    "warnings": "warnings",
    **{
        name: f"typing:{name}"
        for name in (
            *("Any", "Dict", "Generator", "ItemsView", "List", "Optional", "Tuple", "Type"),
            "Union",
        )
    },
}
_NAMES = {
    "sam2": "GlobalHydra initialize_config_module",
    "sam2.automatic_mask_generator": "Any Dict List Optional Tuple np torch",
    "sam2.build_sam": "OmegaConf compose instantiate logging os sam2 torch",
    "sam2.modeling.backbones.hieradet": "F List Tuple Union g_pathmgr logging nn partial torch",
    "sam2.modeling.backbones.image_encoder": "F List Optional nn torch",
    "sam2.modeling.backbones.utils": "F Tuple nn torch",
    "sam2.modeling.memory_attention": "Optional Tensor nn torch",
    "sam2.modeling.memory_encoder": "F Tuple math nn torch",
    "sam2.modeling.position_encoding": "Any Optional Tuple math nn np torch",
    "sam2.modeling.sam.mask_decoder": "List Optional Tuple Type nn torch",
    "sam2.modeling.sam.prompt_encoder": "Optional Tuple Type nn torch",
    "sam2.modeling.sam.transformer": "F Tensor Tuple Type math nn partial torch",
    "sam2.modeling.sam2_base": "F torch trunc_normal_",
    "sam2.modeling.sam2_utils": "F Tuple copy nn np torch",
    "sam2.sam2_image_predictor": "Image List Optional Tuple Union logging np torch",
    "sam2.sam2_video_predictor": "F OrderedDict torch tqdm warnings",
    "sam2.sam2_video_predictor_legacy": "OrderedDict torch tqdm warnings",
    "sam2.utils.amg": ("Any Dict Generator ItemsView List Tuple deepcopy math np product torch"),
    "sam2.utils.misc": "Image Thread np os torch tqdm warnings",
    "sam2.utils.transforms": "F Normalize Resize ToTensor nn torch warnings",
}
_OWN_SOURCES = {("sam2.sam2_image_predictor", "Image"): "PIL.Image:Image"}


def names(module: str) -> list[str]:
    """The names that an official module imports from other packages."""
    return _NAMES.get(module, "").split()


def value(module: str, name: str) -> Any:
    """The value of such a name.

    Raises AttributeError for another name, and if its package is not installed.
    """
    if name not in names(module):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    source, _, attribute = _OWN_SOURCES.get((module, name), _SOURCES[name]).partition(":")
    try:
        imported = import_module(source)
    except ImportError as error:
        raise AttributeError(
            f"module {module!r} has no attribute {name!r}: the official package imports it from "
            f"{source!r}, which sam2_fast does not need; install that package to use it ({error})"
        ) from error
    return getattr(imported, attribute) if attribute else imported
