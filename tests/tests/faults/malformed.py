"""Sends packets that are not as they should be: DEVICE GATEWAY-MAC IPV4-SOURCE IPV4-DESTINATION IPV6-SOURCE
IPV6-DESTINATION PORT. Prints how many."""

import random
import socket
import struct
import sys

device, gateway, source, destination, source6, destination6, port = sys.argv[1:]
port = int(port)
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
link.bind((device, 0))
own = link.getsockname()[4]
gateway = bytes.fromhex(gateway.replace(":", ""))
random.seed(1)


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def v4(payload, protocol=17, ihl=5, options=b"", version=4, length=None, fragment=0, ttl=64):
    length = 20 + len(options) + len(payload) if length is None else length
    head = struct.pack("!BBHHHBBH4s4s", version << 4 | ihl, 0, length, random.getrandbits(16), fragment, ttl,
                       protocol, 0, socket.inet_aton(source), socket.inet_aton(destination)) + options
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return 0x0800, head + payload


def v6(payload, protocol=17, length=None):
    length = len(payload) if length is None else length
    addresses = socket.inet_pton(socket.AF_INET6, source6) + socket.inet_pton(socket.AF_INET6, destination6)
    return 0x86DD, struct.pack("!IHBB", 6 << 28, length, protocol, 64) + addresses + payload


def udp(data=b"12345678", length=None):
    return struct.pack("!HHHH", 4000, port, 8 + len(data) if length is None else length, 0) + data


def tcp(flags, offset=5):
    return struct.pack("!HHIIBBHHH", 4001, port, 1, 1, offset << 4, flags, 1024, 0, 0)


MORE = 0x2000
packets = [
    v4(b""), v4(udp()[:3]), v4(udp()[:7]),                         # runts
    v4(udp(b"")), v4(udp(length=0)), v4(udp(length=7)), v4(udp(length=65535)),
    v4(udp(), ihl=0), v4(udp(), ihl=4), v4(udp(), ihl=15), v4(udp(), version=5), v4(udp(), version=6),
    v4(udp(), length=0), v4(udp(), length=19), v4(udp(), length=65535), v4(udp(), ttl=0), v4(udp(), ttl=1),
    v4(udp(), ihl=6, options=b"\1\1\1\0"),                          # no operation
    v4(udp(), ihl=7, options=b"\x07\x07\x04\0\0\0\0\0"),            # record route
    v4(udp(), ihl=7, options=b"\x83\x07\x04\x0a\0\0\1\0"),          # loose source route
    v4(udp(), ihl=6, options=b"\x07\xff\0\0"),                      # an option longer than its header
    v4(udp(), fragment=MORE), v4(udp(), fragment=1), v4(udp(), fragment=0x1FFF), v4(udp(), fragment=MORE | 0x1FFF),
    v4(tcp(0)), v4(tcp(0), 6), v4(tcp(0x3F), 6), v4(tcp(0x03), 6), v4(tcp(2, offset=0), 6), v4(tcp(2, offset=15), 6),
    v4(b"", 6), v4(b"\0" * 4, 6), v4(b"", 132), v4(b"\0" * 11, 132), v4(b"", 1), v4(udp(), 255),
    v6(b""), v6(udp()[:7]), v6(udp(b"")), v6(udp(), length=0), v6(udp(), length=65535), v6(tcp(0), 6),
    v6(b"\x11\0\0\0\0\0\0\0" + udp(), 0),                           # hop-by-hop
    v6(b"\x11\0\1\4\0\0\0\0" + udp(), 60),                          # destination options
    v6(b"\x11\xff\0\0\0\0\0\0" + udp(), 60),                        # ... longer than the packet
    v6(b"\x11\0\0\1\0\0\0\0" + udp(), 43),                          # routing
    v6(b"\x3c\0\1\4\0\0\0\0" * 40 + b"\x11\0\1\4\0\0\0\0" + udp(), 60),
    v6(b"\x11\0\0\1\0\0\0\7" + udp(), 44),                          # fragments
    v6(b"\x11\0\xff\xf8\0\0\0\7" + udp(), 44),
    v6(b"\x11\0\0\0\0\0\0\7" + udp(), 44),                          # an atomic one
    v6(b"", 59), v6(udp(), 255),
]
for _ in range(500):
    kind, packet = random.choice(packets)
    changed = bytearray(packet)
    for _ in range(random.randint(1, 4)):
        changed[random.randrange(len(changed))] = random.getrandbits(8)
    packets.append((kind, bytes(changed[:random.randint(1, len(changed))])))
for kind, packet in packets:
    link.send(gateway + own + struct.pack("!H", kind) + packet)
print(len(packets))
