"""labutils.data: what is loaded, how it is split, and every way in which a download or a cache can go wrong.

Downloads run against a server on loopback that serves small files in the original formats: gzipped idx files for
MNIST and Fashion-MNIST, a tar archive of pickled batches for CIFAR-10. torchvision's own code fetches, checks and
decodes them.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import hashlib
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from labutils import data
from labutils.data import DamagedDataError, DataUnavailableError, load

REAL = ("mnist", "fashion_mnist", "cifar10")
SHAPE = {"mnist": (28, 28), "fashion_mnist": (28, 28), "cifar10": (32, 32, 3)}
GIVEN_FOLDER = Path(os.environ.get("LABUTILS_DATA", "does-not-exist"))  # before the tests point it elsewhere


def random_arrays(name: str, n_train: int = 60, n_test: int = 20, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = {}
    for part, n in (("train", n_train), ("test", n_test)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (n, *SHAPE[name]), dtype=np.uint8)
        arrays[f"y_{part}"] = rng.permutation(np.arange(n) % 10).astype(np.uint8)
    return arrays


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LABUTILS_DATA", str(folder))
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(data, "_torchvision_datasets", refuse)


def put(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


def visible(folder: Path) -> list[str]:
    """What lies in the cache folder, apart from the lock (which some systems leave behind)."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


class Server(ThreadingHTTPServer):
    """Serves `files`; counts requests; can cut answers short or hold them in the middle until `gate` opens."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.counts: Counter[str] = Counter()
        self.cut: str | None = None  # paths ending so break off in the middle
        self.hold: str | None = None  # paths ending so wait there for the gate
        self.holding, self.gate = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # torchvision closes its first connection, which only asks for redirects, without reading it


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.counts[name] += 1
        if name not in self.server.files:
            self.send_error(404)
            return
        body = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        if self.server.cut and name.endswith(self.server.cut):
            return
        # Only from the second request on: the first one asks for redirects.
        if self.server.hold and name.endswith(self.server.hold) and self.server.counts[name] > 1:
            self.wfile.flush()
            self.server.holding.set()
            self.server.gate.wait(60)
        self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(variable, "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.gate.set()
        running.shutdown()
        thread.join()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def idx(array: np.ndarray) -> bytes:
    """Gzipped idx file: two zeros, type 8 (byte), number of dimensions, the dimensions big-endian, the bytes."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


class OldPickler(pickle._Pickler):
    """Pickles a NumPy type as in 2009, ``dtype("u1", 0, 1)``: NumPy 2.4.0 to 2.4.4 warn when they read that."""

    def reducer_override(self, obj: object) -> object:
        if isinstance(obj, np.dtype):
            return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return NotImplemented


def pickled(content: object) -> bytes:
    stream = io.BytesIO()
    OldPickler(stream, protocol=2).dump(content)
    return stream.getvalue()


def original(name: str, arrays: dict[str, np.ndarray], mirrors: list[str]) -> tuple[dict[str, bytes], dict]:
    """The files as their makers publish them, and the attributes of torchvision's class that lead there."""
    if name != "cifar10":
        files = {
            f"{prefix}-{kind}-ubyte.gz": idx(arrays[f"{key}_{part}"])
            for part, prefix in (("train", "train"), ("test", "t10k"))
            for key, kind in (("x", "images-idx3"), ("y", "labels-idx1"))
        }
        return files, {"mirrors": mirrors, "resources": [[file, md5(content)] for file, content in files.items()]}
    batches: dict[str, bytes] = {}
    for part, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
        rows = arrays[f"x_{part}"].transpose(0, 3, 1, 2).reshape(len(arrays[f"x_{part}"]), -1)
        for file, x, y in zip(
            names, np.split(rows, len(names)), np.split(arrays[f"y_{part}"], len(names)), strict=True
        ):
            batches[file] = pickled({"data": np.ascontiguousarray(x), "labels": y.tolist()})
    batches["batches.meta"] = pickled({"label_names": list(data._CLASSES["cifar10"])})
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for file, content in batches.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{file}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    sums = [[file, md5(content)] for file, content in batches.items()]
    return {"cifar-10-python.tar.gz": stream.getvalue()}, {
        "url": mirrors[0] + "cifar-10-python.tar.gz",
        "tgz_md5": md5(stream.getvalue()),
        "train_list": sums[:5],
        "test_list": sums[5:6],
        "meta": {"filename": "batches.meta", "key": "label_names", "md5": sums[6][1]},
    }


Publish = Callable[..., tuple[dict[str, np.ndarray], dict]]


@pytest.fixture
def publish(server: Server, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Put a small data set on the server, and let torchvision look for it there."""

    def run(name: str, mirrors: list[str] | None = None, **changes: object) -> tuple[dict[str, np.ndarray], dict]:
        arrays = random_arrays(name)
        files, attributes = original(name, arrays, mirrors or [server.url])
        server.files.update(files)
        attributes.update(changes)
        vision = getattr(data._torchvision_datasets(), data._TORCHVISION[name])
        for key, value in attributes.items():
            monkeypatch.setattr(vision, key, value)
        return arrays, attributes

    return run


@pytest.fixture
def collect_answers() -> Iterator[None]:
    """torchvision never closes the answer to a refused request, and the garbage collector warns of that."""
    yield
    gc.collect()


@pytest.fixture
def closed_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


CHILD = """
import json, sys
from labutils import data
assert "torchvision" not in sys.modules, "importing labutils.data must stay fast"
for key, value in json.loads(sys.argv[1]).items():
    setattr(data._torchvision_datasets().MNIST, key, value)
data.load("mnist")
"""


@pytest.mark.parametrize(
    ("name", "n_train", "n_test", "shape"), [("digits", 1500, 297, (1, 16, 16)), ("shapes", 4000, 1000, (3, 32, 32))]
)
def test_embedded_data_need_neither_network_nor_files(name, n_train, n_test, shape, no_network, cache):
    loaded = load(name)
    assert (loaded.name, loaded.file, len(loaded.classes)) == (name, None, 10)
    for split, n in ((loaded.train, n_train), (loaded.validation, 0), (loaded.test, n_test)):
        assert (len(split), split.x.shape, split.x.dtype, split.y.dtype) == (n, (n, *shape), torch.float32, torch.int64)
        assert split.y.unique().tolist() == list(range(10 if n else 0))
    assert load(name).fingerprint == loaded.fingerprint
    assert not cache.exists()


def test_digits_are_scikit_learns():
    images, labels = load_digits(return_X_y=True)
    loaded = load("digits", size=8)
    ours = np.concatenate([loaded.image(loaded.train.x), loaded.image(loaded.test.x)])
    np.testing.assert_allclose(ours, images.reshape(-1, 8, 8) / 16, atol=0.5 / 255 + 1e-6)
    np.testing.assert_array_equal(torch.cat([loaded.train.y, loaded.test.y]), labels)


def test_shapes_are_balanced_and_always_the_same():
    arrays, again = data._shapes(), data._shapes.__wrapped__()
    assert (np.bincount(arrays["y_train"]) == 400).all()
    assert (np.bincount(arrays["y_test"]) == 100).all()
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, again[key])
    assert arrays["y_train"][:8].tolist() == [2, 2, 9, 1, 6, 5, 7, 3]
    assert tuple(data._FIGURES) == data._CLASSES["shapes"]


def test_the_color_of_a_picture_does_not_settle_its_class():
    loaded = load("shapes")
    train, test = loaded.train.x.mean((2, 3)), loaded.test.x.mean((2, 3))
    centers = torch.stack([train[loaded.train.y == label].mean(0) for label in range(10)])
    nearest = torch.cdist(test, centers).argmin(1)
    assert (nearest == loaded.test.y).float().mean() < 0.35


def test_a_ready_made_file_is_used_as_it_is(cache, no_network, capfd):
    arrays = random_arrays("cifar10")
    file = put(cache, "cifar10", arrays)
    before = file.read_bytes()
    loaded = load("cifar10")
    assert (loaded.file, file.read_bytes(), visible(cache)) == (file, before, ["cifar10.npz"])
    assert capfd.readouterr() == ("", "")  # quiet when cached
    for split, part in ((loaded.train, "train"), (loaded.test, "test")):
        np.testing.assert_allclose(loaded.image(split.x), arrays[f"x_{part}"] / 255, atol=1e-6)
        np.testing.assert_array_equal(split.y, arrays[f"y_{part}"])


def test_ready_made_files_may_be_compressed_and_have_any_integer_labels(cache, no_network):
    file = put(cache, "mnist", arrays := random_arrays("mnist"))
    fingerprint = load("mnist").fingerprint
    np.savez_compressed(file, **{key: a.astype(np.int32) if key[0] == "y" else a for key, a in arrays.items()})
    assert load("mnist").fingerprint == fingerprint


@pytest.mark.parametrize("value", [None, ""])
def test_without_the_variable_the_users_cache_folder_is_used(monkeypatch, tmp_path, no_network, value):
    put(tmp_path, "mnist", random_arrays("mnist"))
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path) if name == "labutils" else "")
    monkeypatch.delenv("LABUTILS_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("LABUTILS_DATA", value)
    assert load("mnist").file == tmp_path / "mnist.npz"


def test_the_split_is_random_split_before_the_choice_of_classes(cache, no_network):
    """D4: split with a seeded generator, then keep two classes; the images stay in the order of the file."""
    arrays = random_arrays("cifar10", n_train=200)
    put(cache, "cifar10", arrays)
    loaded = load("cifar10", classes=("bird", "airplane"), n_validation=50, seed=123)
    parts = torch.utils.data.random_split(range(200), [150, 50], generator=torch.Generator().manual_seed(123))
    for part, split in zip(parts, (loaded.train, loaded.validation), strict=True):
        indices = [i for i in sorted(part) if arrays["y_train"][i] in (0, 2)]
        np.testing.assert_array_equal(np.rint(255 * loaded.image(split.x)), arrays["x_train"][indices])
        assert split.y.tolist() == [{2: 0, 0: 1}[int(arrays["y_train"][i])] for i in indices]
    assert len(loaded.test) == np.isin(arrays["y_test"], (0, 2)).sum()
    assert loaded.classes == ("bird", "airplane")


@pytest.mark.skipif(not (GIVEN_FOLDER / "cifar10.npz").exists(), reason="$LABUTILS_DATA holds no cifar10.npz")
def test_d4_split_of_the_real_cifar10(monkeypatch):
    monkeypatch.setenv("LABUTILS_DATA", str(GIVEN_FOLDER))
    loaded = load("cifar10", classes=("airplane", "bird"), n_validation=5000, seed=123)
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (9017, 983, 2000)


def test_n_train_and_n_test_count_images_of_the_chosen_classes(cache, no_network):
    put(cache, "mnist", random_arrays("mnist", n_train=300, n_test=100))
    options = {"classes": (7, "1"), "n_validation": 50, "seed": 4}
    everything = load("mnist", **options)
    some = load("mnist", n_train=20, n_test=np.int64(5), **options)
    more = load("mnist", n_train=30, n_test=5, **options)
    assert (len(some.train), len(some.test), len(load("mnist", n_test=0).test)) == (20, 5, 0)
    assert torch.equal(some.validation.y, everything.validation.y)

    def pictures(dataset: data.Dataset, part: str) -> list[bytes]:
        return [np.rint(255 * image).tobytes() for image in dataset.image(getattr(dataset, part).x)]

    order = {picture: i for i, picture in enumerate(pictures(everything, "train"))}
    permutation = torch.randperm(len(everything.train), generator=torch.Generator().manual_seed(4))
    assert [order[picture] for picture in pictures(some, "train")] == sorted(permutation[:20].tolist())
    assert set(pictures(some, "train")) < set(pictures(more, "train"))
    assert pictures(some, "test") == pictures(more, "test")


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_validation=st.integers(0, 60),
    classes=st.one_of(st.none(), st.permutations(range(10)).map(lambda order: order[:6])),
    n_train=st.one_of(st.none(), st.integers(1, 5)),
    size=st.sampled_from([None, 9]),
    seed=st.integers(0, 2**40),
)
def test_splits_are_disjoint_reproducible_and_normalized_by_the_training_part(
    shared_cache, n_validation, classes, n_train, size, seed
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABUTILS_DATA", str(shared_cache))
        arrays = random_arrays("cifar10", n_train=120, n_test=30, seed=1)
        arrays["x_train"] //= 2
        put(shared_cache, "cifar10", arrays)
        options = {"n_validation": n_validation, "classes": classes, "n_train": n_train, "size": size, "seed": seed}
        loaded = load("cifar10", **options)
        assert load("cifar10", **options).fingerprint == loaded.fingerprint

        # Statistics: those of the training part, an independent computation in float64.
        pixels = loaded.image(loaded.train.x).astype(np.float64)
        np.testing.assert_allclose(loaded.mean, pixels.mean((0, 1, 2)), atol=1e-5)
        np.testing.assert_allclose(loaded.std, pixels.std((0, 1, 2)), atol=1e-5)
        np.testing.assert_allclose(loaded.train.x.double().var((0, 2, 3), correction=0), 1, atol=1e-4)

        # Every image of the file is in at most one part.
        if size is None:
            known = {image.tobytes(): i for i, image in enumerate(arrays["x_train"])}
            used = []
            for split in (loaded.train, loaded.validation):
                images = np.rint(255 * loaded.image(split.x)).astype(np.uint8)
                rows = [known[image.tobytes()] for image in images]
                assert [(classes or range(10))[i] for i in split.y.tolist()] == arrays["y_train"][rows].tolist()
                used += rows
            assert len(set(used)) == len(used)

        # What the model must not see does not move the statistics.
        order = torch.randperm(120, generator=torch.Generator().manual_seed(seed)).numpy()
        arrays["x_test"] = 255 - arrays["x_test"]
        arrays["x_train"][order[120 - n_validation :]] = 255
        put(shared_cache, "cifar10", arrays)
        changed = load("cifar10", **options)
        assert torch.equal(changed.train.x, loaded.train.x)
        assert torch.equal(changed.std, loaded.std)
        assert changed.fingerprint != loaded.fingerprint


def test_a_constant_channel_is_only_shifted(cache, no_network):
    arrays = random_arrays("cifar10")
    arrays["x_train"][..., 1] = 77
    put(cache, "cifar10", arrays)
    loaded = load("cifar10")
    assert (loaded.std[1], loaded.train.x[:, 1].abs().max()) == (1, 0)
    assert loaded.test.x.isfinite().all()


@pytest.mark.parametrize("size", [5, 28, 33])
def test_size_is_antialiased_bilinear_interpolation(cache, no_network, size):
    arrays = random_arrays("mnist")
    put(cache, "mnist", arrays)
    loaded = load("mnist", size=size)
    images = map(Image.fromarray, arrays["x_train"])
    expected = [np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    got = 255 * loaded.image(loaded.train.x)
    np.testing.assert_allclose(got, np.rint(got), atol=1e-3)  # whole levels
    assert np.abs(got - np.array(expected, dtype=float)).max() < 1.01  # Pillow computes in integers
    assert loaded.test.x.shape == (20, 1, size, size)


def test_every_option_that_changes_the_data_changes_the_fingerprint(cache, no_network):
    arrays = random_arrays("mnist")
    put(cache, "mnist", arrays)
    options = [{}, {"classes": (0, 1)}, {"classes": (1, 0)}, {"n_train": 59}, {"n_train": 59, "seed": 1}]
    options += [{"n_validation": 10}, {"n_test": 19}, {"n_test": 0}, {"size": 27}]
    prints = [load("mnist", **each).fingerprint for each in options]
    assert len(set(prints)) == len(prints)
    assert all(len(each) == 64 and int(each, 16) >= 0 for each in prints)
    assert load("mnist", seed=1).fingerprint == prints[0]  # no random choice: the seed changes nothing
    arrays["x_test"][3, 4, 5] ^= 1
    put(cache, "mnist", arrays)
    assert load("mnist").fingerprint != prints[0]


def test_fingerprint_does_not_depend_on_threads_or_default_dtype():
    before, threads = load("shapes", n_validation=500), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.set_default_dtype(torch.float64)
        after = load("shapes", n_validation=500)
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
    assert after.fingerprint == before.fingerprint
    assert after.mean.dtype == torch.float32


def test_to_returns_a_copy():
    loaded = load("digits", n_train=20, n_validation=100, n_test=10)
    moved = loaded.to("meta", torch.float64)
    for split in (moved.train, moved.validation, moved.test):
        assert (split.x.device.type, split.x.dtype) == ("meta", torch.float64)
        assert (split.y.device.type, split.y.dtype) == ("meta", torch.int64)
    assert (moved.fingerprint, moved.std.dtype) == (loaded.fingerprint, torch.float64)
    assert loaded.train.x.dtype == torch.float32
    with pytest.raises(ValueError, match=r"dtype=torch.int64.*torch.float64"):
        loaded.to(dtype=torch.int64)


def test_image_undoes_the_normalization():
    gray = load("digits", n_train=20, n_test=10)
    assert gray.image(gray.train.x[3]).shape == (16, 16)
    color = load("shapes", n_train=20, n_test=10)
    assert color.image(color.train.x[None]).shape == (1, 20, 32, 32, 3)
    pixels = color.image(color.train.x.double())
    np.testing.assert_allclose(255 * pixels, np.rint(255 * pixels), atol=1e-3)
    wild = color.image(1e3 * color.train.x.clone().requires_grad_())
    assert (wild.min(), wild.max()) == (0, 1)


# ------------------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "minst"}, ValueError, "unknown data set 'minst'; there are digits, shapes, mnist"),
        ({"classes": ("circle", "oval")}, ValueError, "unknown class 'oval' of 'shapes'; its classes are circle, ring"),
        ({"classes": (0, 10)}, ValueError, r"unknown class 10 of 'shapes'.*\(or 0 to 9\)"),
        ({"classes": (-1,)}, ValueError, "unknown class -1"),
        ({"classes": ()}, ValueError, "classes is empty; leave it out"),
        ({"classes": ("star", 6)}, ValueError, r"classes=\['star', 6\] names a class twice"),
        ({"classes": "star"}, TypeError, r"classes='star' must be a list of classes, such as \['star'\]"),
        ({"n_train": 401, "classes": [2]}, ValueError, "n_train=401, but only 400 training images of 'shapes'"),
        ({"n_train": 4000, "n_validation": 1}, ValueError, "n_train=4000, but only 3999 training images"),
        ({"n_test": 1001}, ValueError, "n_test=1001, but only 1000 test images of 'shapes' are left"),
        ({"n_validation": 4000}, ValueError, "n_validation=4000 leaves nothing of the 4000 training images"),
        ({"n_train": 0}, ValueError, "n_train=0 must be at least 1"),
        ({"n_test": -1}, ValueError, "n_test=-1 must be at least 0"),
        ({"size": 0}, ValueError, "size=0 must be at least 1"),
        ({"n_train": 10.0}, TypeError, "n_train=10.0 must be a whole number"),
        ({"size": True}, TypeError, "size=True must be a whole number"),
    ],
)
def test_bad_arguments(options, error, message, monkeypatch):
    small = data._parts(np.zeros((5000, 2, 2, 3), np.uint8), np.arange(5000) % 10, 4000)
    monkeypatch.setitem(data._EMBEDDED, "shapes", lambda: small)
    with pytest.raises(error, match=message):
        load(**{"name": "shapes", **options})


def test_classes_that_the_training_part_does_not_have(cache, no_network):
    arrays = random_arrays("mnist")
    arrays["y_train"][:] = 3
    put(cache, "mnist", arrays)
    with pytest.raises(ValueError, match=r"'mnist' has no training images of the classes \[4, '5'\] left"):
        load("mnist", classes=[4, "5"])


def changed(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict], dict]:
    return lambda arrays: {**arrays, key: change(arrays[key])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: {"images": arrays["x_train"]}, "x_train, y_train, x_test, y_test missing"),
        (changed("x_train", lambda a: a.astype("f4")), r"x_train is float32 .*, not uint8 of shape \(N, 28, 28\)"),
        (changed("x_test", lambda a: a[:0]), r"x_test is uint8 of shape \(0, 28, 28\), not"),
        (
            changed("y_train", lambda a: a.astype(float)),
            r"y_train is float64 of shape \(60,\), not an integer for each",
        ),
        (changed("y_train", lambda a: a[:-1]), r"y_train is uint8 of shape \(59,\), not an integer for each of 60"),
        (changed("y_test", lambda a: a.astype(int) - 1), "y_test holds labels from -1 to 8, outside 0 to 9"),
        (changed("y_test", lambda a: a.astype(object)), "Object arrays cannot be loaded"),
    ],
)
def test_a_cache_in_the_wrong_format_is_named(cache, no_network, change, message):
    file = put(cache, "mnist", change(random_arrays("mnist")))
    with pytest.raises(DamagedDataError, match=message) as caught:
        load("mnist")
    assert f"{file} is damaged or no 'mnist' data" in str(caught.value)
    assert "Delete it" in str(caught.value)
    assert "replace it by a good copy" in str(caught.value)
    assert file.exists()  # never deleted or replaced by us


@pytest.mark.parametrize(
    "content", [b"", b"<html>", pickle.dumps({"x_train": 1}), b"\x93NUMPY\x01\x00", slice(30), slice(-9)]
)
def test_a_truncated_file_or_one_of_another_kind_is_found(cache, no_network, content):
    file = put(cache, "mnist", random_arrays("mnist"))
    file.write_bytes(file.read_bytes()[content] if isinstance(content, slice) else content)
    with pytest.raises(DamagedDataError, match=r"no complete \.npz archive; it may be cut off"):
        load("mnist")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_no_damaged_byte_gives_other_images(shared_cache, position, mask):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABUTILS_DATA", str(shared_cache))
        file = put(shared_cache, "mnist", random_arrays("mnist", n_train=10, n_test=10))
        good = load("mnist").fingerprint
        content = bytearray(file.read_bytes())
        content[int(position * len(content))] ^= mask
        file.write_bytes(content)
        with contextlib.suppress(DamagedDataError):
            assert load("mnist").fingerprint == good  # a byte that means nothing, such as a date


def test_an_archive_that_would_fill_the_memory_is_refused_unread(cache, no_network, monkeypatch):
    put(cache, "mnist", random_arrays("mnist"))
    monkeypatch.setattr(data, "_MOST_BYTES", 60_000)
    with pytest.raises(DamagedDataError, match=r"would unpack to 0\.\d GB, more than any of these data sets"):
        load("mnist")


def test_an_array_that_claims_more_than_the_file_holds_is_refused(cache, no_network):
    put(cache, "mnist", random_arrays("mnist"))
    with zipfile.ZipFile(cache / "mnist.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["x_train.npy"] = members["x_train.npy"].replace(b"(60, 28, 28), }", b"(90, 28, 28), }")
    with zipfile.ZipFile(cache / "mnist.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(DamagedDataError, match="damaged or no 'mnist' data"):
        load("mnist")


def test_links_are_followed_and_a_folder_in_place_of_the_file_is_named(cache, tmp_path, no_network):
    put(tmp_path / "elsewhere", "mnist", random_arrays("mnist"))
    (cache / "cifar10.npz").mkdir(parents=True)
    (cache / "mnist.npz").symlink_to(tmp_path / "elsewhere" / "mnist.npz")
    assert len(load("mnist").train) == 60
    with pytest.raises(OSError, match=r"cifar10\.npz"):
        load("cifar10")


@pytest.mark.parametrize("name", REAL)
def test_download(name, cache, publish, server, capfd):
    arrays, _ = publish(name)
    loaded = load(name)
    error = capfd.readouterr().err
    assert f"labutils: downloading {name}, once, into {cache}" in error
    assert visible(cache) == [f"{name}.npz"]
    (cache / "plain").touch()
    assert (cache / f"{name}.npz").stat().st_mode == (cache / "plain").stat().st_mode  # others may read it
    with np.load(cache / f"{name}.npz") as archive:
        assert set(archive) == set(arrays)
        for key, array in arrays.items():
            assert archive[key].dtype == np.uint8
            np.testing.assert_array_equal(archive[key], array)
    assert len(loaded.train) == 60
    np.testing.assert_array_equal(np.rint(255 * loaded.image(loaded.test.x)), arrays["x_test"])

    server.counts.clear()
    assert load(name).fingerprint == loaded.fingerprint
    assert not server.counts
    assert capfd.readouterr().err == ""


def assert_unavailable(name: str, folder: Path, *reasons: str) -> None:
    with pytest.raises(DataUnavailableError) as caught:
        load(name)
    for part in (
        f"the data set {name!r} is not cached and could not be downloaded",
        f"put a copy of {name}.npz at {folder / name}.npz",
        "set the environment variable LABUTILS_DATA",
        "choose an embedded data set instead: 'digits' or 'shapes'",
        *reasons,
    ):
        assert part in str(caught.value)
    assert visible(folder) == []
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("name", "file"), [("mnist", "t10k-labels-idx1-ubyte.gz"), ("cifar10", "cifar-10-python.tar.gz")]
)
def test_a_truncated_or_altered_download_is_refused(name, file, cache, publish, server):
    publish(name)
    server.cut = file
    assert_unavailable(name, cache, server.url, "incomplete or altered: its checksum is wrong")
    server.cut, whole = None, server.files[file]
    # The date in the gzip header: it decodes to the same data, only the checksum tells.
    server.files[file] = whole[:4] + bytes([whole[4] ^ 1]) + whole[5:]
    assert_unavailable(name, cache, server.url, "incomplete or altered: its checksum is wrong")
    server.files[file] = whole
    assert len(load(name).train) == 60  # nothing of the failures is left


def test_files_with_a_good_checksum_and_bad_content_are_refused(cache, publish, server):
    bad = changed("y_train", lambda a: a[:-1])(random_arrays("mnist"))
    files, attributes = original("mnist", bad, [server.url])
    publish("mnist", **attributes)
    server.files.update(files)
    assert_unavailable("mnist", cache, "y_train is uint8 of shape (59,), not an integer for each of 60 images")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_all_mirrors_are_tried_and_named(cache, publish, server, closed_url, collect_answers):
    publish("cifar10", mirrors=[closed_url])
    assert_unavailable("cifar10", cache, closed_url, "refused")
    publish("mnist", mirrors=[closed_url, server.url + "gone/"])
    assert_unavailable("mnist", cache, f"  - {closed_url}: ", f"  - {server.url}gone/: ", "404")


def test_the_next_mirror_is_used_when_one_falls_silent(cache, publish, server, monkeypatch):
    publish("mnist")
    server.files.update({f"slow/{file}": content for file, content in server.files.items()})
    publish("mnist", mirrors=[server.url + "slow/", server.url])
    server.hold = "slow/train-images-idx3-ubyte.gz"
    monkeypatch.setattr(data, "_TIMEOUT", 0.5)
    assert len(load("mnist").train) == 60
    assert server.holding.is_set()
    assert not server.gate.is_set()
    assert server.counts["train-images-idx3-ubyte.gz"] == 2  # the second mirror
    assert socket.getdefaulttimeout() is None  # as it was


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, publish, server):
    publish("mnist")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LABUTILS_DATA", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataUnavailableError, match="cannot be written") as caught:
        load("mnist")
    assert str(tmp_path / "file" / "cache") in str(caught.value)
    assert not server.counts


@pytest.mark.parametrize(
    ("error", "where"), [(KeyboardInterrupt, "savez"), (OSError("no space left on device"), "fsync")]
)
def test_an_interruption_while_decoding_leaves_nothing(cache, publish, monkeypatch, error, where):
    publish("mnist")

    def interrupt(*args: object, **kwargs: object) -> None:
        assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".partial"]
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(np if where == "savez" else os, where, interrupt)
        with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OSError):
            load("mnist")
    assert visible(cache) == []
    assert len(load("mnist").train) == 60


def test_remains_of_a_killed_process_are_removed_but_only_its_own(cache, publish):
    for folder in (".mnist-abc.partial", ".fashion_mnist-abc.partial"):
        (cache / folder).mkdir(parents=True)
        (cache / folder / "mnist.npz").write_bytes(b"half")
    publish("mnist")
    load("mnist")
    assert visible(cache) == [".fashion_mnist-abc.partial", "mnist.npz"]


@pytest.mark.parametrize("killed", [False, True])
def test_a_process_waits_for_another_and_does_its_work_if_that_one_dies(cache, publish, server, monkeypatch, killed):
    arrays, attributes = publish("mnist")
    server.hold = "train-images-idx3-ubyte.gz"
    said: list[str] = []
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", CHILD, json.dumps(attributes)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as other:

        def say(line: str) -> None:
            said.append(line)
            assert [Path(name).suffix for name in visible(cache)] == [".partial"]
            if killed and len(said) == 1:
                other.kill()
            server.gate.set()  # only now a process can go on

        monkeypatch.setattr(data, "_say", say)
        assert server.holding.wait(150)  # the other process is in mid-download and has the lock
        loaded = load("mnist")
        error = other.communicate()[1]
    assert (other.returncode == 0) is not killed, error
    assert said[0] == "waiting for another process that downloads mnist"
    assert server.counts["train-images-idx3-ubyte.gz"] == (4 if killed else 2)  # one asks for redirects
    assert visible(cache) == ["mnist.npz"]
    np.testing.assert_array_equal(np.rint(255 * loaded.image(loaded.train.x)), arrays["x_train"])


def test_another_failure_of_torchvision_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('its own trouble')")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(RuntimeError, match="its own trouble"):
        data._torchvision_datasets()
