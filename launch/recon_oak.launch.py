# SPDX-License-Identifier: Apache-2.0
"""recon_node for a Luxonis OAK-D; every other argument is recon.launch.py's.

    ros2 launch depthai_ros_driver rgbd_pcl.launch.py
    ros2 launch recon_ros recon_oak.launch.py rviz:=true

The depth must be aligned to the colour camera (stereo.i_align_depth, on by default in the RGBD pipeline).
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

TOPICS = {
    "image_topic": "/oak/rgb/image_raw",
    "camera_info_topic": "/oak/rgb/camera_info",
    "depth_topic": "/oak/stereo/image_raw",
}


def generate_launch_description():
    launch = os.path.join(get_package_share_directory("recon_ros"), "launch", "recon.launch.py")
    include = IncludeLaunchDescription(PythonLaunchDescriptionSource(launch), launch_arguments=TOPICS.items())
    return LaunchDescription([include])
