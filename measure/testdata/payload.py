#!/usr/bin/env python3
"""Digests of what a boot measures of its image, by other code than plinth's.

payload.py uki FILE                     a unified kernel image
payload.py kernel FILE [INITRD [MIB]]   a bzImage, as it is and as QEMU changes it for its own loader
payload.py gpt DISK                     UEFI_GPT_DATA, in hex

Prints JSON: bank -> hex digest for every part.
"""
import hashlib, json, struct, sys

BANKS = ["sha1", "sha256", "sha384", "sha512"]


def digests(data):
    return {b: hashlib.new(b, data).hexdigest() for b in BANKS}


def pe(data):
    """Offsets in a PE32+ file and its sections: name -> (offset, raw size, virtual size)."""
    (h,) = struct.unpack_from("<I", data, 0x3C)
    count, optional = struct.unpack_from("<H", data, h + 6)[0], struct.unpack_from("<H", data, h + 20)[0]
    assert data[h : h + 4] == b"PE\0\0" and struct.unpack_from("<H", data, h + 24)[0] == 0x20B
    sections = []
    for i in range(count):
        name, vsize, _, rsize, offset = struct.unpack_from("<8sIIII", data, h + 24 + optional + 40 * i)
        sections.append((name.rstrip(b"\0").decode(), offset, rsize, vsize))
    return h, sections


def authenticode(data):
    """The bytes that the Authenticode digest covers."""
    h, sections = pe(data)
    checksum, certs = h + 24 + 64, h + 24 + 112 + 8 * 4
    (headers,) = struct.unpack_from("<I", data, h + 24 + 60)
    cert_offset, cert_size = struct.unpack_from("<II", data, certs)
    out = data[:checksum] + data[checksum + 4 : certs] + data[certs + 8 : headers]
    done = headers
    for _, offset, rsize, _ in sorted(sections, key=lambda s: s[1]):
        if rsize:
            out += data[offset : offset + rsize]
            done += rsize
    return out + data[done : len(data) - cert_size]


def content(data, section):
    _, offset, rsize, vsize = section
    b = data[offset : offset + min(rsize, vsize)]
    return b + b"\0" * (vsize - len(b))


def extra(name, data):
    """The cpio archive with /.extra/NAME that systemd-stub makes."""
    def entry(ino, mode, path, body):
        fields = [ino, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(path) + 1, 0]
        b = b"070701" + b"".join(b"%08x" % f for f in fields) + path + b"\0"
        b += b"\0" * (-len(b) % 4) + body
        return b + b"\0" * (-len(b) % 4)

    trailer = b"070701" + b"0" * 8 * 4 + b"00000001" + b"0" * 8 * 6 + b"0000000B" + b"0" * 8 + b"TRAILER!!!" + b"\0" * 4
    return entry(1, 0o40555, b".extra", b"") + entry(2, 0o100444, b".extra/" + name, data) + trailer


def handed_over(stub, sections):
    """The initrd that the stub gives to the kernel."""
    parts = [sections[".initrd"]]
    for section, name, since in [(".pcrsig", b"tpm2-pcr-signature.json", 252), (".pcrpkey", b"tpm2-pcr-public-key.pem", 252), (".osrel", b"os-release", 257)]:
        if section in sections and stub >= since:
            parts.append(extra(name, sections[section]))
    if len(parts) == 1:
        return parts[0]
    return b"".join(p + b"\0" * (-len(p) % 4) for p in parts)


def release(kernel):
    (at,) = struct.unpack_from("<H", kernel, 0x20E)
    return kernel[at + 0x200 :].split(b" ", 1)[0].decode()


def uki(data):
    _, table = pe(data)
    sections = {s[0]: content(data, s) for s in table if s[0].startswith(".")}
    version = sections[".sdmagic"].split(b"systemd-stub ")[1].split(b" ")[0].decode()
    cmdline = sections[".cmdline"].decode().split("\0")[0]
    cmdline = "".join(" " if c < " " else c for c in cmdline)
    measured = [".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat", ".pcrpkey"]
    return {
        "stub": version,
        "kernel": release(sections[".linux"]),
        "cmdline": cmdline.strip(" ") if version >= "255" else cmdline.rstrip(" "),
        "image": digests(authenticode(data)),
        "inner": digests(authenticode(sections[".linux"])),
        "initrd": digests(handed_over(int(version.split(".")[0]), sections)),
        "sections": {s: digests(sections[s]) for s in measured if s in sections},
    }


def patched(kernel, initrd, mib):
    """The kernel as QEMU's own loader would start it."""
    b = bytearray(kernel)
    b[0x210], b[0x211] = 0xB0, b[0x211] | 0x80
    struct.pack_into("<H", b, 0x224, 0xFE00)
    struct.pack_into("<I", b, 0x228, 0x20000)
    if initrd is not None:
        low = 0x80000000 if mib << 20 >= 0xB0000000 else mib << 20
        struct.pack_into("<II", b, 0x218, (low - 0x28000 - 1 - len(initrd)) & ~0xFFF, len(initrd))
    return bytes(b)


def read(path, size=-1):
    with open(path, "rb") as f:
        return f.read(size)


def main(kind, path, *rest):
    data = read(path, 1 << 20 if kind == "gpt" else -1)
    if kind == "gpt":
        header = data[512 : 512 + 92]
        lba, count, size = struct.unpack_from("<QII", header, 72)
        entries = [data[lba * 512 + i * size :][:size] for i in range(count)]
        used = [e for e in entries if any(e[:16])]
        return (header + struct.pack("<Q", len(used)) + b"".join(used)).hex()
    if kind == "uki":
        return uki(data)
    initrd = read(rest[0]) if rest else None
    out = {
        "kernel": release(data),
        "image": digests(authenticode(data)),
        "patched": digests(authenticode(patched(data, initrd, int((*rest, 1024)[1])))),
    }
    if initrd is not None:
        out["initrd"] = digests(initrd)
    return out


if __name__ == "__main__":
    json.dump(main(*sys.argv[1:]), sys.stdout)
