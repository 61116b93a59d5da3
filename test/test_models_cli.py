# SPDX-License-Identifier: Apache-2.0
"""`recon models`: cards, and weights that are fetched, checked and converted; the only network is 127.0.0.1."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from model_card import TINY, write_card
from typer.testing import CliRunner

from recon_ros.cli.models import models
from recon_ros.networks import cards
from recon_ros.networks.cards import find_card, list_cards

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Server:
    """A web server that hands out one file, well or badly."""

    content: bytes = b""
    version: str = '"v1"'
    knows_ranges: bool = True
    stops_after: int | None = None
    status: int | None = None
    asked: list[str | None] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    behaviour = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            behaviour.asked.append(wanted)
            if behaviour.status:
                self.send_error(behaviour.status)
                return
            start, total = 0, len(behaviour.content)
            if wanted and behaviour.knows_ranges and self.headers.get("If-Range") == behaviour.version:
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
                if start >= total:
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            self.send_header("ETag", behaviour.version)
            self.send_header("Content-Length", str(total - start))
            self.end_headers()
            self.wfile.write(behaviour.content[start : behaviour.stops_after])

        def log_message(self, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    behaviour.address = f"http://127.0.0.1:{http.server_port}/tiny.pth"
    yield behaviour
    http.shutdown()
    http.server_close()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with one card, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(cards, "share_file", lambda name: tmp_path / name)
    write_card(tmp_path / "models")
    return tmp_path


def run(*arguments: object, code: int = 0) -> str:
    """What `recon models …` says, on one line."""
    result = CliRunner().invoke(models, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def weights(folder: Path, name: str = "tiny.pth") -> Path:
    return folder / "cache" / "recon_ros" / "weights" / name


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A weight file of the very small network as its authors would publish it."""
    torch = pytest.importorskip("torch", reason="needs torch")
    from recon_ros.networks.dust3r import Dust3r, Dust3rConfig

    path = tmp_path_factory.mktemp("published") / "tiny.pth"
    torch.save({"args": None, "model": Dust3r(Dust3rConfig(**TINY)).state_dict()}, path)
    return path.read_bytes()


def test_list_names_every_network_and_what_is_here(folder: Path) -> None:
    shutil.copytree(ROOT / "models", folder / "models", dirs_exist_ok=True)
    said = run("list")
    for card in list_cards(ROOT / "models"):
        assert card.name in said
    assert said.count("here, ") == 1  # what is shipped
    weights(folder).parent.mkdir(parents=True)
    weights(folder).write_bytes(b"x")
    assert "here, 0.00 GB" in (said := run("list")) and said.count("here, ") == 2


# Fetching


def test_nothing_is_fetched_before_the_licence_is_accepted(folder: Path, server: Server, published: bytes) -> None:
    server.content = published
    said = run("fetch", "tiny", "--from", server.address, code=1)
    assert "CC-BY-NC-SA-4.0" in said
    assert "non-commercial" in said
    assert "--accept-license" in said
    assert server.asked == []
    said = run("fetch", "tiny", "--from", server.address, "--accept-license")
    digest = hashlib.sha256(published).hexdigest()
    assert digest in said
    assert weights(folder).read_bytes() == published
    assert (weights(folder).parent / "tiny.pth.sha256").read_text().split() == [digest, "tiny.pth"]
    assert sorted(path.name for path in weights(folder).parent.iterdir()) == ["tiny.pth", "tiny.pth.sha256"]
    assert "is here already" in run("fetch", "tiny")
    # Accepted once, for every file under the same terms; not for other terms.
    write_card(folder / "models", "second", weights_file="second.pth")
    assert "licensed under" not in run("fetch", "second", "--from", server.address)
    write_card(folder / "models", "third", weights_file="third.pth", weights_terms="Not on Sundays.")
    assert "Not on Sundays." in run("fetch", "third", "--from", server.address, code=1)


def test_a_broken_download_goes_on_where_it_stopped(folder: Path, server: Server) -> None:
    server.content, server.stops_after = bytes(range(256)) * 40_000, 3_000_000
    said = run("fetch", "tiny", "--from", server.address, "--accept-license", code=1)
    assert "was not fetched" in said
    assert "fetch again to go on" in said
    assert str(weights(folder)) in said
    assert not weights(folder).exists()
    server.stops_after = None
    run("fetch", "tiny", "--from", server.address)
    assert server.asked == [None, "bytes=3000000-"]
    assert weights(folder).read_bytes() == server.content


@pytest.mark.parametrize("reason", ["replaced", "no ranges", "all there"])
def test_two_versions_of_a_file_are_never_joined(folder: Path, server: Server, reason: str) -> None:
    server.content, server.stops_after = b"old" * 1000, 1000
    run("fetch", "tiny", "--from", server.address, "--accept-license", code=1)
    server.stops_after = None
    if reason == "replaced":
        server.content, server.version = b"new" * 1000, '"v2"'
    elif reason == "no ranges":
        server.knows_ranges = False
    else:
        weights(folder).with_name("tiny.pth.part").write_bytes(b"x" * 3000)
    run("fetch", "tiny", "--from", server.address)
    assert weights(folder).read_bytes() == server.content


def test_a_file_other_than_the_recorded_one_is_refused(folder: Path, server: Server) -> None:
    server.content = b"something else"
    write_card(folder / "models", weights_sha256="0" * 64)
    said = run("fetch", "tiny", "--from", server.address, "--accept-license", code=1)
    assert hashlib.sha256(server.content).hexdigest() in said
    assert "as in the model card" in said
    assert list(weights(folder).parent.iterdir()) == []


def test_a_file_other_than_the_first_one_is_refused(folder: Path, server: Server) -> None:
    server.content = b"first"
    run("fetch", "tiny", "--from", server.address, "--accept-license")
    weights(folder).unlink()
    server.content = b"second"
    said = run("fetch", "tiny", "--from", server.address, code=1)
    assert "kept from the first time" in said
    assert not weights(folder).exists()


@pytest.mark.parametrize("trouble", ["offline", "missing", "scheme"])
def test_without_a_server_it_says_how_to_place_the_file_by_hand(folder: Path, server: Server, trouble: str) -> None:
    server.status = 404
    address = {"offline": "http://127.0.0.1:9/tiny.pth", "missing": server.address, "scheme": "file:///etc/hostname"}
    said = run("fetch", "tiny", "--from", address[trouble], "--accept-license", code=1)
    card = find_card("tiny")
    if trouble == "scheme":
        assert "file:///etc/hostname is not an address on the web" in said
        return
    assert f"download {card.weights.url} elsewhere and put it at {weights(folder)}" in said
    assert ("404" in said) == (trouble == "missing")


def test_a_file_that_no_program_can_fetch(folder: Path) -> None:
    write_card(folder / "models", weights_url=None, weights_by_hand="It lies on a drive.")
    said = run("fetch", "tiny", "--accept-license", code=1)
    assert f"It lies on a drive, put it at {weights(folder)} and run `recon models verify tiny`" in said
    assert "no weights at" in run("verify", "tiny", code=1)


# Verifying and converting


@pytest.fixture
def placed(folder: Path, published: bytes) -> Path:
    """The weights, put into their place by hand."""
    weights(folder).parent.mkdir(parents=True)
    weights(folder).write_bytes(published)
    return weights(folder)


def test_verify_checks_keys_and_keeps_the_digest(placed: Path) -> None:
    said = run("verify", "tiny")
    assert "all as tiny has them" in said
    assert hashlib.sha256(placed.read_bytes()).hexdigest() in said
    damaged = bytearray(placed.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    placed.write_bytes(damaged)
    assert "kept from the first time" in run("verify", "tiny", code=1) or "damaged" in run("verify", "tiny", code=1)


def test_verify_tells_weights_of_another_network(folder: Path, placed: Path) -> None:
    import torch

    other = folder / "other.pth"
    torch.save({"model": {"pose_retriever.mem": torch.ones(3)}}, other)
    said = run("verify", other, code=1)
    assert "say it with --card" in said
    said = run("verify", other, "--card", "tiny", code=1)
    assert "looks like a cut3r checkpoint" in said
    assert "1 unexpected: pose_retriever.mem" in said
    assert run("verify", placed).startswith(str(placed))


def test_convert_and_verify_what_came_out(folder: Path, placed: Path) -> None:
    target = folder / "small.safetensors"
    said = run("convert", placed, target, "--dtype", "fp16")
    assert "fp16" in said
    assert "dust3r" in said
    assert target.stat().st_size < 0.6 * placed.stat().st_size
    assert "all as tiny has them" in run("verify", target)
    assert "dtype 'int8' is not one of fp32, fp16, bf16" in run("convert", placed, target, "--dtype", "int8", code=1)
    assert "no such weight file" in run("convert", folder / "none.pth", target, code=1)


# Parity


def test_parity_prints_a_table_and_fails_on_a_miss(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs torch")
    import numpy as np

    reduced = ROOT / "test" / "data" / "parity"
    said = run("parity", reduced / "rope2d")
    assert "rope2d/b100_d64 3" in said
    assert "6 of 6 cases" in said
    assert "MISS" not in said
    shutil.copytree(reduced / "rope2d", tmp_path / "rope2d")
    arrays = dict(np.load(tmp_path / "rope2d" / "outputs.npz"))
    arrays["b100_d64/curope_minus1"][0] += 0.01
    np.savez(tmp_path / "rope2d" / "outputs.npz", **arrays)  # type: ignore[arg-type]
    said = run("parity", tmp_path, code=1)
    assert "5 of 6 cases" in said
    assert "MISS" in said
    assert "rope2d/b100_d64: curope_minus1: " in said
    assert "no such folder" in run("parity", tmp_path / "none", code=1)


# Lightness


def test_help_and_list_load_no_torch(folder: Path) -> None:
    program = (
        "import sys, runpy\n"
        "sys.argv = ['recon', 'models', sys.argv[1]]\n"
        "try: runpy.run_module('recon_ros.cli.main', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    for argument in ("--help", "list"):
        subprocess.run([sys.executable, "-c", program, argument], check=True, cwd=ROOT, capture_output=True)


def test_without_torch_it_says_what_to_install(folder: Path, placed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    for arguments in (("verify", "tiny"), ("convert", placed, folder / "x.safetensors"), ("parity", folder)):
        assert "pip install 'recon_ros[torch]'" in run(*arguments, code=1)
