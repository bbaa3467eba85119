"""Figures: convergence curves, learned stencils, classified images. Rank 0 draws; the rest return at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = [
    "Panel", "confusion", "plot_confusion", "plot_convergence", "plot_fields", "plot_globes", "plot_images",
    "plot_panels", "plot_stencils"]

Curve = tuple[Sequence[float], Sequence[float]]


def _save(figure: Figure, path: str | Path) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)


def plot_convergence(
    path: str | Path, curves: Mapping[str, Sequence[Curve]], xlabel: str = "work units",
    ylabel: str = "training objective",
) -> None:
    """Draw named curves against work; a name with several pieces (levels) is drawn in one colour.

    Parameters
    ----------
    path
        PNG file.
    curves
        name -> pieces, each a pair of abscissae and ordinates.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for number, (name, pieces) in enumerate(curves.items()):
        for piece, (x, y) in enumerate(pieces):
            style = dict(color=f"C{number % 10}", linestyle="--" if number >= 10 else "-")  # ten colours
            axes.semilogy(x, y, marker=".", markersize=4, label=name if piece == 0 else None, **style)
            if piece:
                axes.axvline(x[0], color=f"C{number}", linestyle=":", linewidth=0.8)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def plot_stencils(path: str | Path, stencils: Mapping[str, np.ndarray], titles: Sequence[str]) -> None:
    """Draw 3 x 3 stencils, one row a name (level), one column a title.

    Parameters
    ----------
    stencils
        name -> (columns, 3, 3), indexed by offsets [x, y]; drawn with y upwards, one colour scale a row.
    """
    columns = len(titles)
    figure = Figure(figsize=(1.1 * columns + 1.2, 1.2 * len(stencils) + 0.5), layout="constrained")
    grid = figure.subplots(len(stencils), columns, squeeze=False)
    for row, (name, values) in zip(grid, stencils.items(), strict=True):
        bound = np.abs(values).max() or 1.0
        for axes, stencil in zip(row, values, strict=True):
            image = axes.imshow(stencil.T, origin="lower", cmap="RdBu_r", vmin=-bound, vmax=bound)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(name)
        figure.colorbar(image, ax=list(row), shrink=0.8)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=8)
    _save(figure, path)


def plot_images(
    path: str | Path, images: np.ndarray, predicted: np.ndarray, labels: np.ndarray, columns: int = 10
) -> None:
    """Draw images with their predicted class; a wrong one is red and names the right class too."""
    count = len(images)
    rows = -(-count // columns)
    figure = Figure(figsize=(0.9 * columns, 1.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, guess, truth in zip(grid, images, predicted, labels, strict=False):
        axes.imshow(image, cmap="gray_r")
        right = guess == truth
        axes.set_title(str(guess) if right else f"{guess} ({truth})", fontsize=9, color="black" if right else "red")
    _save(figure, path)


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return how many images of each class (rows) were taken for which (columns), (K, K)."""
    matrix = np.zeros((classes, classes), dtype=int)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def plot_confusion(path: str | Path, matrices: Mapping[str, np.ndarray], columns: int = 5) -> None:
    """Draw confusion matrices: how many images of each class (rows) were taken for which (columns).

    Parameters
    ----------
    matrices
        title -> (K, K) counts; the colours are those of the share of a class, errors in red.
    """
    rows = -(-len(matrices) // columns)
    figure = Figure(figsize=(2.4 * columns, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, (title, matrix) in zip(grid, matrices.items(), strict=False):
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        accuracy = 100 * np.trace(matrix) / max(matrix.sum(), 1)
        axes.axis("on")
        axes.imshow(np.where(np.eye(len(matrix)), 0.0, share), cmap="Reds", vmin=0.0, vmax=0.1)
        axes.set_title(f"{title}\n{accuracy:.1f} %", fontsize=7)
        axes.set_xticks(range(len(matrix)))
        axes.set_yticks(range(len(matrix)))
        axes.tick_params(labelsize=6, length=0)
        for truth, guess in zip(*np.nonzero(matrix), strict=True):
            axes.text(guess, truth, str(matrix[truth, guess]), ha="center", va="center", fontsize=4)
    _save(figure, path)


@dataclass(frozen=True)
class Panel:
    """One diagram of :func:`plot_panels`: named curves (abscissae, ordinates) with logarithmic abscissae."""

    title: str
    xlabel: str
    ylabel: str
    curves: Mapping[str, Curve]
    logarithmic: bool = False


def plot_panels(path: str | Path, panels: Sequence[Panel]) -> None:
    """Draw diagrams side by side, their abscissae, for example cells or steps, at the places that were measured."""
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (x, y) in panel.curves.items():
            axes.plot(x, y, marker="o", markersize=4, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log" if panel.logarithmic else "linear")
        places = sorted({value for x, _ in panel.curves.values() for value in x})
        axes.set_xticks(places, [f"{p:g}" for p in places])
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel(panel.xlabel)
        axes.set_ylabel(panel.ylabel)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _save(figure, path)


def plot_fields(path: str | Path, fields: Mapping[str, np.ndarray], columns: int) -> None:
    """Draw fields on square grids, (rows, columns) with the top row first, each in its own range of colours."""
    rows = -(-len(fields) // columns)
    figure = Figure(figsize=(2.3 * columns, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, (title, field) in zip(grid, fields.items(), strict=False):
        image = axes.imshow(field, cmap="RdBu_r")
        axes.set_title(title, fontsize=8)
        figure.colorbar(image, ax=axes, shrink=0.7).ax.tick_params(labelsize=6)
    _save(figure, path)


def plot_globes(
    path: str | Path, places: np.ndarray, fields: Mapping[str, np.ndarray], columns: int,
    centre: Sequence[float] = (1.0, 0.0, 0.0), up: Sequence[float] = (0.0, 0.0, 1.0),
) -> None:
    """Draw nodal values on a sphere as seen from far above a centre, each field in its own range of colours.

    Parameters
    ----------
    places
        (nodes, 3), those of all ranks.
    fields
        title -> (nodes,).
    columns
        Globes beside each other.
    centre, up
        Where the viewer stands, and what is up for it.
    """
    ahead = np.asarray(centre) / np.linalg.norm(centre)
    right = np.cross(up, ahead)
    right /= np.linalg.norm(right)
    seen = np.flatnonzero(places @ ahead > 0)
    x, y = places[seen] @ right, places[seen] @ np.cross(ahead, right)
    rows = -(-len(fields) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
        axes.set_aspect("equal")
    for axes, (title, field) in zip(grid, fields.items(), strict=False):
        axes.tripcolor(x, y, field[seen], shading="gouraud", cmap="RdBu_r")
        axes.set_title(title, fontsize=8)
    _save(figure, path)
