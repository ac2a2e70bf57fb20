"""``precopy bench display``: the VGA client on a real guest; the command itself compares at its end."""

from __future__ import annotations

import pytest

from support.commands import precopy

pytestmark = pytest.mark.needs("kvm")
QUICK = ("--duration", "300ms", "--width", "800", "--height", "600")


@pytest.mark.parametrize("migrate", ["--migrate", "--no-migrate"])
@pytest.mark.parametrize("rate", ["300", "max"])
def test_the_surface_follows_the_guest(migrate: str, rate: str) -> None:
    document = precopy("bench", "display", *QUICK, migrate, "--write-rate", rate, "--json").document()
    assert document["schema"] == "precopy.bench-display/1"
    assert document["verified"] is True
    assert document["frames"] == 18
    assert document["lines_shown"] == 18 * 600
    assert document["bytes_copied"] == document["lines_drawn"] * 800 * 4
    assert document["get_log_ioctls_per_frame"] == 1
    assert document["guest_writes"] > 0
    # The first frame draws everything; later ones what the guest has touched, three lines or parts of them a page.
    assert 600 <= document["lines_drawn"] <= min(600 + 3 * document["guest_writes"], 18 * 600)
    assert (document["migration_pages"] is None) == (migrate == "--no-migrate")
    if migrate == "--migrate":
        assert document["migration_pages"] >= (64 << 20) // 4096


def test_a_mode_that_does_not_fit() -> None:
    done = precopy("bench", "display", "--width", "2000", "--height", "2000")
    assert "do not fit into vga.vram" in done.sentence(2)
