"""The user's own images: one folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from clnp.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float32, Int64, UInt8

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"})


def load_folder(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    mode: Literal["RGB", "L"] = "RGB",
    classes: Sequence[str] | None = None,
) -> tuple[Float32[Tensor, "n c h w"], Int64[Tensor, " n"]]:
    """Load images from a folder that holds one subfolder for each class.

    All of them are held in memory as floats: ten thousand RGB images of 64 x 64 take half a gigabyte. Needs Pillow.

    Args:
        path: the folder; `path/cat/1.png` is of class "cat". Files and folders whose name begins with a dot are passed over.
        size: (height, width) that images are scaled to, bilinearly. None: they must all be of one size.
        mode: "RGB" (3 channels) or "L" (grey, 1 channel); images are converted.
        classes: the subfolders to read; the label is the place in this list. None: all of them, sorted by name. Give them where
            training and test folders may not hold the same subfolders.
    Returns: x, values 0 to 1, and y, sorted by class and file name.

    Raises:
        DataError: Pillow is not installed, a folder is missing or holds no image, a file cannot be read, or sizes differ.
    """
    image = _import_pillow()
    path = Path(path)
    if classes is None:
        classes = (
            sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")) if path.is_dir() else []
        )
    if not classes:
        msg = f"cannot load images from {path}: expected a folder with one subfolder for each class, found "
        raise DataError(msg + ("no subfolder." if path.is_dir() else "no such folder."))
    images: list[UInt8[Tensor, "c h w"]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folder = path / name
        found = sorted(file for file in folder.rglob("*") if _is_image(file, folder)) if folder.is_dir() else []
        if not found:
            msg = f"cannot load class '{name}': expected images ({', '.join(sorted(SUFFIXES))}) in {folder}, found none. "
            raise DataError(msg + "Put some there, or leave the class out.")
        for file in found:
            images.append(_read(image, file, size, mode))
            labels.append(label)
            if images[-1].shape != images[0].shape:
                msg = f"cannot load {file}: expected {_size(images[0])} as the images before, found {_size(images[-1])}. "
                raise DataError(msg + "Give a size=(height, width) to scale all images to.")
    x = torch.stack(images).float().div_(255)  # (n, c, h, w)
    return x, torch.tensor(labels)


def _import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        msg = "cannot load images: reading them needs the package Pillow, which is not installed. Install it: pip install pillow"
        raise DataError(msg) from error
    return Image


def _is_image(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in SUFFIXES and file.is_file()


def _read(image: Any, file: Path, size: tuple[int, int] | None, mode: str) -> UInt8[Tensor, "c h w"]:
    try:
        with image.open(file) as opened:
            depth = opened.mode
            picture = opened.convert(mode)
            if size is not None:
                picture = picture.resize((size[1], size[0]), image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:  # SyntaxError: Pillow's word for a broken PNG
        msg = f"cannot read {file} as an image: {error}. Mend the file or take it out."
        raise DataError(msg) from error
    if depth[0] in "IF":  # Pillow cuts every number above 255
        raise DataError(
            f"cannot read {file} as an image: expected 8 bits a channel, found Pillow's mode '{depth}'. Convert it or take it out."
        )
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _size(x: UInt8[Tensor, "c h w"]) -> str:
    return f"{x.shape[1]} x {x.shape[2]} pixels"
