# SPDX-License-Identifier: Apache-2.0
"""What the demo sends: notifications as OpenStack's services send them.

Promises: :class:`Notifications` gives the same sequence for the same service and
seed in every process; every body is plain JSON; over all services the median body
(the JSON text of event type, payload, priority and publisher) is about 2.3 kB, as
was measured for nova. Pure: no I/O but the optional samples file, no clock. May be
used from any thread, each object by one thread at a time.

The bodies have the fields of the real ones: nova's versioned instance
notifications, neutron's ports and networks, cinder's volumes and snapshots,
glance's images, and keystone's CADF events.
"""

import dataclasses
import json
import pathlib
import random
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence

#: The services whose notifications the demo publishes, each on an exchange of its
#: own.
SERVICES = ("nova", "neutron", "cinder", "glance", "keystone")

#: The topic that services notify on by default.
TOPIC = "notifications"

#: The priorities used here; an agent has to subscribe to each.
PRIORITIES = ("info", "error")

#: How many different bodies a service draws from. Building a body costs more than
#: sending it, so a publisher builds these once; enough of them that sizes vary.
_VARIETY = 64

_TIMES = "2026-03-0%dT1%d:2%d:0%d.000000"


@dataclasses.dataclass(frozen=True)
class Notification:
    """One notification, ready for a Notifier."""

    event_type: str
    priority: str
    publisher_id: str
    payload: dict

    @property
    def checksum(self) -> int:
        """A checksum of the payload; see :func:`checksum`."""
        return checksum(self.payload)

    @property
    def size(self) -> int:
        """The bytes of the body's JSON text."""
        return len(
            json.dumps(
                {
                    "event_type": self.event_type,
                    "payload": self.payload,
                    "priority": self.priority.upper(),
                    "publisher_id": self.publisher_id,
                }
            )
        )


def checksum(payload: object) -> int:
    """A CRC of a JSON value that does not depend on the order of its keys."""
    return zlib.crc32(json.dumps(payload, sort_keys=True).encode())


class Notifications:
    """An endless, repeatable sequence of one service's notifications.

    ``samples`` replaces the service's own generator with given bodies (see
    :func:`load_samples`).
    """

    def __init__(
        self, service: str, seed: int = 0, samples: Sequence[Notification] = ()
    ):
        if service not in _GENERATORS:
            raise ValueError(
                f"no notifications of {service!r}: one of {', '.join(SERVICES)}"
            )
        self._random = random.Random(f"{service}/{seed}")
        if samples:
            self._bodies = list(samples)
        else:
            maker = _Maker(self._random)
            self._bodies = [_GENERATORS[service](maker) for _ in range(_VARIETY)]
        self._checksums = [body.checksum for body in self._bodies]

    def __iter__(self) -> Iterator[tuple[Notification, int]]:
        """Yield (notification, checksum of its payload), for ever."""
        while True:
            chosen = self._random.randrange(len(self._bodies))
            yield self._bodies[chosen], self._checksums[chosen]


def load_samples(path: str | pathlib.Path) -> list[Notification]:
    """Read notifications from a file with one JSON body per line.

    Each has ``event_type``, ``payload``, ``priority`` and ``publisher_id``. Raises
    OSError if the file cannot be read and ValueError, with the line, if it is not
    of that form.
    """
    found = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                body = json.loads(line)
                notification = Notification(
                    event_type=body["event_type"],
                    priority=body["priority"].lower(),
                    publisher_id=body["publisher_id"],
                    payload=body["payload"],
                )
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                raise ValueError(f"{path}, line {number}: {exc!r}") from exc
            if notification.priority in PRIORITIES:
                found.append(notification)
    if not found:
        raise ValueError(f"{path}: no notification of a priority in {PRIORITIES}")
    return found


class _Maker:
    """Names, ids and times for the generators, all from one random source."""

    def __init__(self, source: random.Random):
        self.random = source
        self.choice = source.choice

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))

    def hex(self, length: int = 32) -> str:
        return f"{self.random.getrandbits(length * 4):0{length}x}"

    def time(self) -> str:
        return _TIMES % tuple(self.random.randrange(1, 10) for _ in range(4))

    def name(self, what: str) -> str:
        return f"{what}-{self.random.randrange(10000):04}"

    def host(self, kind: str) -> str:
        return f"{kind}-{self.random.randrange(1, 13):02}.cloud.example"

    def address(self) -> str:
        return ".".join(
            ["10"] + [str(self.random.randrange(1, 255)) for _ in range(3)]
        )

    def mac(self) -> str:
        octets = [self.random.randrange(256) for _ in range(3)]
        return "fa:16:3e:" + ":".join(f"{octet:02x}" for octet in octets)

    def maybe(self, part: float) -> bool:
        return self.random.random() < part


def _versioned(name: str, version: str, data: dict) -> dict:
    """A payload in the form that nova's versioned notifications have."""
    return {
        "nova_object.name": name,
        "nova_object.namespace": "nova",
        "nova_object.version": version,
        "nova_object.data": data,
    }


def _nova_fault(make: _Maker) -> dict:
    reason = "No valid host was found. There are not enough hosts available."
    return _versioned(
        "ExceptionPayload",
        "1.1",
        {
            "exception": "NoValidHost",
            "exception_message": reason,
            "function_name": "_schedule",
            "module_name": "nova.scheduler.manager",
            "traceback": "Traceback (most recent call last):\n"
            + "".join(
                f'  File "nova/scheduler/manager.py", line {line}, in _schedule\n'
                for line in (167, 231, 484)
            )
            + f"nova.exception.NoValidHost: {reason}\n",
        },
    )


def _nova(make: _Maker) -> Notification:
    failed = make.maybe(0.08)
    action = make.choice(
        ["create", "delete", "reboot", "resize", "pause", "unpause", "power_off"]
    )
    phase = "error" if failed else make.choice(["start", "end"])
    volumes = [
        _versioned(
            "BlockDevicePayload",
            "1.0",
            {
                "boot_index": index or None,
                "delete_on_termination": False,
                "device_name": f"/dev/vd{'bcd'[index]}",
                "tag": None,
                "volume_id": make.uuid(),
            },
        )
        for index in range(make.choice([0, 1, 1, 2]))
    ]
    addresses = [
        _versioned(
            "IpPayload",
            "1.0",
            {
                "address": make.address(),
                "device_name": f"tap{make.hex(8)}-{make.hex(2)}",
                "label": "private",
                "mac": make.mac(),
                "meta": {},
                "port_uuid": make.uuid(),
                "version": 4,
            },
        )
        for _ in range(make.choice([0, 1, 1, 1, 2]))
    ]
    flavor = _versioned(
        "FlavorPayload",
        "1.4",
        {
            "description": None,
            "disabled": False,
            "ephemeral_gb": 0,
            "extra_specs": {"hw:watchdog_action": "disabled"},
            "flavorid": make.uuid(),
            "is_public": True,
            "memory_mb": make.choice([512, 2048, 8192]),
            "name": make.choice(["m1.tiny", "m1.small", "m1.large"]),
            "projects": None,
            "root_gb": make.choice([1, 20, 80]),
            "rxtx_factor": 1.0,
            "swap": 0,
            "vcpu_weight": 0,
            "vcpus": make.choice([1, 2, 4]),
        },
    )
    host = make.host("compute")
    name = make.name("server")
    created = make.time()
    data = {
        "action_initiator_project": make.hex(),
        "action_initiator_user": make.hex(),
        "architecture": "x86_64",
        "auto_disk_config": "MANUAL",
        "availability_zone": "nova",
        "block_devices": volumes,
        "created_at": created,
        "deleted_at": None,
        "display_description": name,
        "display_name": name,
        "fault": _nova_fault(make) if failed else None,
        "flavor": flavor,
        "host": host,
        "host_name": name,
        "image_uuid": make.uuid(),
        "ip_addresses": addresses,
        "kernel_id": "",
        "key_name": "operator",
        "launched_at": created,
        "locked": False,
        "locked_reason": None,
        "metadata": {},
        "node": host,
        "os_type": None,
        "power_state": make.choice(["running", "shutdown", "paused"]),
        "progress": 0,
        "ramdisk_id": "",
        "request_id": f"req-{make.uuid()}",
        "reservation_id": f"r-{make.hex(8)}",
        "shares": [],
        "state": make.choice(["active", "building", "stopped"]),
        "task_state": make.choice([None, "spawning", "deleting"]),
        "tenant_id": make.hex(),
        "terminated_at": None,
        "updated_at": make.time(),
        "user_id": make.hex(),
        "uuid": make.uuid(),
    }
    return Notification(
        event_type=f"instance.{action}.{phase}",
        priority="error" if failed else "info",
        publisher_id=f"nova-compute:{host}",
        payload=_versioned("InstanceActionPayload", "1.9", data),
    )


def _neutron(make: _Maker) -> Notification:
    project = make.hex()
    created = make.time()
    resource = make.choice(["port", "port", "port", "security_group"])
    action = make.choice(["create", "update"])
    common = {
        "created_at": created,
        "description": "",
        "id": make.uuid(),
        "project_id": project,
        "revision_number": make.random.randrange(1, 9),
        "tags": [],
        "tenant_id": project,
        "updated_at": make.time(),
    }
    if resource == "security_group":
        body = common | {
            "name": make.name("group"),
            "security_group_rules": [
                {
                    "direction": make.choice(["ingress", "egress"]),
                    "ethertype": "IPv4",
                    "id": make.uuid(),
                    "port_range_max": 443,
                    "port_range_min": 443,
                    "protocol": "tcp",
                    "remote_group_id": None,
                    "remote_ip_prefix": f"{make.address()}/32",
                    "security_group_id": common["id"],
                    "tenant_id": project,
                }
                for _ in range(make.choice([4, 5, 6, 8]))
            ],
            "shared": False,
            "stateful": True,
        }
    else:
        host = make.host("compute")
        body = common | {
            "admin_state_up": True,
            "allowed_address_pairs": [
                {"ip_address": make.address(), "mac_address": make.mac()}
                for _ in range(make.choice([0, 0, 2, 4]))
            ],
            "binding:host_id": host,
            "binding:profile": {"migrating_to": None},
            "binding:vif_details": {
                "bound_drivers": {"0": "openvswitch"},
                "bridge_name": "br-int",
                "connectivity": "l2",
                "datapath_type": "system",
                "ovs_hybrid_plug": False,
                "port_filter": True,
            },
            "binding:vif_type": "ovs",
            "binding:vnic_type": "normal",
            "device_id": make.uuid(),
            "device_owner": "compute:nova",
            "dns_assignment": [
                {
                    "fqdn": f"{make.name('server')}.cloud.example.",
                    "hostname": make.name("server"),
                    "ip_address": make.address(),
                }
            ],
            "dns_domain": "cloud.example.",
            "dns_name": make.name("server"),
            "extra_dhcp_opts": [
                {"ip_version": 4, "opt_name": name, "opt_value": make.address()}
                for name in ("server-ip-address", "tftp-server")
            ],
            "fixed_ips": [
                {"ip_address": make.address(), "subnet_id": make.uuid()}
                for _ in range(make.choice([1, 2, 3]))
            ],
            "hardware_offload_type": None,
            "mac_address": make.mac(),
            "name": make.name("port"),
            "network_id": make.uuid(),
            "port_security_enabled": True,
            "propagate_uplink_status": False,
            "qos_network_policy_id": None,
            "qos_policy_id": make.uuid(),
            "resource_request": {
                "request_groups": [
                    {
                        "id": make.uuid(),
                        "required": ["CUSTOM_PHYSNET_DEFAULT", "CUSTOM_VNIC_NORMAL"],
                        "resources": {"NET_BW_EGR_KILOBIT_PER_SEC": 1000},
                    }
                ],
                "same_subtree": [make.uuid()],
            },
            "security_groups": [
                make.uuid() for _ in range(make.choice([1, 2, 3, 4]))
            ],
            "status": make.choice(["ACTIVE", "BUILD", "DOWN"]),
            "trunk_details": None,
        }
    return Notification(
        event_type=f"{resource}.{action}.end",
        priority="info",
        publisher_id=f"network.{make.host('control')}",
        payload={resource: body},
    )


def _cinder(make: _Maker) -> Notification:
    failed = make.maybe(0.05)
    action = make.choice(["create", "attach", "detach", "resize", "delete"])
    phase = "error" if failed else make.choice(["start", "end"])
    volume = make.uuid()
    image = {
        "base_image_ref": make.uuid(),
        "checksum": make.hex(),
        "container_format": "bare",
        "disk_format": "raw",
        "hw_disk_bus": "scsi",
        "hw_scsi_model": "virtio-scsi",
        "image_id": make.uuid(),
        "image_name": make.name("debian"),
        "min_disk": "10",
        "min_ram": "512",
        "os_distro": "debian",
        "os_hash_algo": "sha512",
        "os_hash_value": make.hex(128),
        "owner_specified.openstack.object": "images/debian",
        "size": str(make.random.randrange(10**9)),
    }
    payload = {
        "availability_zone": "nova",
        "created_at": make.time(),
        "display_name": make.name("volume"),
        "glance_metadata": [
            {"key": key, "value": value, "volume_id": volume}
            for key, value in image.items()
        ],
        "host": f"{make.host('storage')}@ceph#rbd",
        "launched_at": make.time(),
        "metadata": [],
        "replication_driver_data": None,
        "replication_extended_status": None,
        "replication_status": "disabled",
        "request_id": f"req-{make.uuid()}",
        "size": make.choice([1, 10, 100]),
        "snapshot_id": None,
        "status": make.choice(["creating", "available", "in-use", "error"]),
        "tenant_id": make.hex(),
        "user_id": make.hex(),
        "volume_attachment": [
            {
                "attach_mode": "rw",
                "attach_status": "attached",
                "attached_host": make.host("compute"),
                "connection_info": {
                    "access_mode": "rw",
                    "auth_method": "cephx",
                    "driver_volume_type": "rbd",
                    "hosts": [make.address() for _ in range(3)],
                    "name": f"volumes/volume-{volume}",
                    "ports": ["6789"] * 3,
                    "secret_type": "ceph",
                },
                "created_at": make.time(),
                "id": make.uuid(),
                "instance_uuid": make.uuid(),
                "mountpoint": "/dev/vdb",
                "volume_id": volume,
            }
            for _ in range(make.choice([0, 0, 1, 1]))
        ],
        "volume_id": volume,
        "volume_type": make.uuid(),
    }
    return Notification(
        event_type=f"volume.{action}.{phase}",
        priority="error" if failed else "info",
        publisher_id=f"volume.{payload['host']}",
        payload=payload,
    )


def _glance(make: _Maker) -> Notification:
    image = make.uuid()
    size = make.random.randrange(10**8, 10**10)
    payload = {
        "checksum": make.hex(),
        "container_format": "bare",
        "created_at": make.time(),
        "deleted": False,
        "deleted_at": None,
        "disk_format": make.choice(["raw", "qcow2"]),
        "id": image,
        "is_public": make.maybe(0.3),
        "locations": [
            {
                "id": index,
                "metadata": {"store": store, "backend": f"{store}-{make.hex(4)}"},
                "status": "active",
                "url": f"rbd://{make.uuid()}/{store}/{image}/snap",
            }
            for index, store in enumerate(["ceph-a", "ceph-b", "ceph-c"])
        ],
        "min_disk": 10,
        "min_ram": 512,
        "name": make.name("debian"),
        "os_hash_algo": "sha512",
        "os_hash_value": make.hex(128),
        "owner": make.hex(),
        "properties": {
            "architecture": "x86_64",
            "hw_disk_bus": "scsi",
            "hw_qemu_guest_agent": "yes",
            "hw_scsi_model": "virtio-scsi",
            "hw_video_model": "virtio",
            "img_config_drive": "mandatory",
            "img_signature": make.hex(256),
            "img_signature_certificate_uuid": make.uuid(),
            "img_signature_hash_method": "SHA-256",
            "img_signature_key_type": "RSA-PSS",
            "os_distro": "debian",
            "os_version": "12",
            "stores": "ceph-a,ceph-b,ceph-c",
            "vendor_notes": " ".join(
                make.choice(["hardened", "cloud-init", "minimal", "with agent"])
                for _ in range(make.choice([10, 30, 60]))
            ),
        },
        "protected": False,
        "size": size,
        "status": "active",
        "tags": [make.name("tag") for _ in range(make.choice([0, 3, 6]))],
        "updated_at": make.time(),
        "virtual_size": size * 2,
        "visibility": make.choice(["private", "public", "shared"]),
    }
    return Notification(
        event_type=f"image.{make.choice(['create', 'update', 'upload'])}",
        priority="info",
        publisher_id=f"image.{make.host('control')}",
        payload=payload,
    )


def _keystone(make: _Maker) -> Notification:
    outcome = "failure" if make.maybe(0.1) else "success"
    user = make.hex()
    resource = make.choice(["project", "user", "role_assignment", "session"])
    action = "authenticate" if resource == "session" else "created"
    agent = "openstacksdk/4.0.0 keystoneauth1/5.8.0 python-requests/2.32.3"
    payload = {
        "typeURI": "http://schemas.dmtf.org/cloud/audit/1.0/event",
        "action": f"{action}.{resource}",
        "eventTime": make.time() + "+0000",
        "eventType": "activity",
        "id": make.uuid(),
        "initiator": {
            "typeURI": "service/security/account/user",
            "host": {"address": make.address(), "agent": agent},
            "id": user,
            "project_id": make.hex(),
            "request_id": f"req-{make.uuid()}",
            "user_id": user,
            "username": make.name("user"),
        },
        "observer": {"id": make.hex(), "typeURI": "service/security"},
        "outcome": outcome,
        "reason": {"reasonCode": "401" if outcome == "failure" else "200"},
        "resource_info": make.hex(),
        "target": {"id": make.hex(), "typeURI": f"data/security/{resource}"},
    }
    return Notification(
        event_type=f"identity.{resource}.{action}",
        priority="info",
        publisher_id=f"identity.{make.host('control')}",
        payload=payload,
    )


_GENERATORS: dict[str, Callable[[_Maker], Notification]] = {
    "nova": _nova,
    "neutron": _neutron,
    "cinder": _cinder,
    "glance": _glance,
    "keystone": _keystone,
}
