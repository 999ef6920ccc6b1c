"""Load damaged and forged segments for some seconds: fuzz_segments.py FOLDER SEED SECONDS.

Prints how many were tried, how many were refused, the slowest one's processor time and the growth of memory.
"""

from __future__ import annotations

import faulthandler
import gc
import hashlib
import json
import os
import random
import struct
import sys
import time
from pathlib import Path
from typing import Any

import torch

import zerocopy
from zerocopy._lease import close
from zerocopy._segment.checking import open_segment, verify_file

faulthandler.enable()
folder, seed, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
random.seed(seed)
torch.manual_seed(0)
base_model = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(4)])
base = zerocopy.publish(base_model, directory=folder, keep=True)
with torch.no_grad():
    base_model[0].bias.add_(1)
delta = zerocopy.publish(base_model, directory=folder, base=base, keep=True)
victim = folder / "fuzz@1-00000000.zc"
originals = [(ref, bytearray(Path(ref.path).read_bytes())) for ref in (base, delta)]
values = [0, 1, -1, 7, 64, 127, 4095, 4096, 1 << 20, 1 << 31, 1 << 32, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


def peak() -> int:
    """Return the most kilobytes that this program has had; getrusage would count what its parent had before it."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def reseal(raw: Any, manifest: Any, skeleton: Any) -> Any:
    """Write manifest and skeleton, and a digest that fits."""
    text = json.dumps(manifest, separators=(",", ":")).encode() if not isinstance(manifest, bytes) else manifest
    struct.pack_into("<QQ", raw, 16, len(text), len(skeleton))
    raw[128 : 128 + len(text) + len(skeleton)] = text + skeleton
    raw[96:128] = hashlib.sha256(bytes(raw[:96]) + text + skeleton).digest()


def parts(raw: Any) -> Any:
    """Return manifest and skeleton."""
    m, s = struct.unpack_from("<QQ", raw, 16)
    return json.loads(raw[128 : 128 + m]), bytes(raw[128 + m : 128 + m + s])


def flip(raw: Any) -> Any:
    """Change some bits."""
    for _ in range(random.choice((1, 1, 2, 20))):
        raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)


def cut(raw: Any) -> Any:
    """Cut the end off."""
    del raw[random.randrange(len(raw)) :]


def grow(raw: Any) -> Any:
    """Add bytes."""
    raw += os.urandom(random.randrange(1, 9000))


def number(raw: Any) -> Any:
    """Put an odd number into the header."""
    at, size = random.choice([(8, 4), (12, 4), *[(16 + 8 * i, 8) for i in range(6)]])
    raw[at : at + size] = (random.choice(values) & ((1 << 8 * size) - 1)).to_bytes(size, "little")


def resealed_number(raw: Any) -> Any:
    """Put an odd number into the header, and a digest that fits."""
    number(raw)
    length = sum(struct.unpack_from("<QQ", raw, 16))
    body = bytes(raw[128 : 128 + length]) if length < len(raw) else b""
    raw[96:128] = hashlib.sha256(bytes(raw[:96]) + body).digest()


def odd() -> Any:
    """Return something that a manifest does not expect."""
    number = random.choice(values)
    return random.choice([None, True, 1.5, "x", "", [], {}, [[]], number, -number, "\x00", "9" * 50])


def manifest(raw: Any) -> Any:
    """Put odd things into the manifest, and a digest that fits."""
    fields, skeleton = parts(raw)
    for _ in range(random.choice((1, 1, 3))):
        what = random.randrange(4)
        if what == 0:
            fields[random.choice(list(fields) or ["x"])] = odd()
        elif what == 1 and fields.get("blocks") and isinstance(fields["blocks"], list):
            block = random.choice(fields["blocks"])
            if isinstance(block, list) and block:
                block[random.randrange(len(block))] = odd()
        elif what == 2 and isinstance(fields.get("bases"), list):
            if fields["bases"] and isinstance(fields["bases"][0], dict):
                base_fields = fields["bases"][0]
                base_fields[random.choice(list(base_fields) or ["file"])] = odd()
            else:
                fields["bases"].append(random.choice([odd(), {"file": odd(), "size": odd()}]))
        elif what == 3:
            fields.pop(random.choice(list(fields) or ["x"]), None)
    reseal(raw, fields, skeleton)


def text(raw: Any) -> Any:
    """Replace the manifest by text that is none, and a digest that fits."""
    _, skeleton = parts(raw)
    reseal(raw, random.choice([b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 3000, os.urandom(50)]), skeleton)


kinds = [flip, cut, grow, number, resealed_number, manifest, manifest, manifest, text]
x = torch.ones(1, 16)
wanted = {ref.path: ref.load(cached=False)(x) for ref, _ in originals}
torch.set_num_threads(1)
gc.collect()
before = peak()
end, count, refused, slowest = time.monotonic() + seconds, 0, 0, 0.0
while time.monotonic() < end:
    ref, original = random.choice(originals)
    raw, kind = bytearray(original), random.choice(kinds)
    kind(raw)
    victim.unlink(missing_ok=True)
    victim.write_bytes(raw)
    shown = zerocopy.ModelRef(ref.name, ref.version, ref.digest, ref.nbytes, str(victim))
    start = time.process_time()
    try:
        model = shown.load(cached=False)
        assert torch.equal(model(x), wanted[ref.path]), (seed, count, kind.__name__)
        del model
    except zerocopy.ZerocopyError:
        refused += 1
    try:
        head = open_segment(victim)
        try:
            verify_file(head.fd, head.manifest, victim)
        finally:
            close(head.fd)
    except zerocopy.ZerocopyError:
        pass
    str(zerocopy.report(directory=folder, pids=[]))
    zerocopy.sweep(folder)
    slowest = max(slowest, time.process_time() - start)
    count += 1
grown = (peak() - before) << 10
assert {Path(ref.path).name for ref, _ in originals} <= set(os.listdir(folder)), "a sound segment was swept"
print(count, refused, f"{slowest:.3f}", grown)
