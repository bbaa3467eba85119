"""What stays on disk: files written whole or not at all."""

from ctrlnet.storage.atomic import WriteError, written_whole

__all__ = ["WriteError", "written_whole"]
