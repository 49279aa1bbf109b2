"""What images a data spec stands for: their size, channels and classes, and the checked list of files of an image folder.

The server describes the data when a job is submitted, the worker when it loads them; both see the same files in the same order.
Nothing outside the data root is ever read, and nothing is followed out of it by a symbolic link.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from store.problems import InvalidSpec, Problem
from store.settings import Settings
from store.spec import DataName, DataSpec

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 64_000_000  # per image; a small file can unfold into gigabytes
MAX_REPORTED = 20  # problems named in one answer
MAX_CLASSES = 1000
MIN_PER_CLASS = 5  # fewer can't be in a training, a selection and a test set
SYNTHETIC_SAMPLES = 2000
DECODED_AT_SUBMISSION = 2000  # images that the server decodes before it answers; the worker decodes every one


@dataclass(frozen=True, slots=True)
class DataShape:
    """Pixels per side, channels, classes, and the number of labelled images where that is known before loading."""

    image_size: int
    in_channels: int
    classes: int
    samples: int | None = None


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """One sub-folder per class, sorted by name; ``files`` are (path, class number), sorted; ``ignored`` counts files that are no images."""

    root: Path
    classes: tuple[str, ...]
    files: tuple[tuple[Path, int], ...]
    ignored: int


_SHAPES: dict[DataName, DataShape] = {
    "digits": DataShape(8, 1, 10, 1797),
    "mnist5k": DataShape(28, 1, 10, 5000),
    "cifar10": DataShape(32, 3, 10, 60_000),
    "cifar100": DataShape(32, 3, 100, 60_000),
    "imagenet": DataShape(224, 3, 1000),
    "imagefolder": DataShape(32, 3, 0),
    "synthetic": DataShape(16, 3, 10, SYNTHETIC_SAMPLES),
}

# What must lie in the folder of a data set that Wattle does not ship.
LAYOUTS: dict[DataName, tuple[str, ...]] = {
    "cifar10": ("cifar-10-batches-py",),
    "cifar100": ("cifar-100-python",),
    "imagenet": ("train", "val"),
}


def describe(data: DataSpec, settings: Settings, decode: int | None = DECODED_AT_SUBMISSION) -> DataShape:
    """The shape of the images a job would see.  InvalidSpec with everything that is wrong with the data.

    ``decode``: how many images of a folder are read in full, spread evenly over it; None reads all.
    """
    known = _SHAPES[data.name]
    image_size, classes, samples = data.image_size or known.image_size, known.classes, known.samples
    if data.name == "imagefolder":
        folder = scan(data, settings, decode)
        classes, samples = len(folder.classes), len(folder.files)
    elif data.name in LAYOUTS:
        _check_layout(data, settings)
    elif data.root is not None:
        raise _invalid(data.root, None, "leave data.root out", f"{data.name} needs no folder; leave data.root out")
    elif data.name == "synthetic":
        classes, samples = data.classes or classes, data.samples or samples
    return DataShape(image_size, known.in_channels, classes, samples)


def data_folder(data: DataSpec, settings: Settings) -> Path:
    """The folder of a data set, resolved.  InvalidSpec when it is missing, no folder, or outside the data root."""
    allowed, given = settings.data_root.resolve(), data.root or "."
    remedy = f"put the data in a folder inside {allowed}, or start the service with WATTLE_DATA_ROOT set to a folder above it"

    def refused(what: str) -> InvalidSpec:
        return _invalid(given, str(allowed), remedy, f"{given!r} {what}; {remedy}")

    if "\0" in given:
        raise refused("holds a NUL character")
    try:
        folder = (allowed / given).resolve()
        found = folder.is_dir()
    except (OSError, RuntimeError) as error:  # a loop of links, a name too long
        raise refused(f"can't be followed ({error})") from error
    if not folder.is_relative_to(allowed):
        raise refused(f"leads outside the data root {allowed}")
    if not found:
        raise refused(f"is no folder in the data root {allowed}")
    return folder


def scan(data: DataSpec, settings: Settings, decode: int | None = None) -> ImageFolder:
    """Every image of the folder, checked.  InvalidSpec names each file or class that is wrong, up to MAX_REPORTED."""
    root, allowed = data_folder(data, settings), settings.data_root.resolve()
    classes = tuple(sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")))
    if not 2 <= len(classes) <= MAX_CLASSES:
        remedy = f"make one sub-folder per class in {root}, at least 2, with that class's images in it"
        message = f"{root} has {len(classes)} class folder{'s' * (len(classes) != 1)}, and 2 to {MAX_CLASSES} are needed; {remedy}"
        raise _invalid(list(classes[:MAX_REPORTED]), f"2 to {MAX_CLASSES} classes", remedy, message)
    files: list[tuple[Path, int]] = []
    problems: list[Problem] = []
    ignored = 0
    for number, name in enumerate(classes):
        before = len(files)
        for path in _walk(root / name):
            if path.is_symlink() and not path.resolve().is_relative_to(allowed):
                problems.append(
                    _file_problem(root, path, "is a symbolic link that leads outside the data root", "replace the link by the file")
                )
            elif path.is_dir():
                problems.append(_file_problem(root, path, "is a symbolic link to a folder", "replace the link by the folder itself"))
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                files.append((path, number))
            else:
                ignored += 1
        if (found := len(files) - before) < MIN_PER_CLASS:
            remedy = f"add images ({', '.join(sorted(IMAGE_SUFFIXES))}) or remove the folder"
            count = "1 image" if found == 1 else f"{found or 'no'} images"
            message = f"{name} holds {count}, and at least {MIN_PER_CLASS} are needed to train, select and test on; {remedy}"
            problems.append(Problem("data.root", found, f"at least {MIN_PER_CLASS} images per class", remedy, message))
    problems += _corrupt(root, files, decode, MAX_REPORTED - len(problems))
    if problems:
        raise InvalidSpec(problems[:MAX_REPORTED])
    return ImageFolder(root, classes, tuple(files), ignored)


def _walk(folder: Path) -> Iterator[Path]:
    """All files below ``folder`` in a fixed order, and links to folders, which are not followed.  Hidden names are left out."""
    if folder.is_symlink():
        yield folder
        return
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted([*(name for name in names if not name.startswith(".")), *links]):
            yield Path(parent) / name


def _corrupt(root: Path, files: list[tuple[Path, int]], decode: int | None, most: int) -> list[Problem]:
    """Images that can't be decoded, among ``decode`` of them taken evenly from all."""
    step = 1 if decode is None else max(1, -(-len(files) // decode))
    problems: list[Problem] = []
    for path, _ in files[::step]:
        if len(problems) >= most:
            break
        if reason := _unreadable(path):
            problems.append(_file_problem(root, path, reason, "replace it by a readable image, or remove it"))
    return problems


def _unreadable(path: Path) -> str | None:
    """Why this image can't be used, or None if it decodes in full."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's doubts about harmless metadata, and about sizes that are checked here
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    return f"has {image.width}x{image.height} pixels, more than {MAX_PIXELS}"
                image.load()
    except UnidentifiedImageError:
        return "is not an image that can be recognised"
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more for broken files
        return f"can't be decoded ({error})"
    return None


def _check_layout(data: DataSpec, settings: Settings) -> None:
    folder, needed = data_folder(data, settings), LAYOUTS[data.name]
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        remedy = f"unpack {data.name} so that {folder} holds {' and '.join(needed)}, or set data.root to the folder that does"
        raise _invalid(str(folder), list(needed), remedy, f"{folder} has no folder {' or '.join(missing)}; {remedy}")


def _invalid(value: str | list[str], limit: str | list[str] | None, remedy: str, message: str) -> InvalidSpec:
    return InvalidSpec([Problem("data.root", value, limit, remedy, message)])


def _file_problem(root: Path, path: Path, what: str, remedy: str) -> Problem:
    name = str(path.relative_to(root))
    return Problem("data.root", name, None, remedy, f"{name} {what}; {remedy}")
