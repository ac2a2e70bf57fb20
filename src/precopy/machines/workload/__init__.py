"""The guests: small programs in assembly that write memory in known patterns, and whose memory can be checked against
their own step counters."""

from precopy.machines.workload.image import MAX_VCPUS, PARAMS_GPA, BootImage, boot_image, params_gpa, params_words
from precopy.machines.workload.programs import BURST_PORT, CODE_GPA, IDLE_PORT, WORKLOADS, assemble
from precopy.machines.workload.self_check import check_stamps
from precopy.machines.workload.workload import Workload

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
    "check_stamps",
    "params_gpa",
    "params_words",
]
