#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Not built in CI. ROS, the venv and the workspace, then the command.
set -e
for setup in "/opt/ros/$ROS_DISTRO/setup.bash" "/opt/ros/$ROS_DISTRO/install/setup.bash"; do
  if [ -f "$setup" ]; then source "$setup"; fi
done
source /ws/venv/bin/activate
source /ws/install/setup.bash
exec "$@"
