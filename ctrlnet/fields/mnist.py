"""MNIST: the shipped sample, the full set from its four IDX files, and how the sample was drawn."""

from __future__ import annotations

import argparse
import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctrlnet.fields.idx import read_idx

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["ImageData", "make_sample", "mnist", "mnist_sample"]

BASE_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
DIGITS = tuple("0123456789")
SAMPLE_FILE = "mnist_sample.npz"
SAMPLE_SEED = 20170227
SAMPLE_SIZE = (4000, 1000)

# SHA-256 of the four files after decompression: mirrors compress them differently.
CHECKSUMS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled grey images, split into a training and a test set.

    Parameters
    ----------
    train_images, test_images
        uint8, shape (n, rows, columns); row 0 is the top of the picture, 0 is background.
    train_labels, test_labels
        Class numbers in 0 ... len(classes)-1, any integer type (kept as int64), shape (n,).
    classes
        The names of the classes.

    Raises
    ------
    ValueError
        If an array has the wrong type or shape, a set is empty, or labels are of another count than
        their images or out of range.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images = np.asarray(getattr(self, f"{part}_images"))
            labels = _checked(part, images, np.asarray(getattr(self, f"{part}_labels")), len(self.classes))
            object.__setattr__(self, f"{part}_images", images)
            object.__setattr__(self, f"{part}_labels", labels)
        if self.train_images.shape[1:] != self.test_images.shape[1:]:
            raise ValueError(
                "Training and test images differ in size: received "
                f"{self.train_images.shape[1:]} and {self.test_images.shape[1:]} pixels. Crop or average one "
                "of them to the size of the other."
            )

    def subset(self, n_train: int, n_test: int, rng: np.random.Generator) -> ImageData:
        """Draw a balanced subset at random, without replacement and in random order.

        Class counts differ by at most one; a class that has too few images gives all it has and the
        others make up for it.

        Parameters
        ----------
        n_train, n_test
            How many images of the training and of the test set.
        rng
            The caller's seeded generator.

        Raises
        ------
        ValueError
            If a number is below 1 or larger than its set.
        """
        train = balanced_draw(self.train_labels, n_train, rng)
        test = balanced_draw(self.test_labels, n_test, rng)
        return ImageData(
            self.train_images[train],
            self.train_labels[train],
            self.test_images[test],
            self.test_labels[test],
            self.classes,
        )


def _checked(part: str, images: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Check one part of the data; return its labels as int64."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.size == 0:
        raise ValueError(
            f"The {part} images are not a non-empty uint8 array of shape (n, rows, columns): received "
            f"{images.dtype} of shape {images.shape}. Scale them to 0 ... 255 and stack them on axis 0."
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"The {part} labels do not fit the images: received {labels.dtype} of shape {labels.shape} for "
            f"{images.shape[0]} images. Give one integer per image."
        )
    labels = labels.astype(np.int64)
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"The {part} labels are out of range: received {labels.min()} ... {labels.max()} for {classes} "
            f"classes. Number the classes 0 ... {classes - 1}, or name the missing ones in 'classes'."
        )
    return labels


def balanced_draw(labels: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return ``n`` distinct indices into ``labels``, balanced over the classes, in random order.

    The rule: a random order of the classes present decides which of them give one more; then for each
    class in ascending order ``rng.choice`` draws from its ascending indices; ``rng.permutation`` mixes
    the drawn indices.

    Raises
    ------
    ValueError
        If ``n`` is below 1 or larger than the number of labels.
    """
    if not 1 <= n <= labels.size:
        raise ValueError(
            f"A subset of this size cannot be drawn: received n = {n} for a set of {labels.size} images. "
            f"Choose 1 ... {labels.size}."
        )
    classes, available = np.unique(labels, return_counts=True)
    order = rng.permutation(classes.size)
    counts = np.zeros_like(available)
    while (left := n - counts.sum()) > 0:
        open_classes = order[counts[order] < available[order]]
        share, extra = divmod(left, open_classes.size)
        counts[open_classes] += share
        counts[open_classes[:extra]] += 1
        counts = np.minimum(counts, available)
    drawn = [
        rng.choice(np.flatnonzero(labels == c), count, replace=False)
        for c, count in zip(classes, counts, strict=True)
    ]
    return rng.permutation(np.concatenate(drawn))


def mnist_sample() -> ImageData:
    """Return the sample shipped with the package: 4,000 training and 1,000 test images of MNIST.

    28x28 pixels, uint8, balanced over the ten digits; ``mnist_sample.md`` beside the file has its
    source, its licence and how it was drawn.
    """
    with resources.files("ctrlnet.fields").joinpath(SAMPLE_FILE).open("rb") as file, np.load(file) as sample:
        train_images, train_labels, test_images, test_labels = (
            sample[f"{part}_{kind}"] for part in ("train", "test") for kind in ("images", "labels"))
    return ImageData(train_images, train_labels, test_images, test_labels, DIGITS)


def mnist(root: str | Path, download: bool = False, comm: MPI.Comm | None = None) -> ImageData:
    """Return the full MNIST set: 60,000 training and 10,000 test images.

    Parameters
    ----------
    root
        The folder of the four IDX files ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
        ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, each gzipped (``.gz``) or not.
    download
        Fetch the files that are missing, 11 MB in all, with a progress bar. They are checked against
        their SHA-256 sums and stored decompressed, 55 MB; a failed download leaves nothing behind.
    comm
        A communicator on which all ranks make this call: rank 0 downloads, the others wait for it.

    Raises
    ------
    FileNotFoundError
        If a file is missing and ``download`` is false.
    ConnectionError
        If a download fails.
    ValueError
        If a file is damaged, is not IDX, or does not hold what its name says.

    Notes
    -----
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
    recognition", Proceedings of the IEEE 86(11), 1998.
    """
    root = Path(root)
    if download:
        failure: Exception | None = None
        if comm is None or comm.rank == 0:
            try:
                _download([name for name in CHECKSUMS if _find(root, name) is None], root)
            except (OSError, ValueError) as error:
                failure = error
        if comm is not None:
            failure = comm.bcast(failure, root=0)
        if failure is not None:
            raise failure
    missing = [name for name in CHECKSUMS if _find(root, name) is None]
    if missing:
        raise FileNotFoundError(
            f"MNIST is incomplete: received root = '{root}', which lacks {', '.join(missing)}. "
            f"Put these files there, gzipped (.gz) or not, or call mnist(root, download=True) to fetch them."
        )
    train_images, train_labels, test_images, test_labels = (read_idx(_find(root, name)) for name in CHECKSUMS)
    try:
        return ImageData(train_images, train_labels, test_images, test_labels, DIGITS)
    except ValueError as error:
        raise ValueError(
            f"The IDX files under '{root}' are not MNIST: {error} Delete them and call "
            "mnist(root, download=True), or give the folder of the original files."
        ) from error


def _find(root: Path, name: str) -> Path | None:
    """Return the path of an IDX file, plain or gzipped, or None."""
    return next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None)


def _download(names: Sequence[str], root: Path) -> None:
    """Fetch IDX files into ``root``; each appears there whole and verified, or not at all."""
    import pooch  # here, because it is slow to import and few runs download

    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        for name in names:
            pooch.retrieve(
                f"{BASE_URL}{name}.gz",
                known_hash=f"sha256:{CHECKSUMS[name]}",
                fname=name,
                path=root,
                downloader=_fetch_and_decompress,
            )
    except (OSError, EOFError, ValueError, zlib.error) as error:
        for folder in created:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        message = (
            f"MNIST could not be downloaded from {BASE_URL} into '{root}': received {type(error).__name__}: "
            f"{error}. Check the network and that the folder can be written, and try again; or get "
            f"{', '.join(f'{n}.gz' for n in CHECKSUMS)} by other means and put them into '{root}', gzipped "
            "or not."
        )
        # Only a wrong checksum is a ValueError of pooch's that is no OSError.
        damaged = isinstance(error, ValueError) and not isinstance(error, OSError)
        raise (ValueError if damaged else ConnectionError)(message) from error


def _fetch_and_decompress(url: str, output_file: str, client: Any) -> None:
    """Downloader for pooch: what it checks and keeps is the decompressed content."""
    import pooch

    compressed = Path(f"{output_file}.gz")
    try:
        pooch.HTTPDownloader(progressbar=True)(url, str(compressed), client)
        Path(output_file).write_bytes(gzip.decompress(compressed.read_bytes()))
    finally:
        compressed.unlink(missing_ok=True)


def make_sample(root: str | Path, output: str | Path | None = None) -> Path:
    """Draw the shipped sample from the full set and write it; return the path of the file.

    Parameters
    ----------
    root
        The folder of MNIST's four IDX files.
    output
        Where to write, by default the package's own file.

    Raises
    ------
    FileNotFoundError, ValueError
        As in :func:`mnist`.
    """
    data = mnist(root)
    rng = np.random.default_rng(SAMPLE_SEED)
    train = balanced_draw(data.train_labels, SAMPLE_SIZE[0], rng)
    test = balanced_draw(data.test_labels, SAMPLE_SIZE[1], rng)
    output = Path(__file__).with_name(SAMPLE_FILE) if output is None else Path(output)
    np.savez_compressed(
        output,
        train_images=data.train_images[train],
        train_labels=data.train_labels[train].astype(np.uint8),
        train_indices=train.astype(np.uint16),
        test_images=data.test_images[test],
        test_labels=data.test_labels[test].astype(np.uint8),
        test_indices=test.astype(np.uint16),
    )
    return output


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: ``python -m ctrlnet.fields.mnist --make-sample ROOT``."""
    parser = argparse.ArgumentParser(prog="python -m ctrlnet.fields.mnist", description=main.__doc__)
    parser.add_argument("--make-sample", metavar="ROOT", required=True, help="folder of MNIST's IDX files")
    parser.add_argument("--output", metavar="FILE", help="where to write, by default the package's own file")
    options = parser.parse_args(arguments)
    path = make_sample(options.make_sample, options.output)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
