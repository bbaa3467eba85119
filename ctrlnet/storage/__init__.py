"""What stays on disk: files written whole or not at all, trained networks, what a training goes on from."""

from ctrlnet.storage.atomic import WriteError, written_whole
from ctrlnet.storage.checkpoints import Checkpoint
from ctrlnet.storage.columns import write_csv
from ctrlnet.storage.history import History, Iteration
from ctrlnet.storage.paraview import write_classifier, write_fields, write_inputs, write_scores, write_states
from ctrlnet.storage.trained import Trained, load, load_controls, save

__all__ = [
    "Checkpoint", "History", "Iteration", "Trained", "WriteError", "load", "load_controls", "save", "write_classifier",
    "write_csv", "write_fields", "write_inputs", "write_scores", "write_states", "written_whole",
]
