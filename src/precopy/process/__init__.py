"""Memory of this process: any mapping of a Python program, tracked, replicated and saved while it is written."""

from precopy.process.changes import Changed, Changes
from precopy.process.memory import Memory

__all__ = ["Changed", "Changes", "Memory"]
