"""Readers and the shipped sample; downloads against a local server, without the network."""

from __future__ import annotations

import gzip
import hashlib
import socket
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ctrlnet.fields import ImageData, mnist, mnist_sample, read_idx

# The package exports a function of the same name as the module.
MODULE = sys.modules["ctrlnet.fields.mnist"]
NAMES = list(MODULE.CHECKSUMS)
CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array):
    header = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def small_set(n_train=30, n_test=20, pixels=(28, 28)):
    rng = np.random.default_rng(0)
    arrays = []
    for n in (n_train, n_test):
        arrays += [rng.integers(0, 256, (n, *pixels), np.uint8), (np.arange(n) % 10).astype(np.uint8)]
    return dict(zip(NAMES, arrays, strict=True))


def write_set(root, arrays, suffix=""):
    root.mkdir(exist_ok=True)
    for name, array in arrays.items():
        content = idx_bytes(array)
        (root / (name + suffix)).write_bytes(gzip.compress(content, mtime=0) if suffix else content)


# --- IDX ---------------------------------------------------------------------------------------------


@st.composite
def idx_arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(sorted(CODES))))
    # Compiled kernels may have set the processor to flush subnormal numbers to zero.
    elements = hnp.from_dtype(dtype, allow_subnormal=False)
    return draw(hnp.arrays(dtype, hnp.array_shapes(max_dims=4, max_side=4, min_side=0), elements=elements))


@given(idx_arrays(), st.booleans())
def test_idx_round_trip(tmp_path_factory, array, compress):
    path = tmp_path_factory.mktemp("idx") / "array"
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content, mtime=0) if compress else content)
    read = read_idx(path)
    assert read.dtype == array.dtype and read.dtype.isnative and read.flags.writeable
    np.testing.assert_array_equal(read, array)


IMAGE = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IMAGE[:-1], "is truncated: received 39 bytes"),
        (IMAGE + b"\0", "bytes after its last element"),
        (IMAGE[:9], "its header alone has 16"),
        (gzip.compress(IMAGE, mtime=0)[:-12], "gzip stream"),
        (gzip.compress(IMAGE, mtime=0)[:12] + b"\xff\xff" + gzip.compress(IMAGE, mtime=0)[14:], "gzip stream"),
        (b"\x89PNG\r\n", "not an IDX file: received the first bytes 89 50 4e 47"),
        (b"", r"not an IDX file: received the first bytes \(none\)"),
        (b"\0\0\x08\0", "not an IDX file"),
        (b"\0\0\x0a\x01\0\0\0\x01x", "unknown element type: received 0x0a"),
        (b"\0\0\x08\x04" + b"\xff" * 16, "is truncated"),
    ],
)
def test_bad_idx(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_missing_idx(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        read_idx(tmp_path / "no-such-file")


# --- ImageData ---------------------------------------------------------------------------------------


def image_data(**changes):
    arrays = dict(
        train_images=np.zeros((6, 4, 4), np.uint8),
        train_labels=np.arange(6) % 3,
        test_images=np.zeros((3, 4, 4), np.uint8),
        test_labels=np.arange(3),
        classes=("a", "b", "c"),
    )
    return ImageData(**(arrays | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": np.zeros((6, 4, 4))}, "received float64"),
        ({"train_images": np.zeros((6, 16), np.uint8)}, r"of shape \(6, 16\)"),
        ({"test_images": np.zeros((0, 4, 4), np.uint8), "test_labels": np.zeros(0, int)}, "non-empty"),
        ({"test_images": np.zeros((3, 5, 4), np.uint8)}, "differ in size"),
        ({"train_labels": np.zeros(5, int)}, r"shape \(5,\) for 6 images"),
        ({"train_labels": np.zeros(6)}, "received float64"),
        ({"train_labels": np.full(6, 3)}, r"out of range: received 3 \.\.\. 3 for 3 classes"),
        ({"test_labels": np.array([-1, 0, 1])}, r"received -1 \.\.\. 1"),
    ],
)
def test_bad_image_data(changes, message):
    with pytest.raises(ValueError, match=message):
        image_data(**changes)


def test_subset_is_balanced_and_distinct():
    n = 100
    labels = np.random.default_rng(0).permutation(np.arange(n) % 4)
    images = np.arange(n, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    data = ImageData(images, labels, images, labels, tuple("abcd"))
    subset = data.subset(42, 8, np.random.default_rng(1))
    assert sorted(np.bincount(subset.train_labels)) == [10, 10, 11, 11]
    assert list(np.bincount(subset.test_labels)) == [2, 2, 2, 2]
    drawn = subset.train_images[:, 0, 0]
    assert len(set(drawn)) == 42
    np.testing.assert_array_equal(labels[drawn], subset.train_labels)
    again = data.subset(42, 8, np.random.default_rng(1))
    np.testing.assert_array_equal(again.train_images, subset.train_images)
    whole = data.subset(n, n, np.random.default_rng(2))
    assert sorted(whole.test_images[:, 0, 0]) == list(range(n))


def test_subset_of_unequal_classes_takes_what_there_is():
    labels = np.repeat([0, 1, 2], [2, 10, 20])
    data = image_data(train_images=np.zeros((32, 4, 4), np.uint8), train_labels=labels)
    counts = np.bincount(data.subset(18, 1, np.random.default_rng(0)).train_labels)
    assert counts.tolist() == [2, 8, 8]


@pytest.mark.parametrize(("n_train", "n_test"), [(7, 1), (1, 4), (0, 1), (1, -1)])
def test_subset_larger_than_the_data(n_train, n_test):
    with pytest.raises(ValueError, match=r"Choose 1 \.\.\. [36]"):
        image_data().subset(n_train, n_test, np.random.default_rng(0))


# --- MNIST -------------------------------------------------------------------------------------------


def test_sample_is_what_it_says():
    sample = mnist_sample()
    assert sample.train_images.shape == (4000, 28, 28) and sample.train_images.dtype == np.uint8
    assert sample.test_images.shape == (1000, 28, 28) and sample.test_images.dtype == np.uint8
    assert np.bincount(sample.train_labels).tolist() == [400] * 10
    assert np.bincount(sample.test_labels).tolist() == [100] * 10
    assert sample.classes == tuple("0123456789")
    # Ink in the middle, none in the corners, no image twice.
    mean = sample.train_images.mean(axis=0)
    assert mean[10:18, 10:18].mean() > 60 and mean[[0, 0, -1, -1], [0, -1, 0, -1]].max() < 1
    every = np.concatenate([sample.train_images, sample.test_images]).reshape(5000, -1)
    assert len(np.unique(every, axis=0)) == 5000


def test_sample_is_small_and_keeps_its_indices():
    path = MODULE.resources.files("ctrlnet.fields").joinpath(MODULE.SAMPLE_FILE)
    with path.open("rb") as file:
        assert len(file.read()) < 2**20
    with path.open("rb") as file, np.load(file) as sample:
        assert len(set(sample["train_indices"])) == 4000 and sample["train_indices"].max() < 60000
        assert len(set(sample["test_indices"])) == 1000 and sample["test_indices"].max() < 10000


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_from_files(tmp_path, suffix):
    arrays = small_set()
    write_set(tmp_path, arrays, suffix)
    data = mnist(root=tmp_path)
    np.testing.assert_array_equal(data.train_images, arrays[NAMES[0]])
    np.testing.assert_array_equal(data.test_labels, arrays[NAMES[3]])
    assert data.train_labels.dtype == np.int64 and len(data.classes) == 10


def test_mnist_names_what_is_missing(tmp_path):
    arrays = small_set()
    del arrays[NAMES[1]]
    write_set(tmp_path, arrays)
    with pytest.raises(FileNotFoundError) as error:
        mnist(tmp_path)
    message = str(error.value)
    assert NAMES[1] in message and NAMES[0] not in message
    assert str(tmp_path) in message and "download=True" in message


def test_mnist_with_the_wrong_content(tmp_path):
    arrays = small_set()
    arrays[NAMES[1]] = arrays[NAMES[1]][:-1]
    write_set(tmp_path, arrays)
    with pytest.raises(ValueError, match="are not MNIST: The train labels do not fit"):
        mnist(tmp_path)


def test_make_sample_is_reproducible(tmp_path, monkeypatch, capsys):
    write_set(tmp_path / "full", small_set(60, 40))
    monkeypatch.setattr(MODULE, "SAMPLE_SIZE", (20, 10))
    for name in ("one.npz", "two.npz"):
        MODULE.main(["--make-sample", str(tmp_path / "full"), "--output", str(tmp_path / name)])
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert "one.npz" in capsys.readouterr().out
    with np.load(tmp_path / "one.npz") as sample:
        full = read_idx(tmp_path / "full" / NAMES[0])
        np.testing.assert_array_equal(sample["train_images"], full[sample["train_indices"]])
        assert np.bincount(sample["test_labels"]).tolist() == [1] * 10


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A local server with a tiny set, gzipped, and its checksums; yields (arrays, folder it serves)."""
    arrays = small_set()
    write_set(tmp_path / "mirror", arrays, ".gz")
    checksums = {name: hashlib.sha256(idx_bytes(array)).hexdigest() for name, array in arrays.items()}

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "mirror"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(MODULE, "CHECKSUMS", checksums)
    monkeypatch.setattr(MODULE, "BASE_URL", f"http://127.0.0.1:{server.server_port}/")
    yield arrays, tmp_path / "mirror"
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(tmp_path, mirror, capsys):
    arrays, _ = mirror
    root = tmp_path / "new" / "root"
    data = mnist(root, download=True)
    np.testing.assert_array_equal(data.test_images, arrays[NAMES[2]])
    assert sorted(path.name for path in root.iterdir()) == sorted(NAMES)
    assert "100%" in capsys.readouterr().err, "a progress bar"
    # Complete: nothing is fetched again, so the mirror is not needed.
    for path in mirror[1].iterdir():
        path.unlink()
    mnist(root, download=True)


def test_download_fetches_only_what_is_missing(tmp_path, mirror):
    arrays, _ = mirror
    root = tmp_path / "root"
    write_set(root, {name: arrays[name] for name in NAMES[:2]}, ".gz")
    mnist(root, download=True)
    assert sorted(path.name for path in root.iterdir()) == sorted([f"{n}.gz" for n in NAMES[:2]] + NAMES[2:])


class Rank:
    """One of two ranks; the broadcast is what rank 0 had."""

    def __init__(self, rank, failure=None):
        self.rank, self.failure = rank, failure

    def bcast(self, value, root):
        return value if self.rank == root else self.failure


def test_only_rank_0_downloads(tmp_path, mirror):
    root = tmp_path / "root"
    with pytest.raises(FileNotFoundError):
        mnist(root, download=True, comm=Rank(1))
    with pytest.raises(ConnectionError, match="seen by rank 0"):
        mnist(root, download=True, comm=Rank(1, ConnectionError("seen by rank 0")))
    mnist(root, download=True, comm=Rank(0))
    mnist(root, download=True, comm=Rank(1))


def test_offline(tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(MODULE, "BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}/")
        with pytest.raises(ConnectionError) as error:
            mnist(tmp_path / "new" / "root", download=True)
    message = str(error.value)
    assert all(f"{name}.gz" in message for name in NAMES)
    assert f"put them into '{tmp_path / 'new' / 'root'}'" in message
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_bad_download_leaves_nothing(tmp_path, mirror, damage):
    arrays, folder = mirror
    path = folder / f"{NAMES[2]}.gz"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(gzip.compress(idx_bytes(255 - arrays[NAMES[2]]), mtime=0))
    root = tmp_path / "root"
    kind = ValueError if damage == "other" else ConnectionError
    with pytest.raises(kind, match="could not be downloaded"):
        mnist(root, download=True)
    assert sorted(file.name for file in root.iterdir()) == sorted(NAMES[:2]), "only whole files"
