# SPDX-License-Identifier: Apache-2.0
"""What becomes of an exception in a lifecycle callback."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from recon_ros.errors import ReconError

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
Transition = Callable[[Any, LifecycleState], None]


def transition(method: Transition) -> Callable[[Any, LifecycleState], TransitionCallbackReturn]:
    """A callback of a lifecycle node that fails with one sentence for what can be expected, after which the node's
    `release` takes down what was set up, and with a trace for what cannot.

    rclpy itself swallows exceptions of transitions without a word.
    """

    @functools.wraps(method)
    def run(self: Any, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            method(self, state)
        except ReconError as error:
            self.get_logger().error(f"cannot {method.__name__.removeprefix('on_')}: {error}")
            self.release()
            return FAILURE
        except Exception:
            self.get_logger().error(f"{method.__name__} failed:\n{traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR
        return SUCCESS

    return run
