# SPDX-License-Identifier: Apache-2.0
"""An mcap file that has lost its end, read by walking its records from the start (https://mcap.dev/spec).

A recorder that was killed, a full disk or a broken copy leave a file without the index that rosbags needs.
All
that was written before is still there: the mcap package's StreamReader takes it record by record.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import lz4.frame  # type: ignore[import-untyped]
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, Footer, McapRecord, Message, Schema
from mcap.stream_reader import StreamReader

from recon_ros.errors import DatasetError

# What the mcap package raises for bytes that are no mcap; ValueError covers broken UTF-8 and lengths.
DAMAGE = (McapError, struct.error, ValueError, RuntimeError, OverflowError, MemoryError)


class McapWalk:
    """The ROS 2 messages of an mcap file without (or in spite of) its index.

    Attributes:
        schemas: topic → schema (its name is the message type).
        counts: topic → number of messages that can be read.
        damage: what is wrong with the file, in sentences; empty when nothing is.

    Raises:
        DatasetError: when no message can be read at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: list[str] = []
        self.schemas: dict[str, Schema] = {}
        self.counts: Counter[str] = Counter()
        for topic, schema, _, _ in self._walk():
            self.schemas.setdefault(topic, schema)
            self.counts[topic] += 1
        if not self.counts:
            raise DatasetError(f"no ROS 2 message can be read from '{path}'. {' '.join(self.damage)}".rstrip(". "))

    def messages(self, topics: Collection[str]) -> Iterator[tuple[str, str, int, bytes]]:
        """Topic, type, time of recording (nanoseconds) and CDR data of each message, as they lie there."""
        for topic, schema, time_ns, data in self._walk():
            if topic in topics:
                yield topic, schema.name, time_ns, data

    def _walk(self) -> Iterator[tuple[str, Schema, int, bytes]]:
        schemas: dict[int, Schema] = {}
        channels: dict[int, Channel] = {}
        for record in self._records():
            if isinstance(record, Schema):
                schemas[record.id] = record
            elif isinstance(record, Channel):
                channels[record.id] = record
            elif isinstance(record, Message) and record.channel_id in channels:
                channel = channels[record.channel_id]
                if channel.message_encoding == "cdr" and channel.schema_id in schemas:
                    yield channel.topic, schemas[channel.schema_id], record.log_time, record.data

    def _records(self) -> Iterator[McapRecord]:
        """The records of the file, chunks opened, as far as they go; what stops them goes into `damage`."""
        self.damage = []
        with self.path.open("rb") as file:
            end, reason = 0, "its footer is missing"
            try:
                for record in StreamReader(file, emit_chunks=True).records:
                    if isinstance(record, Footer):
                        return
                    if isinstance(record, Chunk):
                        yield from self._records_of(record)
                    else:
                        yield record
                    end = file.tell()
            except DAMAGE as error:
                reason = str(error) or type(error).__name__
            place = file.tell()
            if file.read(1):
                self.damage.append(f"'{self.path.name}' is damaged before byte {place}: {reason}.")
            else:
                self.damage.append(f"'{self.path.name}' is cut off at byte {place}.")
                yield from self._records_of_stump(file, end)

    def _records_of_stump(self, file: BinaryIO, start: int) -> list[McapRecord]:
        """The records in what is left of the record at byte `start`, if it is a chunk."""
        file.seek(start)
        stream = ReadDataStream(file)
        with suppress(*DAMAGE):
            if stream.read1() == Opcode.CHUNK:
                stream.read8()
                return self._records_of(Chunk.read(stream))
        return []

    def _records_of(self, chunk: Chunk) -> list[McapRecord]:
        """The records of a chunk, messages in the order of recording; of a cut chunk those before the cut."""
        try:
            data = _decompressed(chunk)
        except DAMAGE as error:
            self.damage.append(f"A chunk of '{self.path.name}' is damaged and left out: {error}.")
            return []
        records: list[McapRecord] = []
        with suppress(*DAMAGE):  # a chunk has no footer: the end of the data ends it
            for record in StreamReader(io.BytesIO(data), skip_magic=True).records:
                records.append(record)  # one by one, to keep what comes before the error
        return sorted(records, key=_recording_time)


def _decompressed(chunk: Chunk) -> bytes:
    """The data of a chunk; of a chunk that is cut off, what can be decompressed.

    Raises:
        ValueError: when the chunk is damaged; RuntimeError from lz4.
    """
    data: bytes
    if chunk.compression == "zstd":
        try:
            data = zstandard.ZstdDecompressor().decompressobj().decompress(chunk.data)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    elif chunk.compression == "lz4":
        data = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data)
    elif chunk.compression == "":
        data = chunk.data
    else:
        raise ValueError(f"compression '{chunk.compression}' is not known")
    is_whole = len(data) == chunk.uncompressed_size
    if is_whole and chunk.uncompressed_crc and zlib.crc32(data) != chunk.uncompressed_crc:
        raise ValueError("its checksum is wrong")
    return data


def _recording_time(record: Any) -> int:
    """Sort key: schemas and channels first, then messages by time."""
    return record.log_time if isinstance(record, Message) else -1
