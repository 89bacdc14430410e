"""Records what vLLM's own publisher sends, byte for byte, for the tests of this package.

Run it with the Python of an installed vLLM, in this folder:

    .../vllm/0.32.0/venv/bin/python record.py

It starts ZmqEventPublisher, publishes a few batches through it, and plays the subscriber's part over plain TCP. It writes
events.bin, what a subscriber receives, and replay.bin, what a replay from 0 is answered with; both begin with the greeting.
"""

import socket
import struct

from vllm.distributed.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KVEventBatch,
    ZmqEventPublisher,
)

PUBLISH, REPLAY = 45571, 45572
SIZE = 4


def stored(hashes, parent, first, lora=None, keys=None, medium="GPU"):
    return BlockStored(
        block_hashes=hashes,
        parent_block_hash=parent,
        token_ids=list(range(first, first + SIZE * len(hashes))),
        block_size=SIZE,
        lora_id=7 if lora else None,
        medium=medium,
        lora_name=lora,
        extra_keys=keys,
        group_idx=0,
        kv_cache_spec_kind="full_attention",
    )


BATCHES = [
    [stored([2**63 + 11, 12], None, 100, keys=[None, None])],
    [stored([b"\x01" * 32], 12, 70000, keys=[None])],
    [stored([21], None, 100, lora="sql", keys=[("sql",)])],
    [stored([31, 32], None, 100, keys=[("salt",), None])],
    [stored([41], None, 100, lora="sql", keys=[("sql", ("image", 3))])],
    [stored([12], 2**63 + 11, 104, medium="CPU"), BlockRemoved(block_hashes=[12], medium="GPU", group_idx=0)],
    [BlockRemoved(block_hashes=[12], medium="CPU", group_idx=0), BlockRemoved(block_hashes=[b"\x01" * 32], medium="GPU")],
    [AllBlocksCleared()],
    [stored([51], None, 500)],
]


def frame(flags, body):
    return bytes([flags, len(body)]) + body


def connect(port, kind):
    s = socket.create_connection(("127.0.0.1", port))
    s.settimeout(60)
    s.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32))
    # libzmq closes the connection where READY comes in one segment with the greeting.
    greeting = b""
    while len(greeting) < 64:
        greeting += s.recv(64 - len(greeting))
    s.sendall(frame(4, b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind))
    return s, greeting


def receive(s, patience=3.0):
    """Returns what comes until nothing has come for so many seconds; the first bytes may take longer."""
    out = b""
    s.settimeout(60)
    try:
        while chunk := s.recv(1 << 16):
            out += chunk
            s.settimeout(patience)
    except TimeoutError:
        pass
    return out


def main():
    publisher = ZmqEventPublisher(
        0,
        endpoint=f"tcp://*:{PUBLISH}",
        replay_endpoint=f"tcp://*:{REPLAY}",
        topic="kv@10.0.0.7:8000@tiny",
    )
    s, events = connect(PUBLISH, b"SUB")
    s.sendall(frame(4, b"\x09SUBSCRIBE"))
    events += receive(s)  # the handshake
    for batch in BATCHES:
        publisher.publish(KVEventBatch(ts=1795776822.5, events=batch))
    events += receive(s)
    s.sendall(frame(4, b"\x04PING\x00\x00" + b"ctx"))
    print("answer to PING:", receive(s))
    r, replay = connect(REPLAY, b"DEALER")
    r.sendall(frame(1, b"") + frame(0, struct.pack(">Q", 0)))
    replay += receive(r)
    # Does a peer that is given a 3.0 subscription take it?
    old, _ = connect(PUBLISH, b"SUB")
    old.sendall(frame(0, b"\x01"))
    receive(old)
    publisher.publish(KVEventBatch(ts=1795776823.5, events=[AllBlocksCleared()]))
    print("a subscription that is a message:", len(receive(old)), "bytes")
    with open("events.bin", "wb") as f:
        f.write(events)
    with open("replay.bin", "wb") as f:
        f.write(replay)
    print(len(events), "bytes of events,", len(replay), "of a replay")
    publisher.shutdown()


if __name__ == "__main__":
    main()
