"""Write scalars into TensorBoard event files, and take them back out.

A file is a row of records: length (8 bytes), its checksum (4), an event, its checksum (4). Records that stay are copied
with their checksums.
"""

import logging
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from utils.files import write_atomic
from utils.reading import read_bytes, reason

_LOG = logging.getLogger("m2ae.metrics")


class ScalarFile:
    """An event file of its own in a folder, which is made; what was added before `flush` is on the disk after it.

    The writer of tensorboardX hands events to a thread through a queue, which its own `flush` does not wait for, and which needs
    semaphores that containers may lack.
    """

    def __init__(self, folder: Path):
        from tensorboardX.event_file_writer import EventsWriter

        folder.mkdir(parents=True, exist_ok=True)
        # Without the suffix a second writer within one second would overwrite the file of the first.
        self._writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a value of the curve `tag`."""
        from tensorboardX.summary import scalar

        self.add_summary(scalar(tag, value), step)

    def add_text(self, tag: str, value: str) -> None:
        """Add a text."""
        from tensorboardX.summary import text

        self.add_summary(text(tag, value))

    def add_summary(self, summary, step: int | None = None) -> None:
        """Add a summary of tensorboardX."""
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Bring everything that was added to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flush, and close the file."""
        self._writer.close()


def drop_scalars(paths: Iterable[Path], tag: str, first_step: int) -> None:
    """Remove the scalars named `tag` of `first_step` and later from event files.

    Each file is replaced atomically; a record that was cut short at its end is dropped too. A file that is damaged is left as it is,
    which is said.
    """
    from tensorboardX.proto.event_pb2 import Event

    for path in paths:
        try:
            records = list(_records(read_bytes(path)))
            events = [Event.FromString(payload) for _, payload in records]
        except Exception as error:  # the reader of events raises its own kinds
            _LOG.warning(
                "%s: is damaged (%s) and was left as it is; TensorBoard may show some scalars twice",
                path,
                reason(error),
            )
            continue
        kept = []
        for (record, _), event in zip(records, events, strict=True):
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
