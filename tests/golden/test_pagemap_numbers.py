"""The numbers and sizes of userfaultfd and PAGEMAP_SCAN, as literals: Linux's include/uapi/linux/userfaultfd.h and
fs.h."""

from __future__ import annotations

import ctypes

import pytest

from precopy.abi import pagemap, userfaultfd
from precopy.abi.ioctl import Ioctl

NUMBERS = {
    "UFFDIO_API": 0xC018AA3F,
    "UFFDIO_REGISTER": 0xC020AA00,
    "UFFDIO_UNREGISTER": 0x8010AA01,
    "UFFDIO_WRITEPROTECT": 0xC018AA06,
    "USERFAULTFD_IOC_NEW": 0xAA00,
    "PAGEMAP_SCAN": 0xC0606610,
}

CONSTANTS = {
    "API": 0xAA,
    "FEATURE_PAGEFAULT_FLAG_WP": 1,
    "FEATURE_WP_HUGETLBFS_SHMEM": 0x1000,
    "FEATURE_WP_UNPOPULATED": 0x2000,
    "FEATURE_WP_ASYNC": 0x8000,
    "REGISTER_MODE_WP": 2,
    "WRITEPROTECT_MODE_WP": 1,
    "USER_MODE_ONLY": 1,
    "PAGE_IS_WPALLOWED": 1,
    "PAGE_IS_WRITTEN": 2,
    "PAGE_IS_FILE": 4,
    "PAGE_IS_PRESENT": 8,
    "PAGE_IS_SWAPPED": 16,
    "PAGE_IS_PFNZERO": 32,
    "PAGE_IS_HUGE": 64,
    "PM_SCAN_WP_MATCHING": 1,
    "PM_SCAN_CHECK_WPASYNC": 2,
}

SIZES = {"UffdioRange": 16, "Api": 24, "Register": 32, "WriteProtect": 24, "PmScanArg": 96}

OFFSETS = {
    ("Api", "features"): 8,
    ("Register", "mode"): 16,
    ("Register", "ioctls"): 24,
    ("WriteProtect", "mode"): 16,
    ("PmScanArg", "flags"): 8,
    ("PmScanArg", "start"): 16,
    ("PmScanArg", "end"): 24,
    ("PmScanArg", "walk_end"): 32,
    ("PmScanArg", "vec"): 40,
    ("PmScanArg", "vec_len"): 48,
    ("PmScanArg", "max_pages"): 56,
    ("PmScanArg", "category_inverted"): 64,
    ("PmScanArg", "category_mask"): 72,
    ("PmScanArg", "category_anyof_mask"): 80,
    ("PmScanArg", "return_mask"): 88,
}

MEMBERS = {**vars(userfaultfd), **vars(pagemap)}


def test_every_request_has_the_kernels_number() -> None:
    assert {one.name: one.number for one in MEMBERS.values() if isinstance(one, Ioctl)} == NUMBERS


def test_a_request_is_named_as_in_the_kernels_headers() -> None:
    assert all(one.name == name for name, one in MEMBERS.items() if isinstance(one, Ioctl))


def test_constants() -> None:
    assert {name: MEMBERS[name] for name in CONSTANTS} == CONSTANTS
    prefixes = ("FEATURE_", "PAGE_IS_", "PM_SCAN_", "REGISTER_", "WRITEPROTECT_")
    assert {name for name in MEMBERS if name.startswith(prefixes)} <= CONSTANTS.keys()


def test_every_structure_has_the_kernels_size() -> None:
    kinds = {name: one for name, one in MEMBERS.items() if isinstance(one, type) and issubclass(one, ctypes.Structure)}
    assert {name: ctypes.sizeof(kind) for name, kind in kinds.items()} == SIZES


@pytest.mark.parametrize(("name", "member"), OFFSETS)
def test_members_lie_where_the_kernel_looks(name: str, member: str) -> None:
    assert getattr(MEMBERS[name], member).offset == OFFSETS[name, member]


def test_a_region_is_three_words() -> None:
    assert pagemap.PAGE_REGION.itemsize == 24
    assert pagemap.PAGE_REGION.names == ("start", "end", "categories")
