# SPDX-License-Identifier: Apache-2.0
"""The package's exceptions: one base, a few children, each a different thing for a caller to do about it."""


class ReconError(Exception):
    """Base of everything this package raises on purpose.

    The message says what happened, which value was at fault, and what to do about it.
    """


class ConfigError(ReconError):
    """A parameter, option or file of the configuration is unusable; nothing was started."""


class InputError(ReconError):
    """One frame or message is unusable; it is to be skipped and counted, the map stays.

    `reason` is a short stable key for counters (for example ``"encoding"``), the message is for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class DatasetError(ReconError):
    """A recording cannot be opened or holds nothing usable."""


class NetworkError(ReconError):
    """A network, its weights or its engine cannot be used."""
