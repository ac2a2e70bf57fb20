"""Memory of this process: any mapping of a Python program, tracked, replicated and saved while it is written."""

from precopy.machines.process.changes import Changed, Changes
from precopy.machines.process.memory import Memory

__all__ = ["Changed", "Changes", "Memory"]
