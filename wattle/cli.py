"""The ``wattle`` command: a thin user of the same REST API that everybody has."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from wattle import connection, tables
from wattle.answer import JOB_ENDED_BADLY, OK, Answer, answering, progress_console
from wattle.client import Client, Document, ProblemError
from wattle.watch import STATE_STYLES, follow, words

if TYPE_CHECKING:
    from wattle.up import Service

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False)
app.add_typer(tables.app, name="table")

JobId = Annotated[str, typer.Argument(help="Job id, as printed by `wattle submit` and `wattle jobs`.", metavar="ID")]
Wait = Annotated[bool, typer.Option("--wait", metavar="", help="Follow the job until it ends; the exit code says how.")]
Spec = Annotated[Path | None, typer.Option("--spec", help="Take network, image size and setting from this job spec.")]
DeviceName = Annotated[str | None, typer.Option("--device", help="Device to ask about. (default: this-host, or the device of --spec)")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of the inference. (default: the device's own)", min=1)]
BatchSize = Annotated[int | None, typer.Option(help="Images per inference. (default: 1)", min=1)]
Family = Annotated[str | None, typer.Option(help="Network family: mobilenet_v1, mobilenet_v2 or plain.")]
Widths = Annotated[str | None, typer.Option(help="All widths, one per channel group: 8,8,16,...")]
Multiplier = Annotated[float | None, typer.Option(help="Factor on the family's published widths, instead of --widths.")]
NetActivation = Annotated[str, typer.Option(help="silu or relu.")]
ImageSize = Annotated[int | None, typer.Option(help="Pixels per side.", min=8, max=224)]
InChannels = Annotated[int | None, typer.Option("--in-channels", "--channels", help="Image channels.", min=1, max=3)]
Classes = Annotated[int | None, typer.Option(help="Number of classes.", min=2)]


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wattle {version('wattle-nas')}")
        raise typer.Exit


@app.callback()
def wattle(
    _: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, metavar="", help="Show the version and exit.")
    ] = False,
) -> None:
    """Grows neural networks for a device: splits channels by what they gain and by what they cost there, measured."""


@app.command()
@answering
def up(
    workers: Annotated[int, typer.Option(help="Worker processes; each takes one job at a time.", min=0, max=64)] = 1,
) -> Answer:
    """Start the service on this machine: broker, server and workers, on loopback; runs until Ctrl-C.  Settings: WATTLE_*."""
    from wattle.service import running
    from wattle.specs import settings

    stack = ExitStack()
    service = stack.enter_context(running(settings(), workers))
    document = {"url": service.url, "data_dir": str(service.settings.data_dir), "processes": service.pids}
    text = f"Wattle runs at {service.url} (dashboard, API at /docs); data in {service.settings.data_dir}. Ctrl-C stops it."
    return Answer(document, Text(text), then=partial(_until_ended, service, stack))


@app.command()
@answering
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the artifacts.")] = Path("wattle-demo"),
    keep: Annotated[
        bool, typer.Option("--keep", metavar="", envvar="KEEP", help="Leave the service running afterwards, until Ctrl-C.")
    ] = False,
) -> Answer:
    """See it work: measure this machine, grow a small network on handwritten digits within a latency budget, show the report."""
    from wattle.demo import run_demo

    result = run_demo(progress_console(), output, keep)
    return Answer(result, Text(f"artifacts in {output}/"))


@app.command()
@answering
def worker(
    device: Annotated[
        str | None, typer.Option("--device", help="Name under which this machine's measurements are kept. (default: this-host)")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of an inference on this device. (default: 1)", min=1, max=256)] = None,
    torch_device: Annotated[str | None, typer.Option(help="What trains and is measured: cpu, cuda, cuda:1. (default: cpu)")] = None,
    only_profiles: Annotated[bool, typer.Option("--only-profiles", metavar="", help="Take no growth jobs: others train.")] = False,
) -> Answer:
    """Run a worker in this machine's name: it takes growth jobs, and the profile jobs of its device.  Settings: WATTLE_*."""
    command = [sys.executable, "-m", "worker"]
    command += ["--device", device] if device is not None else []
    command += ["--threads", str(threads)] if threads is not None else []
    command += ["--torch-device", torch_device] if torch_device is not None else []
    command += ["--only-profiles"] if only_profiles else []
    # in place of this process, so that signals reach the worker itself
    become = partial(os.execve, command[0], command, {**connection.broker_here(), **os.environ})
    name = device or os.environ.get("WATTLE_DEVICE") or "this-host"
    return Answer({"device": name, "command": command}, Text(f"worker for {name}"), then=become)


@app.command()
@answering
def submit(
    spec: Annotated[Path, typer.Argument(help="Job spec, YAML or JSON. See examples/.", metavar="SPEC")],
    wait: Wait = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="Only check the spec, create nothing.")] = False,
    key: Annotated[str | None, typer.Option("--key", help="Idempotency key: the same key and spec never make a second job.")] = None,
) -> Answer:
    """Submit a growth job."""
    with connection.connect() as client:
        document = client.submit(spec, dry_run=dry_run, idempotency_key=key)
        if dry_run:
            return Answer(document, _dry_run_text(document))
        return _followed(client, document) if wait else Answer(document, _submitted_text(document))


@app.command()
@answering
def jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state: queued, running, succeeded, failed or cancelled.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only jobs of this kind: growth or profile.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=200)] = 20,
    cursor: Annotated[str | None, typer.Option(help="Go on where an earlier list ended (its `next`).")] = None,
) -> Answer:
    """List jobs, newest first."""
    with connection.connect() as client:
        document = client.jobs(state=state, kind=kind, limit=limit, cursor=cursor)
    table = Table("id", "name", "kind", "state", "progress", box=None, pad_edge=False)
    for job in document["jobs"]:
        style = STATE_STYLES.get(job["state"], "")
        table.add_row(job["id"], job["name"], job["kind"], Text(job["state"], style), " · ".join(words(job)[2:]))
    rest = [Text(f"more: wattle jobs --limit {limit} --cursor {document['next']}", style="dim")] if document.get("next") else []
    return Answer(document, Group(table, *rest) if document["jobs"] else Text("no jobs"))


@app.command()
@answering
def watch(job_id: JobId) -> Answer:
    """Follow a job until it ends; the exit code says how."""
    with connection.connect() as client:
        return _followed(client, client.job(job_id))


@app.command()
@answering
def cancel(job_id: JobId) -> Answer:
    """Cancel a job.  It is shown as cancelled when none of its processes lives any more."""
    with connection.connect() as client:
        job = client.cancel(job_id)
    done = job["state"] == "cancelled"
    return Answer(job, Text(f"{job['id']} is cancelled" if done else f"{job['id']} is being cancelled: wattle watch {job['id']}"))


@app.command()
@answering
def report(job_id: JobId) -> Answer:
    """Show what a finished job found: widths, costs, accuracy, controls, verdict."""
    from wattle.report import render

    with connection.connect() as client:
        document = client.report(job_id)
    return Answer(document, render(document, f"wattle artifacts {job_id} -o DIR"))


@app.command()
@answering
def artifacts(
    job_id: JobId,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Download into this folder; without it, only list.")] = None,
) -> Answer:
    """List or download the artifacts of a job; every download is checked by its sha256."""
    with connection.connect() as client:
        listed = client.artifacts(job_id)
        paths = [str(path) for path in client.download(job_id, output)] if output else []
    table = Table("name", "bytes", "sha256", *(("file",) if paths else ()), box=None, pad_edge=False)
    for index, artifact in enumerate(listed):
        table.add_row(artifact["name"], f"{artifact['size']:,}", artifact["sha256"], *paths[index : index + 1])
    return Answer({"artifacts": listed, "files": paths}, table if listed else Text("no artifacts"))


@app.command()
@answering
def profile(
    spec: Spec = None,
    device: DeviceName = None,
    family: Family = None,
    widths: Widths = None,
    width_multiplier: Multiplier = None,
    activation: NetActivation = "silu",
    norm: Annotated[bool, typer.Option(help="A batch norm behind every convolution.")] = True,
    image_size: ImageSize = None,
    in_channels: InChannels = None,
    classes: Classes = None,
    max_growth: Annotated[float | None, typer.Option(help="Measure widths up to this multiple of the seed's. (default: 4)")] = None,
    batch_size: BatchSize = None,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(help="Time budget for measuring latency, in seconds.")] = 60,
    meter: Annotated[str | None, typer.Option(help="Also measure energy with this meter; wattle doctor says which work.")] = None,
    energy_seconds: Annotated[float | None, typer.Option(help="Time budget for measuring energy, in seconds. (default: 900)")] = None,
    wait: Wait = False,
) -> Answer:
    """Measure a device for every layer shape that growing a network can meet."""
    from wattle.specs import network_of_options, profile_of_job

    if spec is not None:
        document = profile_of_job(spec)
    else:
        network = network_of_options(_needed("--family", family), widths, width_multiplier, activation, norm)
        document = {
            "network": network, "image_size": _needed("--image-size", image_size),
            "in_channels": _needed("--in-channels", in_channels), "classes": _needed("--classes", classes),
        }  # fmt: skip
    given = {
        "device": device, "max_growth": max_growth, "batch_size": batch_size, "threads": threads, "seconds": seconds, "meter": meter,
        "energy_seconds": energy_seconds,
    }  # fmt: skip
    document |= {name: value for name, value in given.items() if value is not None}
    with connection.connect() as client:
        job = client.profile(document)
        return _followed(client, job) if wait else Answer(job, _submitted_text(job))


@app.command()
@answering
def devices() -> Answer:
    """List devices and their cost tables."""
    with connection.connect() as client:
        found = [client.device(entry["name"]) for entry in client.devices()]
    columns = (
        "device", "worker", "processor", "threads", "cost entries", "measured at", Column("mean error, whole networks", no_wrap=True)
    )  # fmt: skip
    table = Table(*columns, box=None, pad_edge=False)
    for entry in found:
        measured = str(entry["measured_at"] or "never: wattle profile") + (", expired" if entry["expired"] else "")
        errors = "\n".join(map(_calibration_words, entry["calibrated"]))
        worker = Text("alive", "green") if entry["alive"] else Text("gone", "yellow")
        processor = str(entry["fingerprint"].get("gpu") or entry["fingerprint"].get("cpu", ""))
        table.add_row(entry["name"], worker, processor, str(entry["threads"]), str(entry["entries"]), measured, errors)
    return Answer({"devices": found}, table if found else Text("no devices: start a worker with `wattle worker --device this-host`"))


@app.command()
@answering
def cost(
    spec: Spec = None,
    device: DeviceName = None,
    quantity: Annotated[
        str | None, typer.Option(help="latency_ms, energy_mj, macs or params. (default: latency_ms, or the budget's of --spec)")
    ] = None,
    op: Annotated[str, typer.Option(help="conv2d, linear, max_pool or global_pool.")] = "conv2d",
    in_channels: Annotated[str | None, typer.Option(help="Input channels: 32, or a range to plot: 8:64, 8:64:8.")] = None,
    out_channels: Annotated[str | None, typer.Option(help="Output channels: 32, or a range to plot: 8:64, 8:64:8.")] = None,
    depthwise: Annotated[bool, typer.Option("--depthwise", metavar="", help="One group per channel; --in-channels says how many.")] = False,
    kernel: Annotated[int, typer.Option(help="Kernel size.", min=1)] = 1,
    stride: Annotated[int, typer.Option(help="Stride.", min=1)] = 1,
    groups: Annotated[int, typer.Option(help="Groups; as many as channels for a depthwise convolution.", min=1)] = 1,
    height: Annotated[int, typer.Option(help="Height of the input.", min=1)] = 1,
    width: Annotated[int, typer.Option(help="Width of the input.", min=1)] = 1,
    norm: Annotated[bool, typer.Option("--norm", metavar="", help="A batch norm is fused behind it.")] = False,
    activation: Annotated[str, typer.Option(help="none, silu or relu.")] = "none",
    residual: Annotated[bool, typer.Option("--residual", metavar="", help="A residual addition is fused behind it.")] = False,
    batch_size: BatchSize = None,
    threads: Threads = None,
) -> Answer:
    """Price one layer, a plot of one over its widths, or with --spec the whole network of a job, on a device."""
    with connection.connect() as client:
        if spec is not None:
            from wattle.specs import device_of_job, network_of_job

            network = network_of_job(spec)
            given = {"batch_size": batch_size, "threads": threads, "cost": quantity}
            network |= {name: value for name, value in given.items() if value is not None}
            if network["cost"] != "energy_mj":
                network.pop("declared_watts", None)  # of the budget, for energy alone
            document = client.network_cost(device or device_of_job(spec), network)
            return Answer(document, Group(_network_cost_table(document), *_warnings(document)))
        from wattle.staircase import render

        axis, asked, sizes = _sizes(in_channels, out_channels, depthwise, groups)
        shape = {
            "op": op, "kernel": kernel, "stride": stride, "height": height, "width": width, "norm": norm, "activation": activation,
            "residual": residual, "batch_size": batch_size or 1, "cost": quantity or "latency_ms",
            **({"threads": threads} if threads is not None else {}),
        }  # fmt: skip
        if len(sizes) == 1:
            document = client.cost(device or "this-host", **shape, **sizes[0])
            return Answer(document, Group(_cost_text(document), *_expired(document)))
        answers = client.costs(device or "this-host", [{**shape, **size} for size in sizes])
    return Answer({"axis": axis, "widths": asked, "answers": answers}, render(axis.replace("_", " "), asked, answers))


def _sizes(ins: str | None, outs: str | None, depthwise: bool, groups: int) -> tuple[str, list[int], list[dict[str, int]]]:
    """What varies, its widths, and the channels and groups of the layer at each of them."""
    from wattle.staircase import widths

    inputs = widths("--in-channels", _needed("--in-channels", ins))
    if depthwise:
        return "channels", inputs, [{"in_channels": width, "out_channels": width, "groups": width} for width in inputs]
    outputs = widths("--out-channels", _needed("--out-channels", outs))
    if len(inputs) > 1 and len(outputs) > 1:
        detail = f"--in-channels {ins} and --out-channels {outs} are both ranges; give a range for one of them, or --depthwise"
        raise ProblemError({"type": "urn:wattle:usage", "title": "Two ranges", "status": 400, "detail": detail})
    sizes = [{"in_channels": i, "out_channels": o, "groups": groups} for i in inputs for o in outputs]
    return ("in_channels", inputs, sizes) if len(inputs) > 1 else ("out_channels", outputs, sizes)


@app.command()
@answering
def doctor() -> Answer:
    """Say what this machine can run and measure, and what to do about what it can't."""
    from wattle.doctor import as_documents, as_table, examine

    with connection.connect() as client:
        checks = examine(client)
    document = as_documents(checks)
    return Answer(document, as_table(checks), JOB_ENDED_BADLY if document["status"] == "fail" else OK)


def _until_ended(service: Service, stack: ExitStack) -> None:
    with stack:
        service.wait()


def _followed(client: Client, job: Document) -> Answer:
    """Follows a job and answers with how it ended."""
    try:
        ended = follow(client, job["id"], progress_console())
    except KeyboardInterrupt:
        raise ProblemError(
            {
                "title": "Not watched any more",
                "status": 400,
                "detail": f"{job['id']} goes on: wattle watch {job['id']}, or wattle cancel {job['id']}",
            }
        ) from None
    if ended["state"] == "succeeded":
        more = f": wattle report {ended['id']}" if ended["kind"] == "growth" else ": wattle submit SPEC, or wattle cost --spec SPEC"
        return Answer(ended, Text(f"{ended['id']} succeeded{more}"))
    reason = f": {ended['message']}" if ended.get("message") else ""
    return Answer(ended, Text(f"{ended['id']} {ended['state']}{reason}"), JOB_ENDED_BADLY)


def _calibration_words(calibration: Document) -> str:
    from wattle.report import setting_words

    energy = f"energy ({calibration['meter']}), " if calibration["quantity"] == "energy_mj" else ""
    return f"{energy}{setting_words(calibration['setting'])}: {calibration['error_percent']:.1f} %"


def _needed(option: str, value: Any) -> Any:
    if value is None:
        detail = f"{option} is missing; give it, or give --spec with a job spec"
        raise ProblemError({"type": "urn:wattle:usage", "title": "Option missing", "status": 400, "detail": detail})
    return value


def _submitted_text(job: Document) -> Text:
    waits = f"; {job['waits_for']}" if job.get("waits_for") else ""
    return Text(f"{job['id']} {job['state']}: wattle watch {job['id']}{waits}")


def _dry_run_text(document: Document) -> Group:
    from wattle.report import cost_words

    seed = document["seed_cost"]
    return Group(Text(f"the spec is good; the seed costs {cost_words(seed)} ({seed['kind']})"), *_warnings(document))


def _expired(entry: Document) -> list[Text]:
    return [Text(f"warning: {entry['expired']}", style="yellow")] if entry["expired"] else []


def _warnings(document: Document) -> list[Text]:
    return [Text(f"warning: {warning}", style="yellow") for warning in document["warnings"]]


def _cost_text(entry: Document) -> Text:
    from costs.shapes import LayerShape
    from wattle.report import cost_words, setting_words

    shape, setting = LayerShape(**entry["shape"]), entry["setting"]
    meter = f"{entry['meter']} ({entry['scope']})"
    measured = f", {meter}, {entry['repetitions']} repetitions, {entry['measured_at']}" if entry["meter"] else ""
    net = f", net {entry['net']:.4g} {entry['unit']} [{entry['net_low']:.4g}, {entry['net_high']:.4g}]" if entry["net"] is not None else ""
    origin = f"{entry['kind']}{measured}"
    what = f"{shape} ({setting_words(setting)}) on {entry['device']}"
    return Text(f"{what}: {entry['quantity']} {cost_words(entry)}{net}  ({origin})")


def _network_cost_table(document: Document) -> Table:
    from costs.shapes import LayerShape
    from wattle.report import cost_words, setting_words

    setting = document["setting"]
    title = f"{document['cost']} on {document['device']}, {setting_words(setting)}"
    caption = None
    if calibration := document["calibration"]:
        more = f", plus {calibration['per_layer']:.3g} {document['total']['unit']}" if calibration["per_layer"] else ""
        caption = (
            f"A layer's part in the network: measured alone, times {calibration['scale']:.3g}{more}. That was fitted on "
            f"{calibration['anchors']} whole networks; predicted from the others, each was off by "
            f"{calibration['error_percent']:.1f} % on average."
        )
    table = Table("layer", "shape", Column("cost", justify="right"), "kind", title=title, caption=caption,
                  title_justify="left", caption_justify="left")  # fmt: skip
    for layer in document["layers"]:
        table.add_row(layer["name"], str(LayerShape(**layer["shape"])), cost_words(layer["cost"]), layer["cost"]["kind"])
    table.add_row("whole network", "", cost_words(document["total"]), document["total"]["kind"], style="bold")
    return table
