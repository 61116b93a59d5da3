# SPDX-License-Identifier: Apache-2.0
"""The only room with rclpy: a lifecycle node around the core, and what it needs to speak ROS 2."""
