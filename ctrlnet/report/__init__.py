"""What a run says and leaves behind: command line, bars, tables, figures, results.json."""

from ctrlnet.report.command_line import (
    CommandLine,
    at_least_one,
    divides_pixels,
    existing_folder,
    not_negative,
    one_of,
    positive,
)
from ctrlnet.report.figures import (
    Panel,
    confusion,
    plot_confusion,
    plot_convergence,
    plot_fields,
    plot_globes,
    plot_images,
    plot_panels,
    plot_stencils,
)
from ctrlnet.report.progress import LevelProgress, Progress
from ctrlnet.report.results import write_results
from ctrlnet.report.run import Run
from ctrlnet.report.tables import Column, Table

__all__ = [
    "Column", "CommandLine", "LevelProgress", "Panel", "Progress", "Run", "Table", "at_least_one", "confusion",
    "divides_pixels", "existing_folder", "not_negative", "one_of", "plot_confusion", "plot_convergence", "plot_fields",
    "plot_globes", "plot_images", "plot_panels", "plot_stencils", "positive", "write_results",
]
