"""Every command against a scripted server: what it prints for people, for programs, and its exit code."""

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import wattle.connection
from wattle.cli import app
from wattle.client import Client

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "digits.yaml")
COST = {"value": 1.25, "unit": "ms", "kind": "calibrated_sum", "low": 1.2, "high": 1.3}
SHAPE = {
    "op": "conv2d", "in_channels": 8, "out_channels": 16, "kernel": 1, "stride": 1, "groups": 1,
    "height": 8, "width": 8, "norm": True, "activation": "silu", "residual": False,
}  # fmt: skip
SETTING = {"batch_size": 32, "threads": 1, "dtype": "float32", "layout": "contiguous"}


DEVICE = {
    "name": "this-host", "fingerprint": {}, "entries": 9, "measured_at": "2026-01-01T00:00:00+00:00", "alive": True, "threads": 1,
    "expired": None,
}  # fmt: skip


def job(state: str = "succeeded", **more: Any) -> dict[str, Any]:
    return {
        "id": "j1",
        "kind": "growth",
        "name": "digits",
        "state": state,
        "attempt": 1,
        "progress": {},
        "cause": None,
        "message": None,
        **more,
    }


class Server:
    """Answers like the service; ``end`` is how every job ends."""

    end = "succeeded"
    problem: dict[str, Any] | None = None

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.problem is not None:
            return httpx.Response(int(self.problem["status"]), json=self.problem)
        return httpx.Response(200, **self.answer(request.method, request.url.path))

    def answer(self, method: str, path: str) -> dict[str, Any]:
        documents: dict[tuple[str, str], Any] = {
            ("POST", "/v1/jobs"): job("queued"),
            ("GET", "/v1/jobs"): {"jobs": [job(), job("running", progress={"step": 3, "total_steps": 9})], "next": "j0"},
            ("GET", "/v1/jobs/j1"): job(self.end, message="it did not fit in memory" if self.end == "failed" else None),
            ("POST", "/v1/jobs/j1/cancel"): job("running"),
            ("GET", "/v1/jobs/j1/report"): self.report,
            ("GET", "/v1/jobs/j1/artifacts"): {
                "artifacts": [{"name": "a.json", "sha256": hashlib.sha256(b"{}").hexdigest(), "size": 2, "media_type": "application/json"}]
            },
            ("POST", "/v1/profiles"): job("queued", kind="profile"),
            ("GET", "/v1/devices"): {"devices": [DEVICE]},
            ("GET", "/v1/devices/this-host"): {**DEVICE, "calibrated": []},
            ("GET", "/v1/devices/this-host/costs"): {
                "device": "this-host", "shape": SHAPE, "setting": SETTING, "quantity": "latency_ms", "meter": "wall_clock",
                "repetitions": 40, "rejected": 2, "measured_at": "2026-01-01T00:00:00+00:00", "expired": None, **COST,
                "scope": "process", "net": None, "net_low": None, "net_high": None, "sensor_error": None,
            },
            ("POST", "/v1/devices/this-host/costs:network"): {
                "device": "this-host", "cost": "latency_ms", "setting": SETTING, "widths": [8], "total": COST,
                "layers": [{"name": "stem", "shape": SHAPE, "cost": COST}], "calibration": None, "warnings": [],
            },
        }  # fmt: skip
        if path.endswith("/events"):
            return {"text": f'id: 9\nevent: state\ndata: {{"state": "{self.end}"}}\n\n'}
        if path.endswith("/artifacts/a.json"):
            return {"content": b"{}"}
        return {"json": documents[method, path]}


COMMANDS = {
    "submit": ["submit", EXAMPLE, "--wait"],
    "jobs": ["jobs"],
    "watch": ["watch", "j1"],
    "cancel": ["cancel", "j1"],
    "report": ["report", "j1"],
    "artifacts": ["artifacts", "j1"],
    "profile": ["profile", "--spec", EXAMPLE],
    "devices": ["devices"],
    "cost": ["cost", "--spec", EXAMPLE],
    "doctor": ["doctor"],
}
RUN_FOR_REAL_ELSEWHERE = {"up", "demo", "worker"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, report: dict[str, Any]) -> Server:
    scripted = Server(report)
    monkeypatch.setattr(wattle.connection, "connect", lambda: Client("http://test", transport=httpx.MockTransport(scripted)))
    return scripted


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_every_command_is_tried() -> None:
    names = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert names == set(COMMANDS) | RUN_FOR_REAL_ELSEWHERE


@pytest.mark.parametrize("name", sorted(set(COMMANDS) | RUN_FOR_REAL_ELSEWHERE))
def test_help_explains_every_option(name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "--json" in out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_json_is_one_document_and_nothing_else(server: Server, name: str) -> None:
    code, out, _ = run(*COMMANDS[name], "--json")
    assert json.loads(out)
    assert code == 0 or name == "doctor"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_people_get_words(server: Server, name: str) -> None:
    _, out, _ = run(*COMMANDS[name])
    assert out.strip()
    assert not out.lstrip().startswith("{")


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"doctor"}))
def test_refusal_is_a_problem_document_with_exit_code_2(server: Server, name: str) -> None:
    error = {
        "field": "budget.limit",
        "value": 0.2,
        "limit": "at least 0.9 ms",
        "remedy": "raise it",
        "message": "less than the seed",
    }
    server.problem = {"title": "Invalid request", "status": 422, "detail": "no", "errors": [error]}
    code, out, _ = run(*COMMANDS[name], "--json")
    assert (code, json.loads(out)) == (2, server.problem)
    code, out, err = run(*COMMANDS[name])
    assert code == 2
    assert out == ""
    for words in ("budget.limit", "0.2", "at least 0.9 ms", "raise it", "less than the seed"):
        assert words in err


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"doctor"}))
def test_no_server_is_exit_code_3(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("WATTLE_URL", "http://127.0.0.1:9")
    code, out, err = run(*COMMANDS[name])
    assert code == 3
    assert out == ""
    assert "wattle up" in err
    code, out, _ = run(*COMMANDS[name], "--json")
    assert code == 3
    assert "wattle up" in json.loads(out)["remedy"]


@pytest.mark.parametrize(("end", "expected"), [("succeeded", 0), ("failed", 1), ("cancelled", 1)])
def test_exit_code_follows_the_job(server: Server, end: str, expected: int) -> None:
    server.end = end
    for command in ("submit", "watch"):
        code, out, _ = run(*COMMANDS[command])
        assert code == expected
        assert end in out


def test_failure_says_why(server: Server) -> None:
    server.end = "failed"
    assert "it did not fit in memory" in run("watch", "j1")[1]


def test_one_layer_is_priced(server: Server) -> None:
    code, out, _ = run("cost", "--in-channels", "8", "--out-channels", "16")
    assert code == 0
    assert "1.25 ms [1.2, 1.3]" in out
    assert "calibrated_sum" in out


def test_missing_option_names_the_way_out(server: Server) -> None:
    for command in ("cost", "profile"):
        code, _, err = run(command)
        assert code == 2
        assert "--spec" in err


def test_artifacts_are_downloaded(server: Server, tmp_path: Path) -> None:
    code, out, _ = run("artifacts", "j1", "-o", str(tmp_path / "out"), "--json")
    assert code == 0
    assert json.loads(out)["files"] == [str(tmp_path / "out" / "a.json")]
    assert (tmp_path / "out" / "a.json").read_text() == "{}"


def test_folder_that_can_not_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, err = run("artifacts", "j1", "-o", str(tmp_path / "file"))
    assert code == 2
    assert "file" in err


def test_bad_spec_is_refused_before_anything_is_sent(server: Server, tmp_path: Path) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text("name: x\nbudget: {cost: macs, limit: -1}\ndata: {name: digits}\nnetwork: {family: plain, width_multiplier: 1}\n")
    code, _, err = run("profile", "--spec", str(spec))
    assert code == 2
    assert "budget.limit" in err
