# SPDX-License-Identifier: Apache-2.0
"""recon_ros: a camera stream in, a live, metric, bounded 3D map out.

from recon_ros import Config, Frame, Reconstructor

reconstructor = Reconstructor(Config())
update = reconstructor.process(Frame(stamp_ns, image, camera, depth))
cloud = reconstructor.map_cloud()
"""

from recon_ros.config import Config
from recon_ros.errors import ReconError
from recon_ros.frame import Camera, Frame, Update
from recon_ros.reconstructor import Reconstructor
from recon_ros.runtimes.torch_network import load_network

__all__ = ["Camera", "Config", "Frame", "ReconError", "Reconstructor", "Update", "load_network"]
__version__ = "0.1.0"
