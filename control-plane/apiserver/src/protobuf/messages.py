#!/usr/bin/env python3
"""Writes messages.txt: numbers, JSON names and types of the fields of Kubernetes' protobuf messages.

    messages.py KUBECTL > messages.txt

The .proto files say neither which fields are inlined in JSON nor which are pointers in Go, and without the latter a
zero that was set cannot be told from one that was not. Go's types say both, and kubectl, which knows every type of the
API, carries their descriptions (runtime type information of Go 1.22 to 1.24, internal/abi/type.go) with the tags of
their fields. Standard library only; the binary must be a 64-bit little-endian ELF.
"""

import re
import struct
import sys

ROOTS = {
    "apps/v1": "ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet",
    "authentication/v1": "SelfSubjectReview TokenRequest TokenReview",
    "authorization/v1": "LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview",
    "autoscaling/v1": "HorizontalPodAutoscaler Scale",
    "autoscaling/v2": "HorizontalPodAutoscaler",
    "batch/v1": "CronJob Job",
    "coordination/v1": "Lease",
    "core/v1": "Binding ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume PersistentVolumeClaim Pod"
    " PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount",
    "discovery/v1": "EndpointSlice",
    "events/v1": "Event",
    "meta/v1": "DeleteOptions",
    "networking/v1": "IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR",
    "policy/v1": "Eviction PodDisruptionBudget",
    "rbac/v1": "ClusterRole ClusterRoleBinding Role RoleBinding",
    "scheduling/v1": "PriorityClass",
    "storage/v1": "StorageClass",
}
LEAVES = {
    "k8s.io/apimachinery/pkg/apis/meta/v1.Time": "time",
    "k8s.io/apimachinery/pkg/apis/meta/v1.MicroTime": "microtime",
    "k8s.io/apimachinery/pkg/apis/meta/v1.FieldsV1": "raw",
    "k8s.io/apimachinery/pkg/runtime.RawExtension": "raw",
    "k8s.io/apimachinery/pkg/api/resource.Quantity": "quantity",
    "k8s.io/apimachinery/pkg/util/intstr.IntOrString": "intorstring",
}
BOOL, INT, UINT8, UINT64, MAP, POINTER, SLICE, STRING, STRUCT = 1, 2, 8, 11, 21, 22, 23, 24, 25


class Binary:
    """The types of a Go program."""

    def __init__(self, path):
        with open(path, "rb") as file:
            self.data = file.read()
        self.sections = {}
        offset, = struct.unpack_from("<Q", self.data, 0x28)
        size, count, names = struct.unpack_from("<HHH", self.data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQ", self.data, offset + size * index) for index in range(count)]
        strings = headers[names][4]
        for name, _, _, address, start, length in headers:
            text = self.data[strings + name : self.data.index(b"\0", strings + name)].decode()
            self.sections[text] = (address, start, length)
        self.types = self.sections[".rodata"][0]

    def at(self, address, layout):
        base, start, length = self.sections[".rodata"]
        if not base <= address < base + length:
            base, start, length = self.sections[".noptrdata"]
        return struct.unpack_from(layout, self.data, address - base + start)

    def word(self, address):
        return self.at(address, "<Q")[0]

    def kind(self, address):
        return self.at(address + 23, "<B")[0] & 31

    def text(self, address):
        """A name and its tag: flags, length and bytes, length and bytes again."""
        flags, = self.at(address, "<B")
        name, address = self.varint_text(address + 1)
        return name, self.varint_text(address)[0] if flags & 2 else ""

    def varint_text(self, address):
        length, shift = 0, 0
        while True:
            byte, = self.at(address, "<B")
            address += 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return bytes(self.at(address, f"<{length}s")[0]).decode(), address + length

    def name(self, address):
        """Import path and name of a named struct, without vendor directories; None for others."""
        if not self.at(address + 20, "<B")[0] & 1:
            return None
        offset, = self.at(address + 40, "<i")
        text = self.text(self.types + offset)[0].lstrip("*")
        path, = self.at(address + 80, "<i")
        return self.text(self.types + path)[0] + "." + text.rsplit(".", 1)[1]

    def fields(self, address):
        start, count = self.at(address + 56, "<QQ")
        for index in range(count):
            name, type_, _ = self.at(start + 24 * index, "<QQQ")
            yield (*self.text(name), type_)

    def structs(self):
        """All named structs that a pointer leads to."""
        base, start, length = self.sections[".typelink"]
        for offset in struct.unpack_from(f"<{length // 4}i", self.data, start):
            address = self.types + offset
            if self.kind(address) == POINTER:
                target = self.word(address + 48)
                if self.kind(target) == STRUCT and (name := self.name(target)):
                    yield name, target


def short(name):
    return re.sub(r"^k8s\.io/(api|apimachinery/pkg/apis)/", "", name)


class Table:
    def __init__(self, binary):
        self.binary = binary
        self.messages = {}

    def add(self, address):
        name = self.binary.name(address)
        if name in LEAVES:
            return LEAVES[name]
        if short(name) not in self.messages:
            fields = self.messages[short(name)] = []
            for _, tag, type_ in self.binary.fields(address):
                wire = re.search(r'protobuf:"([^"]*)"', tag)
                if wire is None or wire[1] == "-":
                    continue
                number = int(wire[1].split(",")[1])
                json = re.search(r'json:"([^",]*)', tag)[1]
                fields.append((number, json or "-", self.type(type_)))
        return short(name)

    def type(self, address, in_map=False):
        kind = self.binary.kind(address)
        element = self.binary.word(address + 48)
        if kind == POINTER:
            return "?" + self.type(element)
        if kind == MAP:
            return "map " + self.type(self.binary.word(address + 56), in_map=True)
        if kind == SLICE and self.binary.kind(element) == UINT8:
            return "bytes"
        if kind == SLICE:
            # A list as the value of a map is a message with the field `items`.
            return ("items " if in_map else "[]") + self.type(element)
        if kind == STRUCT:
            return self.add(address)
        if kind == STRING:
            return "string"
        if kind == BOOL:
            return "bool"
        if INT <= kind <= UINT64:
            return "int"
        raise SystemExit(f"a field of Go's kind {kind} at {address:#x}")


def main():
    binary = Binary(sys.argv[1])
    structs = dict(binary.structs())
    table = Table(binary)
    for group, kinds in ROOTS.items():
        path = "k8s.io/apimachinery/pkg/apis/" if group == "meta/v1" else "k8s.io/api/"
        for kind in kinds.split():
            table.add(structs[f"{path}{group}.{kind}"])
    print("# Written by messages.py from kubectl 1.33: field number, JSON name (- is inline), type (? is a Go pointer).")
    for name, fields in sorted(table.messages.items()):
        print(name)
        for number, json, type_ in sorted(fields):
            print(f" {number} {json} {type_}")


main()
