#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Build `tf2_msgs` (one message, TFMessage) into the running virtual environment.

PyPI carries ROS 2 Jazzy as wheels, but not tf2_msgs. A ROS interface is generated code plus a few small
shared libraries, so the generators of the runtime wheels and seven compiler calls are all it takes (about
4 s, no cmake). The type hash must equal that of the real package: only then do nodes of a real ROS
installation talk to ours on /tf, so the build stops where it differs.

Run it with the interpreter of the environment: `.venv/bin/python scripts/build_tf2_msgs.py`.
Exit status: 0 built or already there, 3 no compiler or no Python headers (run without TF), 1 failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

PACKAGE = "tf2_msgs"
TYPE_HASH = "RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087"
IDL = """\
#include "geometry_msgs/msg/TransformStamped.idl"

module tf2_msgs {
  module msg {
    struct TFMessage {
      sequence<geometry_msgs::msg::TransformStamped> transforms;
    };
  };
};
"""
MSG = "geometry_msgs/TransformStamped[] transforms\n"
PACKAGE_XML = """\
<?xml version="1.0"?>
<package format="3">
  <name>tf2_msgs</name>
  <version>0.36.0</version>
  <description>TFMessage only, built from the generators of the ROS wheels.</description>
  <maintainer email="maintainers@recon-ros.invalid">recon_ros</maintainer>
  <license>BSD-3-Clause</license>
  <depend>geometry_msgs</depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
</package>
"""
INTERFACE_PACKAGES = ("geometry_msgs", "std_msgs", "builtin_interfaces")
NO_TOOLS = 3


class BuildError(Exception):
    """The build cannot go on; the message says why in one sentence."""


class MissingTools(BuildError):
    """A compiler or the Python headers are not there."""


def is_importable() -> bool:
    """Whether tf2_msgs and its C type support load (in a child, as a failed load poisons this process)."""
    code = (
        "from tf2_msgs.msg import TFMessage\n"
        "from rclpy.type_support import check_for_type_support\n"
        "check_for_type_support(TFMessage)\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def find_compilers() -> tuple[list[str], list[str]]:
    """The C and C++ compilers (CC and CXX are honoured)."""
    c = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    cxx = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if not c or not cxx:
        raise MissingTools("no C and C++ compiler found (Debian and Ubuntu: apt install gcc g++)")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise MissingTools(f"no headers of Python {version} found (Debian and Ubuntu: apt install python{version}-dev)")
    return c.split(), cxx.split()


def generate(work: Path, share: Path) -> Path:
    """Run the rosidl generators; returns the folder with all generated sources.

    The generators' classes are used directly: the `rosidl` command finds each of them twice in the wheels
    (dist-info and egg-info) and stops on the duplicate.
    """
    from rosidl_generator_c.cli import GenerateC
    from rosidl_generator_py.cli import GeneratePython
    from rosidl_generator_type_description.cli import HashTypeDescription
    from rosidl_typesupport_c.cli import GenerateCTypesupport
    from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
    from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

    source = work / PACKAGE
    (source / "msg").mkdir(parents=True)
    (source / "msg" / "TFMessage.idl").write_text(IDL)
    (source / "msg" / "TFMessage.msg").write_text(MSG)
    interfaces = [f"{source}:msg/TFMessage.idl"]
    includes = [str(share / name) for name in INTERFACE_PACKAGES]

    hashes = HashTypeDescription("type_description").generate_type_hashes(PACKAGE, interfaces, includes, work / "hash")
    found = json.loads(Path(hashes[0]).read_text())["type_hashes"][0]["hash_string"]
    if found != TYPE_HASH:
        raise BuildError(f"the type hash of TFMessage is {found}, that of the real package {TYPE_HASH}")
    shutil.copy(hashes[0], source / "msg" / "TFMessage.json")

    # One folder per generator: C and introspection_c both write msg/detail/tf_message__*.c.
    out = {name: work / name / PACKAGE for name in ("c", "py", "ts_c", "fastrtps", "introspection")}
    GenerateC("c").generate(PACKAGE, interfaces, includes, out["c"], type_description_files=hashes)
    implementations = ["rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c"]
    GeneratePython("py", typesupport_implementations=["rosidl_typesupport_c", *implementations]).generate(
        PACKAGE, interfaces, includes, out["py"]
    )
    try:
        GenerateCTypesupport("c", typesupport_implementations=implementations).generate(
            PACKAGE, interfaces, includes, out["ts_c"]
        )
        GenerateFastRTPSCTypesupport("fastrtps_c").generate(PACKAGE, interfaces, includes, out["fastrtps"])
        GenerateIntrospectionCTypesupport("introspection_c").generate(
            PACKAGE, interfaces, includes, out["introspection"]
        )
    except TypeError as error:
        # Some of these generators return None where their command class expects a list; the sources are
        # written by then. Anything really missing stops the compiler below.
        if "NoneType" not in str(error):
            raise
    return work


def compile_all(work: Path, prefix: Path, compilers: tuple[list[str], list[str]]) -> dict[str, Path]:
    """Compile the four C libraries, the Python conversion library and two of its entry points."""
    import numpy

    c, cxx = compilers
    build = work / "build"
    build.mkdir()
    includes = [f"-I{work / name}" for name in ("c", "py", "ts_c", "fastrtps", "introspection")]
    includes += [f"-I{path}" for path in sorted((prefix / "include").iterdir()) if path.is_dir()]
    includes += [f"-I{path}" for path in (prefix / "include", sysconfig.get_paths()["include"])]
    includes.append(f"-I{numpy.get_include()}")
    base = ["-O2", "-fPIC", "-shared", "-w", *includes]
    # Libraries of the wheels name libraries of other wheels, which the loader finds at run time.
    link = [f"-L{build}", f"-L{prefix / 'lib'}", "-Wl,--allow-shlib-undefined"]
    # The wheels' library path in LD_LIBRARY_PATH is for Python; the compiler must not see it.
    env = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    built: dict[str, Path] = {}

    def sources(folder: str, pattern: str) -> list[str]:
        found = sorted(str(path) for path in (work / folder).rglob(pattern))
        if not found:
            raise BuildError(f"the generator of {folder} wrote no {pattern}")
        return found

    def compile_one(name: str, compiler: list[str], files: list[str], libraries: list[str]) -> None:
        target = build / name
        command = [*compiler, *base, *files, "-o", str(target), *link, *(f"-l{item}" for item in libraries)]
        result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        if result.returncode:
            tail = "\n".join(result.stderr.strip().splitlines()[-12:])
            raise BuildError(f"compiling {name} failed:\n{tail}")
        built[name] = target

    runtime = ["rosidl_runtime_c", "rcutils"]
    generator_c = f"{PACKAGE}__rosidl_generator_c"
    introspection = "rosidl_typesupport_introspection_c"
    geometry = "geometry_msgs__rosidl"
    compile_one(f"lib{generator_c}.so", c, sources("c", "*.c"), [f"{geometry}_generator_c", *runtime])
    compile_one(
        f"lib{PACKAGE}__rosidl_typesupport_fastrtps_c.so",
        cxx,
        sources("fastrtps", "*.cpp"),
        [
            *(generator_c, f"{geometry}_typesupport_fastrtps_c", "rosidl_typesupport_fastrtps_c"),
            *("rosidl_typesupport_fastrtps_cpp", "fastcdr", "rmw", *runtime),
        ],
    )
    compile_one(
        f"lib{PACKAGE}__{introspection}.so",
        c,
        sources("introspection", "*.c"),
        [generator_c, f"geometry_msgs__{introspection}", introspection, *runtime],
    )
    compile_one(
        f"lib{PACKAGE}__rosidl_typesupport_c.so",
        cxx,
        sources("ts_c", "*.cpp"),
        [generator_c, "rosidl_typesupport_c", *runtime],
    )
    message_sources = [path for path in sources("py", "*_s.c") if ".ep." not in path]
    generator_py = f"{PACKAGE}__rosidl_generator_py"
    compile_one(
        f"lib{generator_py}.so",
        c,
        message_sources,
        [generator_c, f"{PACKAGE}__rosidl_typesupport_c", f"{geometry}_generator_py", *runtime],
    )
    typesupport = f"{PACKAGE}__rosidl_typesupport_c"
    # The introspection entry point is left out: rclpy asks for rosidl_typesupport_c only, which loads the
    # Fast DDS library; the introspection library above is needed by rmw at run time.
    for support in ("rosidl_typesupport_c", "rosidl_typesupport_fastrtps_c"):
        compile_one(
            f"{PACKAGE}_s__{support}.so",
            c,
            sources("py", f"_{PACKAGE}_s.ep.{support}.c"),
            [generator_py, generator_c, typesupport, f"{PACKAGE}__{support}", *runtime],
        )
    return built


def install(work: Path, built: dict[str, Path], prefix: Path) -> None:
    """Copy libraries, the Python package and the share folder into the environment."""
    site = Path(sysconfig.get_paths()["platlib"])
    package = site / PACKAGE
    if package.exists():
        shutil.rmtree(package)
    shutil.copytree(work / "py" / PACKAGE, package, ignore=shutil.ignore_patterns("*.c"))
    for folder in (package, package / "msg"):
        (folder / "__init__.py").touch()
    for name, path in built.items():
        shutil.copy(path, (prefix / "lib" if name.startswith("lib") else package) / name)
    share = prefix / "share" / PACKAGE
    shutil.copytree(work / PACKAGE / "msg", share / "msg", dirs_exist_ok=True)
    (share / "package.xml").write_text(PACKAGE_XML)
    index = prefix / "share" / "ament_index" / "resource_index"
    for kind, content in (
        ("packages", ""),
        ("rosidl_interfaces", "msg/TFMessage.idl\nmsg/TFMessage.json\nmsg/TFMessage.msg\n"),
    ):
        (index / kind).mkdir(parents=True, exist_ok=True)
        (index / kind / PACKAGE).write_text(content)


def build(prefix: Path) -> None:
    """Generate, compile and install into `prefix`, then prove that the message loads."""
    share = prefix / "share"
    if not (share / "geometry_msgs" / "msg" / "TransformStamped.json").is_file():
        raise BuildError(f"no ROS wheels in {prefix}: install requirements/ros.txt first")
    compilers = find_compilers()
    os.environ["AMENT_PREFIX_PATH"] = str(prefix)  # where the generators look for their templates
    with tempfile.TemporaryDirectory(prefix="tf2_msgs_") as folder:
        work = generate(Path(folder), share)
        install(work, compile_all(work, prefix, compilers), prefix)
    if not is_importable():
        raise BuildError("tf2_msgs was built but its type support does not load")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build tf2_msgs into this virtual environment.")
    parser.add_argument("--force", action="store_true", help="build also where tf2_msgs is importable")
    arguments = parser.parse_args(argv)
    if not arguments.force and is_importable():
        print("tf2_msgs is there already")
        return 0
    if importlib.util.find_spec("rclpy") is None:
        print("tf2_msgs: rclpy is not installed here", file=sys.stderr)
        return 1
    begin = time.monotonic()
    try:
        build(Path(sys.prefix))
    except MissingTools as error:
        print(f"tf2_msgs not built: {error}", file=sys.stderr)
        return NO_TOOLS
    except BuildError as error:
        print(f"tf2_msgs not built: {error}", file=sys.stderr)
        return 1
    seconds = time.monotonic() - begin
    print(f"tf2_msgs built in {seconds:.1f} s, type hash {TYPE_HASH[:16]}… as in ROS 2 Jazzy")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
