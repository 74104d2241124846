"""Labeled images as tensors: two embedded data sets, three real ones, one function to load them.

==================  =======================  ==============  ========================================================
name                training / test images   pixels          what it is
==================  =======================  ==============  ========================================================
``digits``          1,500 / 297              8×8, as 16×16   scikit-learn's handwritten digits (Alpaydin and Kaynak,
                                                             1998), in its order: the last 297 are for testing
``shapes``          4,000 / 1,000            32×32×3         ten kinds of colored figures, generated here
``mnist``           60,000 / 10,000          28×28           handwritten digits (LeCun et al., 1998)
``fashion_mnist``   60,000 / 10,000          28×28           pieces of clothing (Xiao et al., 2017)
``cifar10``         50,000 / 10,000          32×32×3         photographs (Krizhevsky, 2009)
==================  =======================  ==============  ========================================================

The real ones are downloaded once through torchvision, which checks their bytes, and kept decoded as ``NAME.npz`` in the
folder that ``$LABUTILS_DATA`` names, else in the user's cache folder. A file that lies there already is used as it is.

**Format of NAME.npz** (``numpy.savez`` or ``numpy.savez_compressed``): four arrays, ``x_train`` and ``x_test`` uint8 of
shape (N, 28, 28) for ``mnist`` and ``fashion_mnist`` or (N, 32, 32, 3), red, green, blue, for ``cifar10``; ``y_train``
and ``y_test`` of shape (N,), any integer type, labels 0 to 9. Images stay in the order of the original files.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import socket
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import numpy as np
import platformdirs
import torch
from torch.nn import functional as F

_CLASSES: dict[str, tuple[str, ...]] = {
    "digits": tuple("0123456789"),
    "shapes": ("circle", "ring", "crescent", "square", "frame", "triangle", "star", "cross", "bar", "corner"),
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
#: How each data set is called in a sentence.
TITLES = {
    "digits": "digits",
    "shapes": "shapes",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
}
_TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}
_IMAGE_SHAPE = {"mnist": (28, 28), "fashion_mnist": (28, 28), "cifar10": (32, 32, 3)}
_DEFAULT_SIZE = {"digits": 16}  # two poolings of an 8×8 image would leave a network almost nothing to see
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_CHUNK = 512  # images converted at a time: small enough for the processor's cache
_MOST_BYTES = 1 << 30  # of an unpacked file; CIFAR-10 has 184 MB
_TIMEOUT = 30.0  # seconds without an answer after which a host counts as unreachable

Arrays = dict[str, np.ndarray]


class DataUnavailableError(RuntimeError):
    """A real data set is neither cached nor could it be downloaded; the message gives the remedies."""


class DamagedDataError(RuntimeError):
    """A cached data set cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set: normalized images x, float32 (N, C, H, W), and labels y, int64 (N,), into its classes."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Split({len(self):,} images of shape {tuple(self.x.shape[1:])})"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in three parts, ready for training.

    Attributes:
        name: The name it was loaded by.
        train, validation, test: The parts; validation, held out of the training images, may be empty.
        classes: Name of each label.
        fingerprint: SHA-256 (hexadecimal) over the classes and over shape and bytes of every x and y, as loaded.
        mean, std: Of each channel over the training part, pixels in [0, 1], each (C,).
        file: The cached file the images come from; None for an embedded data set.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    fingerprint: str
    mean: torch.Tensor = field(repr=False)
    std: torch.Tensor = field(repr=False)
    file: Path | None = None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Dataset:
        """Return a copy on another device, or with images of another floating-point type; the fingerprint stays.

        Raises:
            ValueError: `dtype` is not a floating-point type.

        Example:
            >>> load("digits", n_train=10, n_test=10).to(dtype=torch.float64).train.x.dtype
            torch.float64
        """
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype={dtype}: normalized images need a floating-point type such as torch.float64")

        def move(split: Split) -> Split:
            return Split(split.x.to(device=device, dtype=dtype), split.y.to(device=device))

        return replace(
            self,
            train=move(self.train),
            validation=move(self.validation),
            test=move(self.test),
            mean=self.mean.to(device=device, dtype=dtype),
            std=self.std.to(device=device, dtype=dtype),
        )

    def image(self, x: torch.Tensor) -> np.ndarray:
        """Undo the normalization of images x (..., C, H, W), for ``imshow``.

        Returns:
            Pixels in [0, 1], of shape (..., H, W) for one channel, else (..., H, W, C).

        Example:
            >>> data = load("shapes", n_train=10, n_test=10)
            >>> data.image(data.train.x[0]).shape
            (32, 32, 3)
        """
        pixels = x.detach() * self.std[:, None, None].to(x) + self.mean[:, None, None].to(x)
        pixels = pixels.clamp(0, 1).movedim(-3, -1).cpu()
        return (pixels[..., 0] if pixels.shape[-1] == 1 else pixels).numpy()


def names() -> list[str]:
    """Return the names `load` knows, the embedded data sets first.

    Example:
        >>> names()
        ['digits', 'shapes', 'mnist', 'fashion_mnist', 'cifar10']
    """
    return list(_CLASSES)


def load(
    name: str,
    *,
    classes: Sequence[str | int] | None = None,
    n_train: int | None = None,
    n_validation: int = 0,
    n_test: int | None = None,
    size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a data set, split, selected, resized and normalized. The same arguments give the same tensors.

    The steps, in this order; each random choice is ``torch.randperm(n)`` with a fresh generator of this `seed`:

    1. Of a permutation of the *whole* training set the last `n_validation` images are for validation, as in
       ``torch.utils.data.random_split(train, [N - n_validation, n_validation], generator)``.
    2. Images of other `classes` are dropped: of two classes in ten, about a fifth of `n_validation` remain.
    3. Of the remaining training images the first `n_train` of a permutation are kept, of the test images the first
       `n_test`. In each part the images stand in the original order.
    4. They get their `size` by bilinear interpolation with antialiasing, rounded to 256 levels.
    5. x = (pixel / 255 - mean) / std for each channel, with mean and standard deviation (divisor N) over the training
       part that is left; a constant channel is only shifted (std = 1).

    Args:
        name: One of `names()`.
        classes: Classes to keep, by name or original number; they are renumbered 0, 1, … in this order. None: all.
        n_train: Training images, at least 1. None: all that are left.
        n_validation: Training images, before the choice of classes, that are held out for validation.
        n_test: Test images. None: all.
        size: Height and width in pixels. None: as the module's table says.
        seed: Seed of the random choices, at least 0.

    Raises:
        ValueError: An unknown name or class, or a number that the data cannot give.
        TypeError: An argument of the wrong type.
        DataUnavailableError: A real data set is not cached and could not be downloaded.
        DamagedDataError: The cached file is damaged or does not have the module's format.

    Example:
        >>> data = load("digits", classes=(3, 8), n_train=100, n_validation=300)
        >>> data.train.x.shape, len(data.validation), data.classes
        (torch.Size([100, 1, 16, 16]), 59, ('3', '8'))
    """
    if name not in _CLASSES:
        raise ValueError(f"unknown data set {name!r}; there are {', '.join(names())}")
    kept = _class_numbers(name, classes)
    n_validation, seed = _whole("n_validation", n_validation, 0), _whole("seed", seed, 0)
    n_train = None if n_train is None else _whole("n_train", n_train, 1)
    n_test = None if n_test is None else _whole("n_test", n_test, 0)
    size = _DEFAULT_SIZE.get(name) if size is None else _whole("size", size, 1)

    file = None if name in _EMBEDDED else _folder() / f"{name}.npz"
    if file is not None and not file.exists():
        _fetch(name, file)
    arrays = _EMBEDDED[name]() if file is None else _read(name, file)

    total = len(arrays["y_train"])
    if n_validation >= total:
        raise ValueError(f"n_validation={n_validation} leaves nothing of the {total} training images of {name!r}")
    order, remaining = _permutation(total, seed), total - n_validation
    train, validation = (_of_classes(arrays["y_train"], i, kept) for i in (order[:remaining], order[remaining:]))
    test = _of_classes(arrays["y_test"], np.arange(len(arrays["y_test"])), kept)
    train = _subset("n_train", n_train, train, seed, f"training images of {name!r}")
    test = _subset("n_test", n_test, test, seed, f"test images of {name!r}")
    if len(train) == 0:
        raise ValueError(f"{name!r} has no training images of the classes {list(classes or ())} left")

    splits = [
        _split(arrays["x_train"], arrays["y_train"], train, kept, size),
        _split(arrays["x_train"], arrays["y_train"], validation, kept, size),
        _split(arrays["x_test"], arrays["y_test"], test, kept, size),
    ]
    mean, std = _statistics(splits[0].x)
    for split in splits:  # in place: the pixels of CIFAR-10 take 737 MB as float32, a second copy is one too many
        split.x.sub_(mean[:, None, None].float()).div_(std[:, None, None].float())
    kept_names = tuple(_CLASSES[name][number] for number in kept)
    return Dataset(
        name,
        *splits,
        classes=kept_names,
        fingerprint=_fingerprint(splits, kept_names),
        mean=(mean / 255).float(),
        std=(std / 255).float(),
        file=file,
    )


def _whole(argument: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{argument}={value!r} must be a whole number")
    if value < least:
        raise ValueError(f"{argument}={value} must be at least {least}")
    return int(value)


def _class_numbers(name: str, classes: Sequence[str | int] | None) -> list[int]:
    known = _CLASSES[name]
    if classes is None:
        return list(range(len(known)))
    if isinstance(classes, str | int):
        raise TypeError(f"classes={classes!r} must be a list of classes, such as [{classes!r}]")
    places = {one: number for number, label in enumerate(known) for one in (label, number)}
    if unknown := [one for one in classes if one not in places]:
        listed = f"{', '.join(known)} (or 0 to {len(known) - 1})"
        raise ValueError(f"unknown class {unknown[0]!r} of {name!r}; its classes are {listed}")
    numbers = [places[one] for one in classes]
    if not numbers:
        raise ValueError(f"classes is empty; leave it out to keep all classes of {name!r}: {', '.join(known)}")
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"classes={list(classes)} names a class twice")
    return numbers


def _permutation(n: int, seed: int) -> np.ndarray:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()


def _of_classes(labels: np.ndarray, indices: np.ndarray, kept: list[int]) -> np.ndarray:
    return np.sort(indices[np.isin(labels[indices], kept)])


def _subset(argument: str, count: int | None, indices: np.ndarray, seed: int, what: str) -> np.ndarray:
    if count is None:
        return indices
    if count > len(indices):
        raise ValueError(f"{argument}={count}, but only {len(indices)} {what} are left to choose from")
    return indices[np.sort(_permutation(len(indices), seed)[:count])]


def _split(images: np.ndarray, labels: np.ndarray, indices: np.ndarray, kept: list[int], size: int | None) -> Split:
    """Pixels 0 to 255 as float32 (N, C, H, W), and labels numbered by their place in `kept`."""
    images = images[..., None] if images.ndim == 3 else images
    _, height, width, channels = images.shape
    resized = size is not None and (size, size) != (height, width)
    x = torch.empty((len(indices), channels, size or height, size or width), dtype=torch.float32)
    for start in range(0, len(indices), _CHUNK):
        chunk = torch.from_numpy(images[indices[start : start + _CHUNK]]).permute(0, 3, 1, 2).contiguous()
        if resized:
            chunk = F.interpolate(chunk.float(), size=(size, size), mode="bilinear", antialias=True).round_()
        x[start : start + _CHUNK] = chunk
    number = np.zeros(max(kept) + 1, dtype=np.int64)
    number[kept] = np.arange(len(kept))
    return Split(x, torch.from_numpy(number[labels[indices]]))


def _statistics(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel, float64, independent of the number of threads."""
    total = torch.zeros(pixels.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in pixels.split(_CHUNK):  # sums of whole numbers below 2^53 are exact, so their order does not matter
        chunk = chunk.double()
        total += chunk.sum((0, 2, 3))
        squares += chunk.square_().sum((0, 2, 3))
    count = pixels.numel() // pixels.shape[1]
    mean = total / count
    std = ((count * squares - total.square()).clamp(min=0)).sqrt() / count
    return mean, torch.where(std > 0, std, 255.0)


def _fingerprint(splits: list[Split], classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr(classes).encode())
    for split in splits:
        for tensor in (split.x, split.y):
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy())
    return digest.hexdigest()


def _parts(images: np.ndarray, labels: np.ndarray, n: int) -> Arrays:
    return {"x_train": images[:n], "y_train": labels[:n], "x_test": images[n:], "y_test": labels[n:]}


@functools.cache
def _digits() -> Arrays:
    from sklearn.datasets import load_digits  # here because scikit-learn takes long to import

    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return _parts(images, labels, 1500)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # Folded into one of ten equal sectors, a five-pointed star is one side of the line from its tip (1, 0) to a notch.
    sector = np.pi / 5
    angle = np.abs((np.arctan2(v, u) + sector) % (2 * sector) - sector)
    radius = np.hypot(u, v)
    notch_u, notch_v = 0.42 * np.cos(sector), 0.42 * np.sin(sector)
    return (radius * np.cos(angle) - 1) * notch_v < (notch_u - 1) * radius * np.sin(angle)


# Is the point (u, v) inside the figure? Each figure fits the unit circle, or nearly.
_FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda u, v: np.hypot(u, v) < 0.85,
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.68) < 0.22,
    "crescent": lambda u, v: (np.hypot(u, v) < 0.92) & (np.hypot(u - 0.45, v) > 0.71),
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.72,
    "frame": lambda u, v: abs(np.maximum(abs(u), abs(v)) - 0.58) < 0.2,
    "triangle": lambda u, v: np.maximum(np.sqrt(3) * abs(u) + v, -2 * v) < 1,
    "star": _star,
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.24) & (np.maximum(abs(u), abs(v)) < 0.9),
    "bar": lambda u, v: (abs(u) < 0.98) & (abs(v) < 0.26),
    "corner": lambda u, v: (np.minimum(u, v) < -0.3) & (np.maximum(abs(u), abs(v)) < 0.75),
}


@functools.cache
def _shapes(n_train: int = 4000, n_test: int = 1000) -> Arrays:
    """One figure an image: place, size, tilt, both colors, background gradient and noise are random.

    As in photographs, color says something about the class but does not settle it, and things stand nearly upright.
    """
    from matplotlib.colors import hsv_to_rgb  # here because matplotlib takes long to import

    rng = np.random.default_rng(0)
    n, side, fine = n_train + n_test, 32, 2  # fine: sample points a pixel and axis, for smooth edges
    labels = np.concatenate([rng.permutation(np.arange(count) % len(_FIGURES)) for count in (n_train, n_test)])
    radius = rng.uniform(8.5, 13.0, n)  # pixels
    center = rng.uniform(-1, 1, (2, n)) * (side / 2 - radius)
    angle = rng.uniform(-0.5, 0.5, n)
    # A light figure on a dark ground. Its hue scatters around its class's by more than the classes lie apart.
    hue = (labels / len(_FIGURES) + 0.15 * rng.standard_normal(n)) % 1
    color = hsv_to_rgb(np.stack([hue, rng.uniform(0.4, 0.9, n), rng.uniform(0.75, 1.0, n)], axis=1))
    background = hsv_to_rgb(np.stack([rng.random(n), rng.uniform(0.2, 0.7, n), rng.uniform(0.1, 0.5, n)], axis=1))
    slope = rng.uniform(-0.012, 0.012, (2, n, 3))  # of the background, a pixel
    noise = rng.uniform(0.02, 0.06, n)  # standard deviation

    pixel = np.arange(side) - (side - 1) / 2
    point = (np.arange(side * fine) - (side * fine - 1) / 2) / fine
    images = np.empty((n, side, side, 3), dtype=np.uint8)
    for label, inside in enumerate(_FIGURES.values()):
        i = np.flatnonzero(labels == label)
        each = (slice(None), None, None)  # one number an image, against rows and columns
        x = (point[None, None, :] - center[0, i][each]) / radius[i][each]
        y = (point[None, :, None] - center[1, i][each]) / radius[i][each]
        cos, sin = np.cos(angle[i])[each], np.sin(angle[i])[each]
        covered = inside(cos * x + sin * y, cos * y - sin * x)
        covered = covered.reshape(len(i), side, fine, side, fine).mean((2, 4))[..., None]
        picture = background[i][each] + slope[0, i][each] * pixel[:, None] + slope[1, i][each] * pixel[:, None, None]
        picture = picture + covered * (color[i] - background[i])[each]
        picture += noise[i][each][..., None] * rng.standard_normal(picture.shape)
        images[i] = np.rint(255 * picture.clip(0, 1))
    return _parts(images, labels, n_train)


_EMBEDDED: dict[str, Callable[[], Arrays]] = {"digits": _digits, "shapes": _shapes}


def _folder() -> Path:
    return Path(os.environ.get("LABUTILS_DATA") or platformdirs.user_cache_dir("labutils")).expanduser().absolute()


def _say(line: str) -> None:
    print(f"labutils: {line}", file=sys.stderr, flush=True)


def _check(name: str, arrays: Arrays) -> None:
    """Raise a ValueError that says in what way the arrays are not the documented format."""
    missing = [key for key in _ARRAYS if key not in arrays]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.dtype != np.uint8 or x.shape[1:] != _IMAGE_SHAPE[name] or len(x) == 0:
            wanted = ", ".join(map(str, ("N", *_IMAGE_SHAPE[name])))
            raise ValueError(f"x_{part} is {x.dtype} of shape {x.shape}, not uint8 of shape ({wanted})")
        if not np.issubdtype(y.dtype, np.integer) or y.shape != x.shape[:1]:
            raise ValueError(f"y_{part} is {y.dtype} of shape {y.shape}, not an integer for each of {len(x)} images")
        if y.min() < 0 or y.max() >= len(_CLASSES[name]):
            raise ValueError(
                f"y_{part} holds labels from {y.min()} to {y.max()}, outside 0 to {len(_CLASSES[name]) - 1}"
            )


def _read(name: str, file: Path) -> Arrays:
    with open(file, "rb") as stream:  # no permission, a folder: errors that say so themselves
        try:
            if not zipfile.is_zipfile(stream):
                raise ValueError("it is no complete .npz archive; it may be cut off")
            with zipfile.ZipFile(stream) as archive:
                size = sum(member.file_size for member in archive.infolist())
            if size > _MOST_BYTES:
                raise ValueError(f"it would unpack to {size / 1e9:.1f} GB, more than any of these data sets")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:  # reading to the end compares the checksums
                arrays = {key: archive[key] for key in _ARRAYS if key in archive}
            _check(name, arrays)
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes can raise nearly anything
            raise DamagedDataError(
                f"{file} is damaged or no {name!r} data: {error}. Delete it, then it is downloaded anew, "
                "or replace it by a good copy (the format is in help('labutils.data'))."
            ) from error
    return arrays


def _fetch(name: str, file: Path) -> None:
    """Download and decode once, even if several processes ask at the same time."""
    lock = filelock.FileLock(file.with_name(f".{name}.lock"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            _say(f"waiting for another process that downloads {name}")
            lock.acquire()
    except OSError as error:
        raise _unavailable(name, file, [f"the folder {file.parent} cannot be written: {error}"]) from error
    try:
        if file.exists():  # the other process has done the work
            return
        for stale in file.parent.glob(f".{name}-*.partial"):  # left by a killed process: the lock is ours now
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", suffix=".partial", dir=file.parent) as scratch:
            arrays = _download(name, file, Path(scratch))
            with open(Path(scratch, file.name), "wb") as stream:
                np.savez(stream, **arrays)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(Path(scratch, file.name), file)
    finally:
        lock.release()


def _download(name: str, file: Path, scratch: Path) -> Arrays:
    _say(f"downloading {name}, once, into {file.parent}")
    original = getattr(_torchvision_datasets(), _TORCHVISION[name])
    reasons, cause = [], None
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)  # torchvision sets none: a host that falls silent would hold us for ever
    try:
        for source in getattr(original, "mirrors", None) or [original.url]:
            # One mirror at a time and each in an empty folder: torchvision tries the next only after some errors,
            # and takes a file that the last attempt left half unpacked for a good one.
            one = type(original.__name__, (original,), {"mirrors": [source]})
            root = scratch / str(len(reasons))
            try:
                with warnings.catch_warnings():
                    # CIFAR-10's pickles of 2009 spell a boolean as 0; NumPy 2.4.0 to 2.4.4 warn of that.
                    warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
                    train, test = one(root, train=True, download=True), one(root, train=False, download=True)
                arrays = {
                    "x_train": np.asarray(train.data),
                    "y_train": np.asarray(train.targets, dtype=np.uint8),
                    "x_test": np.asarray(test.data),
                    "y_test": np.asarray(test.targets, dtype=np.uint8),
                }
                _check(name, arrays)
                return arrays
            except Exception as error:  # whatever went wrong here, the next mirror may do; all reasons are reported
                text = " ".join(str(error).split()) or type(error).__name__
                if "File not found or corrupted" in text:  # torchvision's words for a wrong MD5
                    text = f"the file that arrived is incomplete or altered: its checksum is wrong ({text})"
                reasons.append(f"{source}: {text}")
                cause = error
    finally:
        socket.setdefaulttimeout(timeout)
    raise _unavailable(name, file, reasons) from cause


def _unavailable(name: str, file: Path, reasons: list[str]) -> DataUnavailableError:
    return DataUnavailableError(
        "\n".join(
            [
                f"the data set {name!r} is not cached and could not be downloaded:",
                *(f"  - {reason}" for reason in reasons),
                "Without the network, one of these helps:",
                f"  - put a copy of {file.name} at {file} (the format is in help('labutils.data'));",
                f"  - set the environment variable LABUTILS_DATA to a folder that holds {file.name};",
                f"  - choose an embedded data set instead: {' or '.join(map(repr, _EMBEDDED))}.",
            ]
        )
    )


def _torchvision_datasets() -> ModuleType:
    """Import torchvision.datasets, also beside a torch that torchvision was not compiled for.

    The package index's torchvision wants CUDA. Beside a CPU-only torch its compiled operators do not load, and its
    import fails, since it describes two of them. The data sets use none, so it is enough to declare these two.
    """
    try:
        from torchvision import datasets
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        from torchvision import datasets
    return datasets
