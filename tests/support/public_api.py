"""What a program can call of the public API, walked, so that what is new is found."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import precopy

INTERNAL = {
    "Memory.consumer": "for the parts of this package that track it; its argument is shown and not used",
    "Changes": "made by Memory.track",
    "Replication": "made by replicate",
    "Attachment": "made by attach",
}
ERRORS = {
    name
    for name in precopy.__all__
    if isinstance(getattr(precopy, name), type) and issubclass(getattr(precopy, name), Exception)
}
RESULTS = {"Changed", "Snapshot", "Stored", "Verified"}


def public() -> Iterator[tuple[str, Callable[..., object]]]:
    """Everything that can be called with arguments: functions, classes, and their public methods."""
    for name in sorted(set(precopy.__all__) - ERRORS - RESULTS):
        made = getattr(precopy, name)
        if name not in INTERNAL:
            yield name, made
        if isinstance(made, type):
            for method in vars(made):
                if (
                    not method.startswith("_")
                    and callable(getattr(made, method))
                    and f"{name}.{method}" not in INTERNAL
                ):
                    yield f"{name}.{method}", getattr(made, method)
