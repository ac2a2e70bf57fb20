"""How long a test waits for what has to come. No outcome depends on these but that of a test which hangs, so they are
long enough for a machine with one slow core that is busy with eight other things."""

from __future__ import annotations

IN_TIME_S = 120.0
"""For an event, a thread or a process, in seconds; what takes a second on an idle machine may take half a minute."""
SETTLED_S = 30.0
"""For the kernel and for threads that are told to end, in seconds, before a test says that they were left behind."""
