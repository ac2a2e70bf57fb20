"""The wire format that is spoken. It is chosen here, for what puts an engine and a stream together: a guest's process
(`service`), `precopy.replicate` and `precopy.Standby`. The engine itself knows no format by its name."""

from __future__ import annotations

from precopy.wire.format import OpenFormat
from precopy.wire.native import Codec

DEFAULT_FORMAT: OpenFormat = Codec
"""precopy's own: see docs/protocol.md."""
