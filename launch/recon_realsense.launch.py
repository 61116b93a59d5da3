# SPDX-License-Identifier: Apache-2.0
"""recon_node for a RealSense; every other argument is recon.launch.py's.

ros2 launch realsense2_camera rs_launch.py align_depth.enable:=true enable_sync:=true
ros2 launch recon_ros recon_realsense.launch.py rviz:=true
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

TOPICS = {
    "image_topic": "/camera/camera/color/image_raw",
    "camera_info_topic": "/camera/camera/color/camera_info",
    "depth_topic": "/camera/camera/aligned_depth_to_color/image_raw",
}


def generate_launch_description():
    launch = os.path.join(get_package_share_directory("recon_ros"), "launch", "recon.launch.py")
    include = IncludeLaunchDescription(PythonLaunchDescriptionSource(launch), launch_arguments=TOPICS.items())
    return LaunchDescription([include])
