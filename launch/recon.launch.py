# SPDX-License-Identifier: Apache-2.0
"""Start recon_node, and if wanted a recording, rviz and the Foxglove bridge.

    ros2 launch recon_ros recon.launch.py image_topic:=/camera/image_raw rviz:=true
    ros2 launch recon_ros recon.launch.py bag:=office/ rviz:=true
    ros2 launch recon_ros recon.launch.py build_only:=true params_file:=my_network.yaml
    ros2 launch recon_ros recon.launch.py --show-args

The node configures and activates itself (autostart); with autostart:=false a lifecycle manager does. For Humble
and Jazzy. A Python node cannot be composed into a container, so there is no container_name.
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PythonExpression
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = get_package_share_directory("recon_ros")
BOOLEAN = ["true", "false"]

ARGUMENTS = [
    DeclareLaunchArgument(
        "image_topic", default_value="/camera/image_raw", description="Colour image, without the transport"
    ),
    DeclareLaunchArgument(
        "camera_info_topic", default_value="/camera/camera_info", description="Calibration of that image"
    ),
    DeclareLaunchArgument(
        "depth_topic",
        default_value="/camera/depth/image_raw",
        description="Depth image registered to the colour image; empty: there is none",
    ),
    DeclareLaunchArgument(
        "odom_topic",
        default_value="/odom",
        description="Odometry, if parameter odom_source is topic",
    ),
    DeclareLaunchArgument(
        "imu_topic", default_value="/imu", description="IMU that tells what is down, if parameter gravity is imu"
    ),
    DeclareLaunchArgument(
        "mask_topic", default_value="/mask", description="What moves in the image, if parameter input.mask is true"
    ),
    DeclareLaunchArgument(
        "object_mask_topic", default_value="/object_mask", description="Objects in the image, for ~/object_points"
    ),
    DeclareLaunchArgument(
        "image_transport",
        default_value="raw",
        choices=["raw", "compressed"],
        description="Transport of the colour image",
    ),
    DeclareLaunchArgument(
        "depth_transport",
        default_value="raw",
        choices=["raw", "compressed"],
        description="Transport of the depth image: raw, or compressed for <depth_topic>/compressedDepth",
    ),
    DeclareLaunchArgument(
        "params_file",
        default_value=os.path.join(SHARE, "config", "recon.yaml"),
        description="Parameters of the node; the arguments here win over it",
    ),
    DeclareLaunchArgument("namespace", default_value="", description="Namespace of the node"),
    DeclareLaunchArgument(
        "namespace_tf",
        default_value="false",
        choices=BOOLEAN,
        description="Use <namespace>/tf instead of the one global /tf",
    ),
    DeclareLaunchArgument(
        "use_sim_time",
        default_value=PythonExpression(["'false' if '", LaunchConfiguration("bag"), "' == '' else 'true'"]),
        choices=BOOLEAN,
        description="Take the time from /clock; default: true if a bag is given",
    ),
    DeclareLaunchArgument(
        "autostart",
        default_value="true",
        choices=BOOLEAN,
        description="Configure and activate at once; false leaves that to a lifecycle manager",
    ),
    DeclareLaunchArgument(
        "build_only",
        default_value="false",
        choices=BOOLEAN,
        description="Build the engines that the source lacks, for images of engine.size, and end",
    ),
    DeclareLaunchArgument("map_frame", default_value="map", description="Frame of the map"),
    DeclareLaunchArgument("odom_frame", default_value="odom", description="Frame of the odometry"),
    DeclareLaunchArgument("base_frame", default_value="base_link", description="Frame of the robot"),
    DeclareLaunchArgument(
        "publish_tf",
        default_value="true",
        choices=BOOLEAN,
        description="Broadcast map → odom, and odom → base unless the robot has odometry of its own",
    ),
    DeclareLaunchArgument(
        "odom_source",
        default_value="none",
        choices=["none", "topic", "tf"],
        description="Where odometry comes from: from nowhere, from odom_topic, or from TF odom → base",
    ),
    DeclareLaunchArgument(
        "gravity",
        default_value="none",
        choices=["none", "imu", "base"],
        description="How the map gets level: not, from imu_topic, or because base_frame always stands level",
    ),
    DeclareLaunchArgument("bag", default_value="", description="Recording to play; empty: a live camera"),
    DeclareLaunchArgument("rate", default_value="1.0", description="Speed of the recording"),
    DeclareLaunchArgument(
        "loop", default_value="false", choices=BOOLEAN, description="Play the recording again and again"
    ),
    DeclareLaunchArgument("rviz", default_value="false", choices=BOOLEAN, description="Start rviz"),
    DeclareLaunchArgument(
        "rviz_config",
        default_value=os.path.join(SHARE, "rviz", "recon.rviz"),
        description="Configuration of rviz",
    ),
    DeclareLaunchArgument(
        "foxglove",
        default_value="false",
        choices=BOOLEAN,
        description="Start foxglove_bridge on port 8765; import foxglove/recon.json as the layout",
    ),
    DeclareLaunchArgument(
        "log_level",
        default_value="info",
        choices=["debug", "info", "warn", "error", "fatal"],
        description="What the node logs",
    ),
]


def parameter(name, kind):
    """The launch argument as a node parameter of that type."""
    return {name: ParameterValue(LaunchConfiguration(name), value_type=kind)}


def start_node(context):
    """The node, its topics remapped."""

    def value(name):
        return LaunchConfiguration(name).perform(context)

    remappings = [
        ("image", value("image_topic")),
        ("camera_info", value("camera_info_topic")),
        ("odom", value("odom_topic")),
        ("imu", value("imu_topic")),
        ("mask", value("mask_topic")),
        ("object_mask", value("object_mask_topic")),
    ]
    if value("depth_topic"):
        remappings.append(("depth", value("depth_topic")))
    if value("namespace_tf") == "true":
        remappings += [("/tf", "tf"), ("/tf_static", "tf_static")]
    node = LifecycleNode(
        package="recon_ros",
        executable="recon_node",
        name="recon",
        namespace=value("namespace"),
        output="screen",
        remappings=remappings,
        arguments=["--ros-args", "--log-level", value("log_level")],
        parameters=[
            value("params_file"),
            parameter("use_sim_time", bool),
            parameter("autostart", bool),
            parameter("build_only", bool),
            parameter("map_frame", str),
            parameter("odom_frame", str),
            parameter("base_frame", str),
            parameter("publish_tf", bool),
            parameter("odom_source", str),
            parameter("gravity", str),
            parameter("image_transport", str),
            parameter("depth_transport", str),
            {"use_depth": value("depth_topic") != ""},
        ],
    )
    return [node]


def play_bag(context):
    """`ros2 bag play` with a clock, if a recording is given."""
    bag = LaunchConfiguration("bag").perform(context)
    if not bag:
        return []
    command = ["ros2", "bag", "play", bag, "--clock", "--rate", LaunchConfiguration("rate").perform(context)]
    if LaunchConfiguration("loop").perform(context) == "true":
        command.append("--loop")
    return [ExecuteProcess(cmd=command, output="screen")]


def dds_profile():
    """Shared memory for whole images and clouds, unless the user has a profile already."""
    if "FASTRTPS_DEFAULT_PROFILES_FILE" in os.environ:
        return []
    profile = os.path.join(SHARE, "config", "fastdds.xml")
    return [SetEnvironmentVariable("FASTRTPS_DEFAULT_PROFILES_FILE", profile)]


def generate_launch_description():
    sim_time = parameter("use_sim_time", bool)
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", LaunchConfiguration("rviz_config")],
        parameters=[sim_time],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    # The bridge drops messages above its send buffer of 10 MB; map.max_points keeps ~/map below that.
    foxglove = Node(
        package="foxglove_bridge",
        executable="foxglove_bridge",
        parameters=[sim_time],
        condition=IfCondition(LaunchConfiguration("foxglove")),
    )
    actions = [OpaqueFunction(function=start_node), OpaqueFunction(function=play_bag), rviz, foxglove]
    return LaunchDescription([*ARGUMENTS, *dds_profile(), *actions])
