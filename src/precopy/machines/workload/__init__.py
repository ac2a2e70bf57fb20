"""The guests: small programs in assembly that write memory in known patterns, and that witness their own writes."""

from precopy.machines.workload.image import MAX_VCPUS, PARAMS_GPA, BootImage, boot_image, params_gpa, params_words
from precopy.machines.workload.programs import BURST_PORT, CODE_GPA, IDLE_PORT, WORKLOADS, assemble
from precopy.machines.workload.self_check import check
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
    "check",
    "params_gpa",
    "params_words",
]
