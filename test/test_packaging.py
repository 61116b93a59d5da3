# SPDX-License-Identifier: Apache-2.0
"""The package as others install it: package.xml, setup files, entry points, wheel, colcon."""

from __future__ import annotations

import configparser
import contextlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from recon_ros.errors import ConfigError
from recon_ros.resources import share_file

ROOT = Path(__file__).resolve().parents[1]
DATA_FOLDERS = ("launch", "config", "rviz", "foxglove", "models")
CODE_FOLDERS = ("recon_ros", "test", "benchmarks", "scripts", "launch")

# Keys that rosdep resolves to apt packages or that are ROS packages, on Humble and on Jazzy. Before adding
# one, look it up: `rosdep resolve KEY`. No *-pip key (Ubuntu 24.04 refuses them), no torch, no TensorRT.
ROSDEP_KEYS = {
    *("ament_index_python", "launch", "launch_ros", "rclpy", "ros2bag", "ros2launch", "rosbag2_py"),
    *("rosbag2_storage_mcap", "sensor_msgs_py", "tf2_ros", "tf2_ros_py", "builtin_interfaces"),
    *("diagnostic_msgs", "geometry_msgs", "lifecycle_msgs", "nav_msgs", "rcl_interfaces", "rosgraph_msgs"),
    *("sensor_msgs", "std_msgs", "std_srvs", "tf2_msgs", "visualization_msgs"),
    *("python3-matplotlib", "python3-numpy", "python3-opencv", "python3-pil", "python3-psutil"),
    *("python3-pytest", "python3-rich", "python3-scipy", "python3-tqdm", "python3-typer", "python3-yaml"),
}


@pytest.fixture(scope="module")
def manifest() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


@pytest.fixture(scope="module")
def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def entry_points(config: configparser.ConfigParser) -> dict[str, str]:
    """The console scripts, as {name: module:function}."""
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    pairs = [line.split("=") for line in lines if line]
    return {name.strip(): target.strip() for name, target in pairs}


def load_setup_module() -> dict[str, list[str]]:
    """The data_files of setup.py, as {destination: files}."""
    spec = importlib.util.spec_from_file_location("recon_ros_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.find_data_files())


def run(command: list[str], cwd: Path = ROOT) -> str:
    """The output of a command; fails the test with all it said.

    Without what would let the source tree or this environment's settings leak into an installation.
    """
    drop = ("PYTHONPATH", "AMENT_PREFIX_PATH", "VIRTUAL_ENV", "_ROS_WHEELS_BOOTSTRAP_COMPLETE")
    environment = {key: value for key, value in os.environ.items() if key not in drop}
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# --- package.xml and setup.cfg ----------------------------------------------------------------------------


def test_manifest(manifest: ElementTree.Element) -> None:
    assert manifest.tag == "package"
    assert manifest.get("format") == "3"
    assert manifest.findtext("name") == "recon_ros"
    assert manifest.findtext("license") == "Apache-2.0"
    assert manifest.findtext("export/build_type") == "ament_python"


def test_manifest_names_resolvable_keys_only(manifest: ElementTree.Element) -> None:
    keys = {element.text for element in manifest if element.tag.endswith("depend")}
    assert keys <= ROSDEP_KEYS
    assert {"rclpy", "sensor_msgs", "tf2_msgs", "python3-numpy"} <= keys


def test_manifest_names_every_ros_package_used(manifest: ElementTree.Element) -> None:
    """What recon_ros/ros and launch/ import has to be in package.xml, or a fresh robot lacks it."""
    keys = {element.text for element in manifest if element.tag.endswith("depend")}
    used = set()
    for path in [*(ROOT / "recon_ros" / "ros").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r"^\s*(?:from|import)\s+(\w+)", text, re.MULTILINE):
            if name in ROSDEP_KEYS | {"tf2_ros"}:
                used.add("tf2_ros_py" if name == "tf2_ros" else name)  # the Python half has its own package
    # Used when installed, done without when not.
    assert used - {"sensor_msgs_py"} <= keys


def test_versions_agree(manifest: ElementTree.Element, config: configparser.ConfigParser) -> None:
    assert manifest.findtext("version") == config["metadata"]["version"]


def test_ros2_run_layout(config: configparser.ConfigParser) -> None:
    assert config["install"]["install_scripts"] == "$base/lib/recon_ros"
    assert config["develop"]["script_dir"] == "$base/lib/recon_ros"
    assert config["build_scripts"]["executable"] == "/usr/bin/env python3"


def test_entry_points_are_importable(config: configparser.ConfigParser) -> None:
    points = entry_points(config)
    assert points == {"recon": "recon_ros.cli.main:main", "recon_node": "recon_ros.ros.node:main"}
    for target in points.values():
        module, _, function = target.partition(":")
        if module.startswith("recon_ros.ros"):
            pytest.importorskip("rclpy", reason="no ROS here")
        run([sys.executable, "-c", f"import {module} as m; assert callable(m.{function})"])


def test_help_is_light() -> None:
    """`recon --help` loads neither ROS nor torch, and says something."""
    code = (
        "import sys\n"
        "from recon_ros.cli.main import main\n"
        "sys.argv = ['recon', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print('LOADED', *sys.modules)\n"
    )
    text, _, loaded = run([sys.executable, "-c", code]).rpartition("LOADED ")
    assert "Usage" in text
    assert not {name.split(".")[0] for name in loaded.split()} & {"rclpy", "torch"}


# --- Files ------------------------------------------------------------------------------------------------


def test_data_files_exist_and_are_complete() -> None:
    data_files = load_setup_module()
    assert data_files["share/ament_index/resource_index/packages"] == ["resource/recon_ros"]
    assert data_files["share/recon_ros"] == ["package.xml"]
    listed = {file for files in data_files.values() for file in files}
    assert all((ROOT / file).is_file() for file in listed)
    for folder in DATA_FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT)
            if path.is_file() and "__pycache__" not in relative.parts and not path.name.startswith("."):
                assert relative.as_posix() in data_files[f"share/recon_ros/{relative.parent.as_posix()}"]


def code_files() -> Iterator[Path]:
    yield ROOT / "setup.py"
    for folder in CODE_FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_every_python_file_has_its_licence() -> None:
    line = "# SPDX-License-Identifier: Apache-2.0"
    missing = [
        str(path.relative_to(ROOT))
        for path in code_files()
        if line not in path.read_text(encoding="utf-8").split("\n")[:2]
    ]
    assert not missing


def test_no_file_of_its_own_machine() -> None:
    """No absolute path of a developer's machine in what we ship."""
    pattern = re.compile(r"(?<![\w.])/(?:home|work|root|Users|mnt|tmp)/\w+")
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in code_files()
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
        if path.parent != ROOT / "test"
    ]
    assert not found


@pytest.mark.parametrize("lock", ["core", "ros", "dev", "engines"])
def test_locks_are_exact_and_hashed(lock: str) -> None:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[\w.-]+(\[[\w,]+\])?==[\w.]+\b", line), line
        assert "--hash=sha256:" in line, line


def test_locks_cover_setup_cfg(config: configparser.ConfigParser) -> None:
    """Every requirement of setup.cfg is locked; otherwise run scripts/lock.sh."""
    sources = {
        "core": config["options"]["install_requires"],
        "ros": config["options.extras_require"]["ros"],
        "dev": config["options.extras_require"]["dev"],
        "engines": config["options.extras_require"]["export"] + config["options.extras_require"]["rtx"],
    }

    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    for lock, text in sources.items():
        wanted = {normal(match) for match in re.findall(r"^\s*([A-Za-z][\w.-]*)", text, re.MULTILINE)}
        locked_text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
        locked = {normal(match) for match in re.findall(r"^([A-Za-z][\w.-]*)", locked_text, re.MULTILINE)}
        assert wanted <= locked, f"not in requirements/{lock}.txt: {wanted - locked}"


# --- share_file -------------------------------------------------------------------------------------------


def test_share_file_in_the_source_tree() -> None:
    assert share_file("config/fastdds.xml") == ROOT / "config" / "fastdds.xml"
    assert share_file("config").is_dir()


@pytest.mark.parametrize("name", ["config/nothing.yaml", "/etc/passwd", "../setup.py", ""])
def test_share_file_refuses(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(repr(name)) if name != "config/nothing.yaml" else name):
        share_file(name)


def test_share_file_in_a_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with several prefixes, of which the first has no such package."""
    target = tmp_path / "b" / "share" / "recon_ros" / "config" / "only_here.yaml"
    target.parent.mkdir(parents=True)
    target.write_text("")
    monkeypatch.setenv("AMENT_PREFIX_PATH", os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]))
    assert share_file("config/only_here.yaml") == target


# --- Installing for real ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """A copy of what is versioned, so that builds leave nothing in the source tree."""
    with tempfile.TemporaryDirectory(prefix="recon_ros_build_") as folder:
        target = Path(folder) / "src" / "recon_ros"
        target.mkdir(parents=True)
        for name in ("setup.py", "setup.cfg", "pyproject.toml", "package.xml", "LICENSE", "MANIFEST.in"):
            shutil.copy(ROOT / name, target / name)
        (target / "README.md").write_text("# recon_ros\n")
        for name in ("recon_ros", "resource", *DATA_FOLDERS):
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        yield target


FIND_PROFILE = "from recon_ros.resources import share_file; print(share_file('config/fastdds.xml'))"


@pytest.mark.slow
def test_wheel(tree: Path, tmp_path: Path) -> None:
    """A plain pip installation: all modules and data files, found by share_file, and both commands."""
    if importlib.util.find_spec("pip") is None or not can_build_wheels():
        pytest.skip("no pip, or a setuptools that cannot build wheels (make setup installs both)")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(tree)])
    (wheel,) = tmp_path.glob("recon_ros-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "recon_ros").rglob("*.py"):
        assert path.relative_to(ROOT).as_posix() in names

    target = tmp_path / "venv"
    venv.create(target, with_pip=True)
    python = target / "bin" / "python"
    run([str(python), "-m", "pip", "install", "-q", "--no-deps", str(wheel)])
    assert {path.name for path in (target / "bin").glob("recon*")} == {"recon", "recon_node"}
    # The bare environment has none of our dependencies, so only this module is loaded, not the package.
    found = run([str(python), "-c", without_package(FIND_PROFILE)], cwd=tmp_path)
    assert found.strip() == str(target / "share/recon_ros/config/fastdds.xml")


def can_build_wheels() -> bool:
    """Since 70.1 setuptools does it alone, before that with the package `wheel`."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        version = [int(part) for part in importlib.metadata.version("setuptools").split(".")[:2]]
        return version >= [70, 1] or importlib.util.find_spec("wheel") is not None
    return False


def without_package(code: str) -> str:
    """`code`, with an empty module in place of `recon_ros/__init__.py` and what that imports."""
    return (
        "import importlib.util, sys, types\n"
        "package = types.ModuleType('recon_ros')\n"
        "package.__path__ = importlib.util.find_spec('recon_ros').submodule_search_locations\n"
        "sys.modules['recon_ros'] = package\n"
        f"{code}\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--symlink-install",)], ids=["copy", "symlink"])
def test_colcon_build(tree: Path, options: tuple[str, ...]) -> None:
    """`colcon build` leaves what `ros2 run`, `ros2 launch` and share_file look for."""
    if importlib.util.find_spec("colcon_core") is None or importlib.util.find_spec("colcon_ros") is None:
        pytest.skip("colcon is not installed here (make setup installs it)")
    workspace = tree.parents[1]
    for name in ("build", "install", "log"):
        shutil.rmtree(workspace / name, ignore_errors=True)
    run([sys.executable, "-m", "colcon", "build", *options], cwd=workspace)

    prefix = workspace / "install" / "recon_ros"
    for name in ("recon", "recon_node"):
        script = prefix / "lib" / "recon_ros" / name
        assert os.access(script, os.X_OK)
        assert script.read_text().startswith("#!")
    assert (prefix / "share/ament_index/resource_index/packages/recon_ros").is_file()
    assert (prefix / "share/recon_ros/package.xml").is_file()
    for files in load_setup_module().values():
        for file in files:
            if not file.startswith("resource/"):
                assert (prefix / "share/recon_ros" / file).is_file()

    setup = workspace / "install" / "setup.bash"
    command = f'source "{setup}" && cd / && "{sys.executable}" -c "{FIND_PROFILE}"'
    assert Path(run(["bash", "-c", command]).strip()).is_relative_to(workspace)
