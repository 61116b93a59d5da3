# SPDX-License-Identifier: Apache-2.0
"""~/status: the state in words and the counters as key-values."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from recon_ros.frame import State
from recon_ros.ros.statistics import Statistics
from recon_ros.runtimes.status import BUILDING, FAILED, LOADING, MISSING, RuntimeStatus, status_of
from recon_ros.runtimes.step import StepRuntime

# Lost for longer than this is an error: somebody has to carry the camera back.
LOST_ERROR_S = 10.0

WORDS = {
    State.INITIALIZING: "INITIALIZING: waiting for a first usable frame",
    State.TRACKING: "TRACKING",
    State.LOST: "LOST: the camera sees nothing known; go back to a place it has seen",
    State.RELOCALIZING: "RELOCALIZING: looking for a known place",
    State.PAUSED: "PAUSED: frames are dropped until ~/pause is called with false",
}


def key_values(values: dict[str, object]) -> list[KeyValue]:
    """diagnostic_msgs/KeyValue list; floats with three decimals, booleans in lower case."""
    return [KeyValue(key=key, value=_text(value)) for key, value in values.items()]


def tracking_level(statistics: Statistics) -> bytes:
    """OK, or WARN while lost, or ERROR when lost for long."""
    if statistics.state is State.LOST:
        return bytes(DiagnosticStatus.ERROR if statistics.lost_for() > LOST_ERROR_S else DiagnosticStatus.WARN)
    return bytes(DiagnosticStatus.OK)


def engine_level(engine: RuntimeStatus) -> bytes:
    """OK; WARN while something is built, or where wrong numbers led to another runtime; ERROR when nothing serves."""
    if engine.state in (MISSING, FAILED):
        return bytes(DiagnosticStatus.ERROR)
    return bytes(DiagnosticStatus.WARN if engine.state == BUILDING or engine.degraded else DiagnosticStatus.OK)


def state_in_words(state: State, engine: RuntimeStatus) -> str:
    """The state; while no network serves, why not, since no frame will change that."""
    if state is not State.PAUSED and not engine.serves and engine.state in (BUILDING, MISSING, FAILED, LOADING):
        return f"{engine.state.upper()}: {engine.message}"
    if engine.state == BUILDING:
        return f"{WORDS[state]}; {engine.message}"
    return WORDS[state]


def status_message(
    name: str, statistics: Statistics, state: State, skipped: dict[str, int], source: StepRuntime
) -> DiagnosticStatus:
    """diagnostic_msgs/DiagnosticStatus of the node; `skipped` counts refused messages by reason."""
    counts, engine = statistics.counts, status_of(source)
    values: dict[str, object] = {
        "state": state.value,
        "frames_received": counts["received"],
        "frames_processed": counts["processed"],
        "frames_dropped": counts["dropped"],
        "frames_skipped": sum(skipped.values()),
        "lost_in_transport": counts["lost_in_transport"],
        "errors": counts["errors"],
        "object_masks_unpaired": counts["object_masks_unpaired"],
        "keyframes": statistics.keyframes,
        "loops": statistics.loops,
        "submaps": statistics.submaps,
        "latency_ms": statistics.latency_ms,
        "inference_ms": statistics.inference_ms,
        "confidence": statistics.confidence,
        "metric_scale": statistics.is_metric,
        "runtime": source.runtime,
        "engine": engine.state,
        "network": source.card.name,
        **{f"skipped.{reason}": number for reason, number in sorted(skipped.items())},
    }
    return DiagnosticStatus(
        level=max(tracking_level(statistics), engine_level(engine)),
        name=name,
        message=state_in_words(state, engine),
        values=key_values(values),
    )


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3f}" if isinstance(value, float) else str(value)
