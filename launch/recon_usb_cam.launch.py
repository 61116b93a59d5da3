# SPDX-License-Identifier: Apache-2.0
"""recon_node for a colour camera without depth; every other argument is recon.launch.py's.

    ros2 run usb_cam usb_cam_node_exe --ros-args -p camera_info_url:=file:///path/to/calibration.yaml
    ros2 launch recon_ros recon_usb_cam.launch.py params_file:=…

Without depth the points must come from a network: the parameter file has to name one as `source`.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

TOPICS = {
    "image_topic": "/image_raw",
    "camera_info_topic": "/camera_info",
    "depth_topic": "",
}


def generate_launch_description():
    launch = os.path.join(get_package_share_directory("recon_ros"), "launch", "recon.launch.py")
    include = IncludeLaunchDescription(PythonLaunchDescriptionSource(launch), launch_arguments=TOPICS.items())
    return LaunchDescription([include])
