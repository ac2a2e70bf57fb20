"""precopy: live memory migration.

Tracks which pages of a running memory are written, syncs that knowledge out of the kernel with as few ioctls as
possible, and moves the memory to another process or host while it is still being written.
"""

__version__ = "0.1.0.dev0"
