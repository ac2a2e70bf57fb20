"""The names by which users choose, for the command line and for the engine: this module imports nothing of ours.

Each kind of name is a type, and a tuple of all its names in the order in which help lists them.
"""

from __future__ import annotations

import enum
from typing import Literal, get_args

ConvergencePolicyName = Literal[
    "precopy",
    "qemu",
    "qemu-auto-converge",
    "kubevirt-stall",
    "kubevirt-ramp",
    "nova",
    "proxmox",
    "cloud-hypervisor",
]
"""Decides when to switch over; `precopy.planning.policies.POLICIES` has them."""

CONVERGENCE_POLICIES: tuple[ConvergencePolicyName, ...] = get_args(ConvergencePolicyName)


THROTTLING_POLICIES: tuple[ConvergencePolicyName, ...] = ("precopy", "qemu-auto-converge")
"""Those that slow the guest down before its time is up; the others only with `TimeoutPolicy.THROTTLE`."""


class TimeoutPolicy(enum.StrEnum):
    """What becomes of a migration that is out of time, or that cannot converge, or that has made all its rounds.

    - ``CANCEL``: give up; the guest stays at the source;
    - ``SWITCH``: switch over at the next local minimum, with a downtime above its limit;
    - ``THROTTLE``: slow the guest down until it converges;
    - ``IGNORE``: go on for ever.

    Cloud Hypervisor's timeout policy has the first two; it calls the second one ``ignore``.
    """

    CANCEL = "cancel"
    SWITCH = "switch"
    THROTTLE = "throttle"
    IGNORE = "ignore"


TIMEOUT_POLICIES = tuple(policy.value for policy in TimeoutPolicy)

EverydayClearPolicyName = Literal["merged", "deferred"]
"""Clear policies that a migration may choose; each makes few clears for blocks of any length."""

ClearPolicyName = Literal["per-page", EverydayClearPolicyName]
"""Over whole arrays: `precopy.dirty.clear`."""

HistoricClearPolicyName = Literal["before-patch", "rfc-v1", "upstream", "clear-bmap"]
"""QEMU's variants, block by block: `precopy.dirty.qemu_variants`."""

AnyClearPolicyName = ClearPolicyName | HistoricClearPolicyName

EVERYDAY_CLEAR_POLICIES: tuple[EverydayClearPolicyName, ...] = get_args(EverydayClearPolicyName)
CLEAR_POLICIES: tuple[ClearPolicyName, ...] = get_args(ClearPolicyName)
HISTORIC_CLEAR_POLICIES: tuple[HistoricClearPolicyName, ...] = get_args(HistoricClearPolicyName)
ALL_CLEAR_POLICIES: tuple[AnyClearPolicyName, ...] = (*CLEAR_POLICIES, *HISTORIC_CLEAR_POLICIES)

KvmTrackerName = Literal["dirty-log", "dirty-ring"]
"""What tells of a KVM guest's writes."""

WantedTrackerName = KvmTrackerName | Literal["auto"]
"""``auto``: whichever suits the guest's dirty rate."""

KVM_TRACKERS: tuple[KvmTrackerName, ...] = get_args(KvmTrackerName)
WANTED_TRACKERS: tuple[WantedTrackerName, ...] = (*KVM_TRACKERS, "auto")

ThrottleMode = Literal["off", "auto-converge", "dirty-limit"]
"""How a guest is slowed down that would not converge: not at all, all its vCPUs alike, or those that dirty too much."""

THROTTLE_MODES: tuple[ThrottleMode, ...] = get_args(ThrottleMode)
