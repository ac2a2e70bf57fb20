"""The guests: small programs in assembly that write memory in known patterns, and that witness their own writes."""

from precopy.guests.image import MAX_VCPUS, PARAMS_GPA, BootImage, boot_image, params_gpa, params_words
from precopy.guests.programs import BURST_PORT, CODE_GPA, IDLE_PORT, WORKLOADS, assemble
from precopy.guests.witness import check
from precopy.guests.workload import Workload

__all__ = [
    "BURST_PORT",
    "CODE_GPA",
    "IDLE_PORT",
    "MAX_VCPUS",
    "PARAMS_GPA",
    "WORKLOADS",
    "BootImage",
    "Workload",
    "assemble",
    "boot_image",
    "check",
    "params_gpa",
    "params_words",
]
