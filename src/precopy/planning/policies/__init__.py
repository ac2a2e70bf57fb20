"""Every convergence policy by its name: ours, and those of the field, to be compared with it and with each other.

Each is a function of the same shape as `precopy.planning.policies.ours`, and each states its rule, its defaults,
what it does not model, and its source. docs/policies.md has them in one table.
"""

from precopy.names import CONVERGENCE_POLICIES
from precopy.planning.model.decision import Policy
from precopy.planning.policies.cloud_hypervisor import cloud_hypervisor
from precopy.planning.policies.kubevirt import ramp, stall
from precopy.planning.policies.nova import nova
from precopy.planning.policies.ours import OURS
from precopy.planning.policies.proxmox import proxmox
from precopy.planning.policies.qemu import auto_converge, qemu

FIELD_POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("qemu", "QEMU: migration/migration.c, migration_iteration_run", qemu),
        Policy("qemu-auto-converge", "QEMU: migration/ram.c, migration_trigger_throttle", auto_converge),
        Policy("kubevirt-stall", "KubeVirt: VEP 248, live migration stall detection", stall),
        Policy("kubevirt-ramp", "KubeVirt: VEP 291, dynamic downtime tuning", ramp),
        Policy("nova", "OpenStack Nova: nova/virt/libvirt/migration.py, downtime_steps", nova),
        Policy("proxmox", "Proxmox VE: qemu-server, PVE/QemuMigrate.pm, phase2", proxmox),
        Policy("cloud-hypervisor", "Cloud Hypervisor: vmm/src/lib.rs, is_precopy_converged", cloud_hypervisor),
    )
}

_ALL = {OURS.name: OURS, **FIELD_POLICIES}

POLICIES: dict[str, Policy] = {name: _ALL[name] for name in CONVERGENCE_POLICIES}
"""Ours first, then the field's, by name."""

__all__ = ["FIELD_POLICIES", "POLICIES"]
