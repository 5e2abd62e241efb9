"""Take scalars back out of TensorBoard event files.

A file is a row of records: length (8 bytes), its checksum (4), an event, its checksum (4). Records that stay are copied
with their checksums.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.files import write_atomic


def drop_scalars(paths: Iterable[Path], tag: str, first_step: int) -> None:
    """Remove the scalars named `tag` of `first_step` and later from event files.

    Each file is replaced atomically; a record that was cut short at its end is dropped too.
    """
    from tensorboardX.proto.event_pb2 import Event

    for path in paths:
        records = list(_records(path.read_bytes()))
        kept = []
        for record, payload in records:
            event = Event.FromString(payload)
            later = event.step >= first_step and event.HasField("summary")
            if not (later and any(value.tag == tag for value in event.summary.value)):
                kept.append(record)
        if len(kept) < len(records):
            write_atomic(path, lambda file, kept=kept: file.write(b"".join(kept)))


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield each whole record and the event in it."""
    begin = 0
    while begin + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, begin)
        end = begin + 12 + length + 4
        if end > len(data):
            return
        yield data[begin:end], data[begin + 12 : end - 4]
        begin = end
