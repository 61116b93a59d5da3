# SPDX-License-Identifier: Apache-2.0
"""recon_node for a ZED (zed-ros2-wrapper 5.1 or later); every other argument is recon.launch.py's.

    ros2 launch zed_wrapper zed_camera.launch.py camera_model:=zed2i publish_tf:=false publish_map_tf:=false
    ros2 launch recon_ros recon_zed.launch.py rviz:=true

The wrapper broadcasts map → odom → base itself unless it is told not to, as above. Before 5.1 the topics were
/zed/zed_node/rgb/image_rect_color and /zed/zed_node/rgb/camera_info.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

TOPICS = {
    "image_topic": "/zed/zed_node/rgb/color/rect/image",
    "camera_info_topic": "/zed/zed_node/rgb/color/rect/camera_info",
    "depth_topic": "/zed/zed_node/depth/depth_registered",
}


def generate_launch_description():
    launch = os.path.join(get_package_share_directory("recon_ros"), "launch", "recon.launch.py")
    include = IncludeLaunchDescription(PythonLaunchDescriptionSource(launch), launch_arguments=TOPICS.items())
    return LaunchDescription([include])
