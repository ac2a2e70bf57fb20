"""Where the streams of these tests listen."""

from __future__ import annotations

from pathlib import Path

import pytest

from precopy.transport import Address


@pytest.fixture(params=["unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return Address(path=str(tmp_path / "socket")) if request.param == "unix" else Address(host="127.0.0.1")
