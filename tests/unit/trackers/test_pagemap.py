"""What a `PagemapLog` says where it cannot work: by the kernel's own refusal wherever it can be made to refuse."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from precopy.abi import pagemap, userfaultfd
from precopy.abi.ioctl import Ioctl
from precopy.bitmap import Bitmap
from precopy.dirty import DirtyLog
from precopy.errors import KernelCallError, LayoutError, Unsupported
from precopy.memory import GuestMemory, RamLayout
from precopy.trackers import write_protection
from precopy.trackers.pagemap import PagemapLog, unavailable
from precopy.units import PAGE_SIZE, HostAddress

LAYOUT = RamLayout.of_blocks([("a", 10 * PAGE_SIZE), ("b", PAGE_SIZE)])


def at(*pages: int) -> list[HostAddress]:
    return [HostAddress(page * PAGE_SIZE) for page in pages]


class TestMappings:
    def test_it_is_a_dirty_log(self) -> None:
        log = PagemapLog(LAYOUT, at(100, 110))
        assert isinstance(log, DirtyLog)
        assert log.name == "pagemap"

    @pytest.mark.parametrize("addresses", [at(), at(1), at(1, 20, 30)])
    def test_one_address_a_block(self, addresses: list[HostAddress]) -> None:
        with pytest.raises(LayoutError, match=f"2 blocks have {len(addresses)} addresses"):
            PagemapLog(LAYOUT, addresses)

    @pytest.mark.parametrize("addresses", [at(100, 109), at(100, 100), at(100, 105)])
    def test_no_memory_is_tracked_twice(self, addresses: list[HostAddress]) -> None:
        with pytest.raises(LayoutError, match="'a' and block 'b' are mapped at the same addresses"):
            PagemapLog(LAYOUT, addresses)

    def test_an_address_between_pages(self) -> None:
        with pytest.raises(LayoutError, match="'b' is mapped at 0x6e008"):
            PagemapLog(LAYOUT, [HostAddress(0x10000), HostAddress(0x6E008)])

    def test_pages_of_another_size(self) -> None:
        with pytest.raises(LayoutError, match="8192 bytes"):
            PagemapLog(RamLayout.of_blocks([("a", 1 << 20)], 8192), at(100))


class TestBeforeStart:
    def test_nothing_happens(self) -> None:
        log, dirty = PagemapLog(LAYOUT, at(100, 110)), Bitmap(LAYOUT.end_page)
        log.stop()
        log.harvest(dirty)
        log.clear(0, 1000)
        assert not dirty.any()
        assert log.counters.get_calls == log.counters.clear_calls == log.ioctls == 0


def refused(number: int) -> Callable[[int], int]:
    def syscall(flags: int) -> int:
        raise KernelCallError("userfaultfd", "this process", number)

    return syscall


class TestUnavailable:
    """One sentence, with what to do; `start` raises it."""

    def sentence(self) -> str:
        why = unavailable()
        assert why is not None
        with GuestMemory(LAYOUT) as memory, pytest.raises(Unsupported) as caught:
            PagemapLog(LAYOUT, [host.address for host in memory.hosts]).start()
        assert str(caught.value) == why
        assert "\n" not in why
        return why

    @pytest.fixture(autouse=True)
    def nothing_stays_open(self) -> object:
        before = len(os.listdir("/proc/self/fd"))
        yield
        assert len(os.listdir("/proc/self/fd")) == before

    @pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
    def test_no_permission(self, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        monkeypatch.setattr(userfaultfd, "_syscall", refused(number))
        monkeypatch.setattr(userfaultfd, "DEVICE", "/nonexistent/userfaultfd")
        sentence = self.sentence()
        for word in ("may not use userfaultfd", "seccomp", "CAP_SYS_PTRACE", "vm.unprivileged_userfaultfd=1"):
            assert word in sentence

    def test_a_kernel_without_userfaultfd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(userfaultfd, "_syscall", refused(errno.ENOSYS))
        monkeypatch.setattr(userfaultfd, "DEVICE", "/nonexistent/userfaultfd")
        assert "CONFIG_USERFAULTFD" in self.sentence()

    def test_another_failure_is_not_called_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(userfaultfd, "_syscall", refused(errno.EMFILE))
        monkeypatch.setattr(userfaultfd, "DEVICE", "/nonexistent/userfaultfd")
        assert "Too many open files" in (unavailable() or "")

    def test_an_unknown_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("platform.machine", lambda: "s390x")
        assert "s390x" in self.sentence()

    @pytest.mark.needs("pagemap")
    def test_a_kernel_without_asynchronous_protection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(write_protection, "FEATURES", write_protection.FEATURES | 1 << 62)
        assert "no UFFD_FEATURE_WP_ASYNC; use Linux 6.7 or later" in self.sentence()

    @pytest.mark.needs("pagemap")
    def test_a_kernel_without_the_scan(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pagemap, "PAGEMAP_SCAN", Ioctl("PAGEMAP_SCAN", 0xC06066FE))
        assert "no PAGEMAP_SCAN; use Linux 6.7 or later" in self.sentence()

    @pytest.mark.needs("pagemap")
    def test_no_proc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pagemap, "PAGEMAP", "/nonexistent/pagemap")
        assert "mount /proc" in self.sentence()

    @pytest.mark.needs("pagemap")
    def test_the_device_is_the_other_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        if not os.access(userfaultfd.DEVICE, os.R_OK | os.W_OK):
            pytest.skip(f"{userfaultfd.DEVICE} is not accessible")
        monkeypatch.setattr(userfaultfd, "_syscall", refused(errno.EPERM))
        assert unavailable() is None

    @pytest.mark.needs("pagemap")
    def test_it_can_be_used_here(self) -> None:
        assert unavailable() is None
