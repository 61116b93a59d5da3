# SPDX-License-Identifier: Apache-2.0
"""The files of a ROS recording as one stream of serialised messages, damaged files included."""

from __future__ import annotations

import heapq
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Protocol

import yaml
from rosbags.highlevel import AnyReader
from rosbags.interfaces import MessageDefinition, MessageDefinitionFormat
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore

from recon_ros.errors import DatasetError

RawMessage = tuple[str, str, int, bytes]
"""Topic, type (``package/msg/Name``), time of recording in nanoseconds, serialised message."""

SUFFIXES = (".mcap", ".db3")


@dataclass(frozen=True)
class Channel:
    """A topic of a recording: its type, how often it occurs, and the type's definition if the file has it."""

    topic: str
    msgtype: str
    count: int
    definition: MessageDefinition


class Storage(Protocol):
    """One file, or one folder that rosbags must read as a whole."""

    channels: list[Channel]
    loss: str | None

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        """The messages of these topics in the order of recording."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class Recording:
    """A recording of ROS 2 (mcap or sqlite3, file or folder) or ROS 1 (.bag).

    Attributes:
        channels: topic → `Channel`, counts summed over the files.
        is_ros1: serialised messages are in ROS 1's format.

    Raises:
        DatasetError: when there is nothing to read at `path`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_ros1 = path.suffix == ".bag"
        self._storages, self._missing = _open_storages(path)
        self.channels: dict[str, Channel] = {}
        for channel in (c for storage in self._storages for c in storage.channels):
            known = self.channels.get(channel.topic)
            count = channel.count + (known.count if known else 0)
            self.channels[channel.topic] = Channel(channel.topic, channel.msgtype, count, channel.definition)
        self._types = _own_types(self.channels.values())

    @property
    def loss(self) -> str | None:
        """What of the recording could not be read, in sentences; None while nothing is known to be lost."""
        losses = [self._missing, *(storage.loss for storage in self._storages)]
        return " ".join(loss for loss in losses if loss) or None

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        """The messages of these topics, over all files, in the order of recording."""
        return heapq.merge(*(s.messages(topics) for s in self._storages), key=itemgetter(2))

    def objects(self, topics: Collection[str]) -> Iterator[tuple[str, Any]]:
        """Topic and message object of the messages of these topics; those that cannot be read are None."""
        for topic, msgtype, _, data in self.messages(topics):
            try:
                msg = self._deserialised(data, msgtype)
            except Exception:  # rosbags' generated code fails in whatever way on broken bytes
                msg = None
            yield topic, msg

    def first(self, topic: str) -> Any | None:
        """The first message object of a topic, or None when there is none that can be read."""
        return next((msg for _, msg in self.objects([topic]) if msg is not None), None)

    def close(self) -> None:
        for storage in self._storages:
            storage.close()

    def _deserialised(self, data: bytes, msgtype: str) -> Any:
        try:
            return self._deserialised_by(self._types, data, msgtype)
        except KeyError:  # the recording defines this type not at all, or not all of it
            return self._deserialised_by(_known_types(self.is_ros1), data, msgtype)

    def _deserialised_by(self, types: Any, data: bytes, msgtype: str) -> Any:
        return (types.deserialize_ros1 if self.is_ros1 else types.deserialize_cdr)(data, msgtype)


class _RosbagsStorage:
    """A whole file, or a folder whose files or messages are compressed one by one, read by rosbags."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loss: str | None = None
        try:
            self._reader = AnyReader([path]) if path.suffix == ".bag" else Reader(path)
            self._reader.open()
        except Exception as error:  # a damaged file fails anywhere in the parser, with whatever exception
            raise DatasetError(f"'{path}' cannot be read: {_reason(error)}") from error
        self.channels = [Channel(c.topic, c.msgtype, c.msgcount, c.msgdef) for c in self._reader.connections]

    def messages(self, topics: Collection[str]) -> Iterator[RawMessage]:
        connections = [c for c in self._reader.connections if c.topic in topics]
        if not connections:
            return
        messages, count = self._reader.messages(connections), 0
        while True:
            try:
                connection, time_ns, data = next(messages)
            except StopIteration:
                return
            except Exception as error:  # as above
                yield from self._after_damage(topics, count, error)
                return
            count += 1
            yield connection.topic, connection.msgtype, time_ns, bytes(data)

    def _after_damage(self, topics: Collection[str], count: int, error: Exception) -> Iterator[RawMessage]:
        """What is still to be had behind a damaged place, after `count` messages."""
        self.loss = f"'{self.path.name}' can be read up to a damaged place only: {_reason(error)}."
        if self.path.suffix == ".mcap":
            with suppress(DatasetError):
                walked = _WalkedStorage(self.path)
                self.loss = walked.loss
                yield from islice(walked.messages(topics), count, None)

    def close(self) -> None:
        self._reader.close()


class _WalkedStorage:
    """An mcap file without an index; see `mcap_walk`."""

    def __init__(self, path: Path) -> None:
        try:
            from recon_ros.datasets.mcap_walk import McapWalk
        except ImportError as error:
            raise DatasetError(
                f"'{path}' is damaged; what is left of it can be read with the mcap package: pip install mcap"
            ) from error
        walk = McapWalk(path)
        self.messages = walk.messages
        self.channels = [
            Channel(topic, schema.name, walk.counts[topic], _definition(schema.encoding, schema.data))
            for topic, schema in walk.schemas.items()
        ]
        used = f"{walk.counts.total()} messages can be read and are used."
        self.loss = " ".join([*walk.damage, used]) if walk.damage else None

    def close(self) -> None:
        """Nothing stays open between two walks."""


def _open_storages(path: Path) -> tuple[list[Storage], str | None]:
    """The storages of a recording, and what is missing of it."""
    if not path.exists():
        raise DatasetError(f"there is no recording at '{path}'")
    if path.is_file():
        if path.suffix != ".bag" and path.suffix not in SUFFIXES:
            raise DatasetError(f"'{path}' is no recording: its name ends neither in .mcap nor in .db3 nor in .bag")
        return [_open_file(path)], None
    metadata = _metadata(path)
    if str(metadata.get("compression_mode", "")).lower() in ("file", "message"):
        return [_RosbagsStorage(path)], None
    # The order of a split recording is that of its metadata; without metadata it is that of the names.
    listed = [path / Path(name).name for name in metadata.get("relative_file_paths") or []]
    found = sorted((p for p in path.iterdir() if p.suffix in SUFFIXES), key=_natural)
    losses = [f"'{p.name}' is missing." for p in listed if not p.exists()]
    files = [p for p in listed if p.exists()] or found
    if not files:
        raise DatasetError(f"'{path}' holds no recording: there is neither an mcap nor a db3 file in it")
    storages: list[Storage] = []
    for file in files:
        try:
            storages.append(_open_file(file))
        except DatasetError as error:
            if len(files) == 1:
                raise
            losses.append(f"{error}.")
    if not storages:
        raise DatasetError(f"no file of '{path}' can be read: {' '.join(losses)}")
    if metadata.get("message_count") and any(storage.loss for storage in storages):
        losses.append(f"The whole recording had {metadata['message_count']} messages.")
    return storages, " ".join(losses) or None


def _open_file(path: Path) -> Storage:
    if path.stat().st_size == 0:
        raise DatasetError(f"'{path}' is empty")
    try:
        return _RosbagsStorage(path)
    except DatasetError:
        if path.suffix != ".mcap":
            raise
        return _WalkedStorage(path)


def _metadata(folder: Path) -> dict[str, Any]:
    """What the recording says of itself, or nothing if that is missing or damaged: the files say it too."""
    try:
        return dict(yaml.safe_load((folder / "metadata.yaml").read_text())["rosbag2_bagfile_information"])
    except (OSError, yaml.YAMLError, TypeError, KeyError, ValueError):
        return {}


def _definition(encoding: str, text: bytes) -> MessageDefinition:
    forms = {"ros2msg": MessageDefinitionFormat.MSG, "ros2idl": MessageDefinitionFormat.IDL}
    form = forms.get(encoding, MessageDefinitionFormat.NONE)
    return MessageDefinition(form, text.decode(errors="replace"))


@lru_cache(maxsize=2)
def _known_types(is_ros1: bool) -> Any:
    return get_typestore(Stores.ROS1_NOETIC if is_ros1 else Stores.ROS2_JAZZY)


def _own_types(channels: Iterable[Channel]) -> Any:
    """The types that the recording defines itself."""
    types: dict[str, Any] = {}
    for channel in channels:
        form, text = channel.definition
        # A definition that rosbags cannot parse matters to none but the topic that has it.
        with suppress(Exception):
            if form == MessageDefinitionFormat.MSG:
                types.update(get_types_from_msg(text, channel.msgtype))
            elif form == MessageDefinitionFormat.IDL:
                for part in filter(None, re.split(r"={80}\n(?:IDL: .*\n)?", text)):
                    types.update(get_types_from_idl(part))
    store = get_typestore(Stores.EMPTY)
    store.register(types)
    return store


def _natural(path: Path) -> list[Any]:
    """Sort key that has bag_2 before bag_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def _reason(error: BaseException) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__
