"""Client and commands against the real server, over a real socket; a thread plays the worker through the store."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet
import pytest
import uvicorn
import yaml
from typer.testing import CliRunner

from costs.families import Network
from costs.shapes import LayerShape
from costs.table import Anchor, Calibration, CostEntry, CostTable, Setting
from server.app import create_app
from store import devices, jobs
from store.artifacts import ArtifactStore
from store.database import Database
from store.settings import Settings
from wattle import parquet, tables
from wattle.cli import app
from wattle.client import Client, Event, ProblemError

EXAMPLES = Path(__file__).parents[2] / "examples"


class Bench:
    """A running server, and the database behind it."""

    def __init__(self, settings: Settings, url: str) -> None:
        self.settings, self.url, self.db = settings, url, Database(settings.database)
        self.client = Client(url)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    settings = Settings(data_dir=tmp_path / "data", data_root=tmp_path, broker_url="redis://127.0.0.1:9/0")
    settings.data_dir.mkdir()
    db = Database(settings.database)
    db.migrate()
    db.close()
    server = uvicorn.Server(
        uvicorn.Config(create_app(settings), host="127.0.0.1", port=0, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    monkeypatch.setenv("WATTLE_URL", url)
    bench = Bench(settings, url)
    yield bench
    bench.client.close()
    bench.db.close()
    server.should_exit = True
    thread.join()


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_submit_watch_and_fetch(bench: Bench, tmp_path: Path) -> None:
    """The whole life of a job as its watcher sees it."""
    job = bench.client.submit(EXAMPLES / "digits-macs.yaml", idempotency_key="once")
    assert bench.client.submit(EXAMPLES / "digits-macs.yaml", idempotency_key="once")["id"] == job["id"]
    assert [found["id"] for found in bench.client.jobs(state="queued")["jobs"]] == [job["id"]]

    def work() -> None:
        lease = jobs.claim(bench.db, job["id"], "tester", 30)
        assert lease is not None
        jobs.record(bench.db, lease, {"phase": "training", "step": 1, "total_steps": 2}, [jobs.Metric("grown", "loss", 1, 0.5)])
        file = tmp_path / "report.json"
        file.write_text('{"verdict": {"sentence": "none"}}')
        sha256, size = ArtifactStore(bench.settings.artifact_dir).put(file)
        jobs.add_artifact(bench.db, lease, "report.json", sha256, size, "application/json")
        jobs.finish(bench.db, lease, "succeeded")

    seen: list[Event] = []
    worker = threading.Thread(target=work)
    worker.start()
    ended = bench.client.wait(job["id"], seen.append)
    worker.join()
    assert ended["state"] == "succeeded"
    assert [event.payload["state"] for event in seen if event.type == "state"] == ["queued", "running", "succeeded"]
    assert any(event.type == "progress" and event.payload["step"] == 1 for event in seen)
    assert bench.client.metrics(job["id"])["metrics"] == {"grown": {"loss": [[1, 0.5]]}}
    assert bench.client.report(job["id"]) == {"verdict": {"sentence": "none"}}
    (path,) = bench.client.download(job["id"], tmp_path / "out")
    assert json.loads(path.read_text()) == {"verdict": {"sentence": "none"}}
    assert list(bench.client.events(job["id"], after=seen[-1].seq)) == []


def test_cancel_and_exit_codes(bench: Bench) -> None:
    code, out, _ = run("submit", str(EXAMPLES / "digits-macs.yaml"), "--json")
    assert code == 0
    job_id = json.loads(out)["id"]
    code, out, _ = run("cancel", job_id)
    assert (code, "is cancelled" in out) == (0, True)
    assert run("watch", job_id)[0] == 1
    code, _, err = run("cancel", job_id)
    assert code == 2
    assert "cancelled" in err
    assert run("watch", "000000000000000000")[0] == 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"budget": {"cost": "macs", "limit": float("nan")}}, "budget.limit"),
        ({"budget": {"cost": "macs", "limit": -1}}, "budget.limit"),
        ({"budget": {"cost": "macs", "limit": 10}}, "seed"),
        ({"budget": {"cost": "latency_ms", "limit": 1, "device": "moon"}}, "wattle worker --device moon"),
        ({"network": {"family": "mobilenet_v1", "widths": [8, 8]}}, "network.widths"),
        ({"data": {"name": "imagefolder", "root": "nowhere"}}, "data.root"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_bad_specs_name_field_and_remedy(bench: Bench, tmp_path: Path, change: dict[str, object], expected: str) -> None:
    spec = {**_document("digits-macs.yaml"), **change}
    with pytest.raises(ProblemError):
        bench.client.submit(spec, dry_run=True)
    path = tmp_path / "job.json"
    path.write_text(json.dumps(spec).replace("NaN", ".nan"))
    code, _, err = run("submit", str(path))
    assert code == 2
    assert expected in err
    assert bench.client.jobs()["jobs"] == []


def test_dry_run_says_what_the_seed_costs(bench: Bench) -> None:
    code, out, _ = run("submit", str(EXAMPLES / "digits-macs.yaml"), "--dry-run")
    assert code == 0
    assert "MACs" in out
    assert bench.client.jobs()["jobs"] == []


def test_devices_and_costs(bench: Bench) -> None:
    devices.register(bench.db, "this-host", {"cpu": "test"})
    assert "never" in run("devices")[1]
    code, out, _ = run("profile", "--spec", str(EXAMPLES / "digits.yaml"), "--seconds", "5", "--json")
    assert code == 0
    assert json.loads(out)["spec"]["network"]["widths"] == [8] * 14
    assert json.loads(out)["spec"]["image_size"] == 16
    assert run("cost", "--spec", str(EXAMPLES / "digits.yaml"))[0] == 2
    devices.save_table(bench.db, None, _table(Network("mobilenet_v1", (8,) * 14, 16, 1, 10)))
    code, out, _ = run("cost", "--spec", str(EXAMPLES / "digits.yaml"))
    assert code == 0
    assert "whole network" in out
    assert "3.0 % on average" in out
    code, out, _ = run("cost", "--spec", str(EXAMPLES / "digits.yaml"), "--quantity", "macs", "--json")
    assert (code, json.loads(out)["total"]["kind"]) == (0, "exact")
    assert run("cost", "--spec", str(EXAMPLES / "digits.yaml"), "--quantity", "joules")[0] == 2
    assert "batch 32, 1 thread: 3.0 %" in run("devices")[1]
    stem = (
        "--in-channels",
        "1",
        "--out-channels",
        "8",
        "--kernel",
        "3",
        "--height",
        "16",
        "--width",
        "16",
        "--norm",
        "--activation",
        "silu",
    )
    code, out, err = run("cost", *stem, "--batch-size", "32")
    assert (code, "0.5 ms" in out) == (0, True), err
    assert "run `wattle profile`" in run("cost", "--in-channels", "999", "--out-channels", "8")[2]


def test_a_table_travels_as_a_file(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices.register(bench.db, "this-host", {"cpu": "test"})
    devices.save_table(bench.db, None, table := _table(Network("mobilenet_v1", (8,) * 14, 16, 1, 10)))
    file = tmp_path / "a table.json"
    assert run("table", "export", "this-host", "-o", str(file))[0] == 0
    monkeypatch.setattr(tables, "PIECE", 4)
    assert run("table", "import", str(file), "--device", "copy", "--dry-run")[0] == 0
    assert bench.client.devices()[0]["name"] == bench.client.devices()[-1]["name"] == "this-host"
    code, out, _ = run("table", "import", str(file), "--device", "copy", "--json")
    assert (code, json.loads(out)["device"]["entries"]) == (0, len(table))
    copied = CostTable.from_json(bench.client.table("copy"))
    assert (set(copied), copied.calibrations) == (set(table), table.calibrations)
    profiled = {"fingerprint": {"cpu": "test"}, "table": table.to_json()}
    file.write_text(json.dumps(profiled))
    assert "are in the table of this-host" in " ".join(run("table", "import", str(file))[1].split())
    assert run("table", "export", "this-host", "-o", str(tmp_path / "t.csv"))[0] == 0
    assert len((tmp_path / "t.csv").read_text().splitlines()) == len(table) + 1
    assert run("table", "export", "nosuch", "-o", str(tmp_path / "u.json"))[0] == 2
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["a table.json", "t.csv"]


def test_a_table_travels_as_parquet(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices.register(bench.db, "this-host", {"cpu": "test"})
    devices.save_table(bench.db, None, table := _table(Network("mobilenet_v1", (8,) * 14, 16, 1, 10)))
    file = tmp_path / "table.parquet"
    assert run("table", "export", "this-host", "-o", str(file))[0] == 0
    assert tables.read_table(file) == bench.client.table("this-host")
    assert run("table", "import", str(file), "--device", "copy")[0] == 0
    copied = CostTable.from_json(bench.client.table("copy"))
    assert (set(copied), copied.calibrations) == (set(table), table.calibrations)
    assert run("table", "export", "nosuch", "--format", "parquet", "-o", str(tmp_path / "u"))[0] == 2
    file.write_bytes(b"PAR1 and no more")
    assert "is no Parquet" in run("table", "import", str(file))[2]
    pyarrow.parquet.write_table(pyarrow.table({"device": ["this-host"]}), file)
    assert "something else" in run("table", "import", str(file))[2]
    monkeypatch.setattr(parquet, "find_spec", lambda name: None)
    assert "pip install 'wattle-nas[parquet]'" in " ".join(run("table", "export", "this-host", "--format", "parquet")[2].split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "table.parquet"]


@pytest.mark.parametrize(
    ("content", "words"), [("{", "is no JSON"), ("[]", "holds no device"), ('{"device": "a", "entries": [{}]}', "missing")]
)
def test_a_file_that_is_no_table_is_refused_before_anything_is_kept(bench: Bench, tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "t.json").write_text(content)
    code, _, err = run("table", "import", str(tmp_path / "t.json"))
    assert (code, words in " ".join(err.split())) == (2, True), err
    assert bench.client.devices() == []


def test_a_wrong_entry_at_the_end_of_a_long_file_keeps_the_beginning_out(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "PIECE", 4)
    document = {"fingerprint": {}, **_table(Network("mobilenet_v1", (8,) * 14, 16, 1, 10)).to_json()}
    document["entries"][-1]["value"] = -1.0
    (tmp_path / "t.json").write_text(json.dumps(document))
    assert "value is -1" in " ".join(run("table", "import", str(tmp_path / "t.json"))[2].split())
    assert bench.client.devices() == []


def test_a_plot_of_cost_over_width(bench: Bench) -> None:
    devices.register(bench.db, "this-host", {"cpu": "test"})
    linear = [
        CostEntry(LayerShape("linear", w, 10), Setting(), "latency_ms", w / 8, "ms", "measured", w / 10, w / 6, "m", 9, 0, "2026-01-01")
        for w in (16, 32)
    ]
    devices.save_table(bench.db, None, CostTable("this-host", linear))
    code, out, _ = run("cost", "--op", "linear", "--in-channels", "8:40:8", "--out-channels", "10")
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdecimal()]
    assert [row[:2] for row in rows[:4]] == [["8", "2"], ["16", "2"], ["24", "4"], ["32", "4"]]
    words = ("interpolated", "measured", "█", "not priced: no latency_ms for linear 40->10")
    assert [each in " ".join(out.split()) for each in words] == [True] * 4
    code, out, _ = run("cost", "--op", "linear", "--in-channels", "8:40:8", "--out-channels", "10", "--json")
    assert [answer["entry"] is None for answer in json.loads(out)["answers"]] == [False] * 4 + [True]
    for wrong in ("0", "8:4", "1:9999", "a", "8:16:0", "8::16"):
        code, _, err = run("cost", "--in-channels", wrong, "--out-channels", "10")
        assert (code, f"--in-channels is '{wrong}'" in " ".join(err.split())) == (2, True)
    assert "both ranges" in " ".join(run("cost", "--in-channels", "1:2", "--out-channels", "1:2")[2].split())
    assert run("cost", "--in-channels", "1:2", "--depthwise", "--quantity", "macs")[0] == 0


def _document(name: str) -> dict[str, object]:
    document: dict[str, object] = yaml.safe_load((EXAMPLES / name).read_text())
    return document


def _table(network: Network) -> CostTable:
    """Half a millisecond for every layer."""
    setting = Setting(batch=32)

    def entry(shape: LayerShape) -> CostEntry:
        return CostEntry(shape, setting, "latency_ms", 0.5, "ms", "measured", 0.4, 0.6, "wall_clock", 10, 0, "2026-01-01T00:00:00+00:00")

    anchor = Anchor("seed", network.widths, 1.0, 1.0, 0.9, 1.1)
    calibration = Calibration("latency_ms", setting, 1.0, 3.0, (anchor,))
    return CostTable("this-host", map(entry, set(network.wiring().shapes())), [calibration])
