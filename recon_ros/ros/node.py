# SPDX-License-Identifier: Apache-2.0
"""`recon_node`: the lifecycle node. Its callbacks store and hand over; the worker's thread does the work.

A SingleThreadedExecutor and one worker thread: rclpy's multi-threaded executor costs more than it brings, and
the heavy parts of the work (OpenCV, numpy) release the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import Future as Job
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from recon_ros.config import Config, MapConfig, NodeConfig
from recon_ros.errors import ReconError
from recon_ros.export.snapshot import write_snapshot
from recon_ros.intake import Pair
from recon_ros.mapping.folder import read_map
from recon_ros.ros import interface
from recon_ros.ros.build_only import build_for
from recon_ros.ros.diagnostics import Diagnostics
from recon_ros.ros.inputs import Inputs
from recon_ros.ros.lifecycle import SUCCESS, transition
from recon_ros.ros.logs import say_logs
from recon_ros.ros.parameters import Parameters
from recon_ros.ros.pipeline import Pipeline
from recon_ros.ros.spinning import STOP_LATENCY_S, spin, stop_on_signals
from recon_ros.ros.statistics import Statistics
from recon_ros.ros.watchdog import Watchdog
from recon_ros.ros.worker import Worker

Result = TypeVar("Result")

KEEP_ALIVE_PERIOD_S = 0.1
WATCH_PERIOD_S = 0.5
STATUS_PERIOD_S = 1.0
STOP_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 60.0


class ReconNode(LifecycleNode):
    """Configure: parameters, source, publishers. Activate: subscriptions, worker, timers. And back again."""

    def __init__(self, **options: Any) -> None:
        super().__init__("recon", **options)
        self._options = Parameters(self)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._own_timers: list[Any] = []
        self._undo = contextlib.ExitStack()
        self._pipeline: Pipeline | None = None
        self._refreshing: set[str] = set()

    @property
    def autostart(self) -> bool:
        return bool(self.get_parameter("autostart").value)

    @property
    def build_only(self) -> bool:
        return bool(self.get_parameter("build_only").value)

    def build(self, stop: threading.Event, idle: Callable[[], None]) -> bool:
        """Build what the source's runtime lacks instead of starting; see `build_for`."""
        try:
            build_for(self._options.read()[0], self.get_logger(), stop, idle)
        except ReconError as error:
            self.get_logger().error(f"cannot build: {error}")
            return False
        return True

    # -- lifecycle -------------------------------------------------------------------------------------------

    @transition
    def on_configure(self, state: LifecycleState) -> None:
        config, node_config = self._options.read()
        self._warn_of_unknown_parameters()
        self._statistics = Statistics()
        self._pipeline = pipeline = Pipeline(self, config, node_config, self._statistics)
        node_config = pipeline.node_config  # a network takes no depth
        self._undo.callback(pipeline.close)
        count_drops = functools.partial(self._statistics.count, "dropped")
        self._worker: Worker[Pair] = Worker(pipeline.handle, pipeline.failed, count_drops, node_config.queue)
        pipeline.cancelled = lambda: not self._worker.running
        besides = {
            interface.OBJECT_MASK: functools.partial(self._hand_over, pipeline.objects.add_mask),
            interface.INITIAL_POSE: functools.partial(self._hand_over, pipeline.take_initial_pose),
        }
        self._inputs = Inputs(self, node_config, pipeline.intake, self._statistics, self._deliver, besides)
        self._watchdog = Watchdog(self, self._inputs, node_config)
        self._diagnostics = Diagnostics(
            self, self._statistics, self._inputs, self._watchdog, lambda: pipeline.state, lambda: pipeline.engine
        )
        self._undo.callback(self._halt)
        self._serve()
        self._watch_clock()
        self._options.on_change(self._apply)

    @transition
    def on_activate(self, state: LifecycleState) -> None:
        pipeline, node_config = self._active_pipeline, self._active_pipeline.node_config
        pipeline.mount.start_grace()
        self._worker.start()
        self._inputs.open()
        self._every(STATUS_PERIOD_S, self._tell)
        self._every(WATCH_PERIOD_S, self._watchdog.look)
        self._every(KEEP_ALIVE_PERIOD_S, pipeline.frames.keep_alive)
        derived = pipeline.map_outputs
        self._every(node_config.map_publish_period, lambda: self._refresh(derived.cloud, self._drawer))
        self._every(node_config.map_publish_period, lambda: self._refresh(derived.updates, self._drawer))
        self._every(node_config.path_period, lambda: self._refresh(derived.path))
        self._every(node_config.path_period, lambda: self._refresh(derived.keyframes))

    @transition
    def on_deactivate(self, state: LifecycleState) -> None:
        self._halt(drain=self._active_pipeline.node_config.queue == "all")

    @transition
    def on_cleanup(self, state: LifecycleState) -> None:
        self.release()

    @transition
    def on_shutdown(self, state: LifecycleState) -> None:
        self.release()

    @transition
    def on_error(self, state: LifecycleState) -> None:
        self.release()

    def start(self) -> bool:
        """Configure and activate, as a lifecycle manager would; False when one of them fails."""
        return self.trigger_configure() == SUCCESS and self.trigger_activate() == SUCCESS

    def _halt(self, drain: bool = False) -> None:
        """No more input; finish what is being done."""
        for timer in self._own_timers:
            self.destroy_timer(timer)
        self._own_timers.clear()
        self._inputs.close()
        if not self._worker.stop(DRAIN_TIMEOUT_S if drain else STOP_TIMEOUT_S, drain):
            self.get_logger().error("the worker is still busy; what it does is abandoned")

    def release(self) -> None:
        """Take everything down that `on_configure` set up, as far as it came, and drop the map."""
        self._undo.close()
        self._pipeline = None

    # -- what comes in (executor's thread) -------------------------------------------------------------------

    def _deliver(self, pair: Pair) -> None:
        if self._active_pipeline.paused:
            self._statistics.count("dropped")
        else:
            self._worker.offer(pair)

    def _hand_over(self, take: Callable[[Any], None], message: Any) -> None:
        """Have the worker take a message that no frame waits for."""
        self._worker.submit(functools.partial(take, message)).add_done_callback(self._say_failure)

    def _apply(self, config: Config, node_config: NodeConfig) -> None:
        pipeline = self._pipeline
        if pipeline is not None:
            self._in_worker(lambda: pipeline.apply(config, node_config))

    def _watch_clock(self) -> None:
        """Simulated time that jumps back means a recording that begins anew."""
        threshold = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-0.1), on_clock_change=False)
        jumps = self.get_clock().create_jump_callback(threshold, post_callback=self._on_clock_jump)
        self._undo.callback(jumps.unregister)

    def _on_clock_jump(self, jump: Any) -> None:
        if self._pipeline is not None and self._statistics.counts["processed"]:
            self.get_logger().warning(f"the clock jumped back by {-jump.delta.nanoseconds / 1e9:.1f} s: starting anew")
            self._in_worker(self._pipeline.begin_anew)

    # -- services --------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        # Answers wait for other threads, and must not hold up the images meanwhile.
        group = ReentrantCallbackGroup()
        for topic, callback in (
            (interface.RESET, self._on_reset),
            (interface.PAUSE, self._on_pause),
            (interface.SAVE_MAP, self._on_save_map),
            (interface.LOAD_MAP, self._on_load_map),
            (interface.LOCALIZE_ONLY, self._on_localize_only),
        ):
            service = self.create_service(topic.type, topic.name, callback, callback_group=group)
            self._undo.callback(self.destroy_service, service)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="recon_writer")
        self._undo.callback(self._writer.shutdown)
        # Reading the whole cloud takes as long as it is large, and tracking must not wait for it.
        self._drawer = ThreadPoolExecutor(1, thread_name_prefix="recon_drawer")
        self._undo.callback(self._drawer.shutdown)

    async def _on_reset(self, request: Any, response: Any) -> Any:
        return await self._answer(response, self._reset())

    async def _on_save_map(self, request: Any, response: Any) -> Any:
        return await self._answer(response, self._save_map())

    async def _on_load_map(self, request: Any, response: Any) -> Any:
        return await self._answer(response, self._load_map())

    def _on_localize_only(self, request: Any, response: Any) -> Any:
        mode = Parameter("mode", value="localization" if request.data else "mapping")
        result = self.set_parameters([mode])[0]
        response.success, response.message = result.successful, result.reason or mode.value
        return response

    def _on_pause(self, request: Any, response: Any) -> Any:
        self._active_pipeline.paused = bool(request.data)
        self._active_pipeline.publish_status()
        response.success, response.message = True, self._active_pipeline.state.value
        return response

    async def _reset(self) -> str:
        await self._done(self._in_worker(self._active_pipeline.reset))
        return "map, poses and memory are forgotten"

    async def _save_map(self) -> str:
        pipeline = self._active_pipeline
        folder = map_folder(pipeline.config.map)
        snapshot = await self._done(self._in_worker(pipeline.snapshot))
        return str(await self._done(self._writer.submit(lambda: write_snapshot(snapshot(), folder))))

    async def _load_map(self) -> str:
        pipeline = self._active_pipeline
        path = pipeline.config.map.path
        if not path:
            raise ReconError("which map is to be loaded? set the parameter map.path to its folder")
        data = await self._done(self._writer.submit(read_map, path))
        atlas = await self._done(self._writer.submit(pipeline.reconstructor.restored, data))
        try:
            await self._done(self._in_worker(lambda: pipeline.go_on_with(atlas)))
        except CancelledError:  # the node was stopped meanwhile
            atlas.close()
            raise
        return f"{path}: {len(data.keyframes)} keyframes"

    async def _answer(self, response: Any, work: Coroutine[Any, Any, str]) -> Any:
        """The result of `work` as the answer of a service; its failure too, so that nobody waits in vain."""
        try:
            response.message, response.success = await work, True
        except ReconError as error:
            response.message, response.success = str(error), False
        except Exception as error:
            self.get_logger().error(f"a service failed:\n{traceback.format_exc()}")
            response.message, response.success = f"internal error: {error!r}", False
        return response

    def _in_worker(self, command: Callable[[], Result]) -> Job[Result]:
        """Run `command` where the core may be touched: in the worker, or here and now when it does not run."""
        job = self._worker.submit(command)
        if job.cancelled():
            job = Job()
            try:
                job.set_result(command())
            except Exception as error:  # raised again for whoever asks the job
                job.set_exception(error)
        return job

    async def _done(self, job: Job[Result]) -> Result:
        """Wait for another thread's job without holding the executor up."""
        executor, finished = self.executor, Future(executor=self.executor)
        job.add_done_callback(lambda _: executor.create_task(finished.set_result, None))
        await finished
        return job.result()

    # -- timers (steady clock: they go on when simulated time stands still) ----------------------------------

    def _every(self, period: float, callback: Callable[[], None]) -> None:
        self._own_timers.append(self.create_timer(period, callback, clock=self._steady))

    def _tell(self) -> None:
        """/diagnostics, and ~/status and warnings if no frame has brought them."""
        pipeline = self._active_pipeline
        pipeline.outputs.publish(interface.DIAGNOSTICS, self._diagnostics.array())
        pipeline.say_warnings()
        if pipeline.seconds_since_status() > STATUS_PERIOD_S / 2:
            pipeline.publish_status()

    def _refresh(self, publish: Callable[[], None], thread: ThreadPoolExecutor | None = None) -> None:
        """Have the worker, or another thread, publish what is derived from the whole map, unless it still does."""
        name = publish.__name__
        if name not in self._refreshing:
            self._refreshing.add(name)
            job = (thread or self._worker).submit(publish)
            job.add_done_callback(functools.partial(self._refreshed, name))

    def _refreshed(self, name: str, job: Job[None]) -> None:
        self._refreshing.discard(name)
        self._say_failure(job)

    def _say_failure(self, job: Job[None]) -> None:
        """What nobody waits for may fail, but not unheard."""
        if not job.cancelled() and isinstance(error := job.exception(), Exception):
            self._active_pipeline.failed(error)

    # --------------------------------------------------------------------------------------------------------

    @property
    def _active_pipeline(self) -> Pipeline:
        assert self._pipeline is not None, "used between configure and cleanup only"
        return self._pipeline

    def _warn_of_unknown_parameters(self) -> None:
        unknown = self._options.unknown()
        if unknown:
            self.get_logger().warning(
                f"parameters that this node does not have, and which do nothing: {', '.join(unknown)}"
            )


def map_folder(config: MapConfig) -> Path:
    """Where ~/save_map writes to."""
    if config.path:
        return Path(config.path)
    return Path(config.directory) / f"recon_{datetime.now():%Y%m%d_%H%M%S}"


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; 1 when it cannot start."""
    # rclpy's own handlers would invalidate the context under the worker's hands; ours let it finish its frame.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop = stop_on_signals()
    node = ReconNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    undo_logging = say_logs(node.get_logger())
    try:
        if node.build_only:
            return 0 if node.build(stop, lambda: executor.spin_once(timeout_sec=STOP_LATENCY_S)) else 1
        if node.autostart and not node.start():
            return 1
        spin(node, executor, stop)
        node.trigger_shutdown()
        return 0
    finally:
        undo_logging()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    sys.exit(main())
