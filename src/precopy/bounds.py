"""Bounds of what a record may hold, for the fields of dataclasses: a document of any origin is checked while it is
read.

Static checkers see the plain type; msgspec holds a value that it reads against the bounds. A record that precopy makes
itself is not checked.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

MOST = 1e24
"""Seconds or bytes: more than a figure of precopy's can be and mean something."""
Number = Annotated[float, Meta(ge=0, le=MOST)]
"""Seconds, bytes, bytes a second, shares and ratios."""
Signed = Annotated[float, Meta(ge=-MOST, le=MOST)]
"""A difference, or a relative error."""
Count = Annotated[int, Meta(ge=0, le=1 << 62)]
Text = Annotated[str, Meta(max_length=1 << 16)]
"""Characters: a command line with all its files, the longest text that precopy prints, is shorter."""
