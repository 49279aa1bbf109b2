"""What the reference shows of the lookups: a table of one small network, and what is asked of it and answered from it.

A test brings this table to a server and holds the answers against these (rounded to six decimals).
"""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]

_SETTING = {"threads": 1, "dtype": "float32", "layout": "contiguous"}
_LAYERS: tuple[tuple[str, Document, float, float, float], ...] = (  # name, what its shape differs in from a plain one, measured ms
    ("blocks.0.conv", {"op": "conv2d", "in_channels": 1, "kernel": 3, "norm": True, "activation": "silu"}, 0.02, 0.019, 0.021),
    ("blocks.0.pool", {"op": "max_pool", "kernel": 2, "stride": 2}, 0.006, 0.0055, 0.0065),
    ("pool", {"op": "global_pool", "height": 4, "width": 4}, 0.005, 0.0045, 0.0055),
    ("classifier", {"op": "linear", "out_channels": 10, "height": 1, "width": 1}, 0.009, 0.0085, 0.0095),
)


def _shape(changes: Document) -> Document:
    plain = {"kernel": 1, "stride": 1, "groups": 1, "height": 8, "width": 8, "norm": False, "activation": "none", "residual": False}
    return {"in_channels": 16, "out_channels": 16, **plain, **changes}


def _entry(changes: Document, value: float, low: float, high: float, *, kind: str = "measured") -> Document:
    return {
        "shape": _shape(changes), "setting": {"batch": 1, **_SETTING}, "quantity": "latency_ms", "value": value, "unit": "ms", "kind": kind,
        "low": low, "high": high, "meter": "wall_clock", "repetitions": 40, "rejected": 1, "measured_at": "2026-01-31T12:00:00+00:00",
        "scope": "process", "net": None, "net_low": None, "net_high": None, "sensor_error": None,
    }  # fmt: skip


def _cost(value: float, low: float, high: float) -> Document:
    return {
        "value": value, "unit": "ms", "kind": "calibrated_sum", "low": low, "high": high, "meter": "wall_clock", "scope": "process",
    }  # fmt: skip


_SCALE = 1.1
_ORIGIN = {"scale": _SCALE, "per_layer": 0.0, "error_percent": 2.0, "meter": "wall_clock", "scope": "process", "kind": "measured"}
_ANCHOR = {"name": "plain", "widths": [16], "layer_sum": 0.04, "measured": 0.044, "low": 0.043, "high": 0.045}

DEVICE = "pi-4"
TABLE: Document = {
    "device": DEVICE,
    "fingerprint": {"cpu": "Cortex-A72"},
    "calibrations": [{"quantity": "latency_ms", "setting": {"batch": 1, **_SETTING}, "anchors": [_ANCHOR], **_ORIGIN}],
    "entries": [_entry(changes, *measured) for _, changes, *measured in _LAYERS],
}

_BETWEEN = {**_LAYERS[0][1], "out_channels": 12}
LAYER = {name: value for name, value in _shape(_BETWEEN).items() if name not in ("stride", "groups", "residual")}  # those have defaults
LAYER_COST: Document = {
    **_entry(_BETWEEN, 0.02, 0.0, 0.021, kind="interpolated"), "device": DEVICE, "setting": {"batch_size": 1, **_SETTING}, "expired": None,
}  # fmt: skip

LAYERS: Document = {"queries": [LAYER, {**LAYER, "out_channels": 99}]}
LAYER_COSTS: Document = {
    "device": DEVICE,
    "answers": [
        {"entry": LAYER_COST, "problem": None},
        {
            "entry": None,
            "problem": {
                "field": "in_channels",
                "value": 1,
                "limit": ["1->16"],
                "remedy": "ask for one of the measured widths, or run `wattle profile` for a network that holds this layer",
                "message": "no latency_ms for conv2d 3x3/1 1->99 at 8x8+bn+silu (batch 1, 1 thread) on pi-4: the widest measured is 1->16; "
                "run `wattle profile` for this network, image size and setting, with a max_growth that covers these widths",
            },
        },
    ],
}

NETWORK: Document = {"network": {"family": "plain", "widths": [16]}, "image_size": 8, "in_channels": 1, "classes": 10}
NETWORK_COST: Document = {
    "device": DEVICE,
    "cost": "latency_ms",
    "setting": {"batch_size": 1, **_SETTING},
    "widths": [16],
    "total": _cost(0.044, 0.040502, 0.047498),
    "layers": [
        {"name": name, "shape": _shape(changes), "cost": _cost(*(round(_SCALE * number, 6) for number in measured))}
        for name, changes, *measured in _LAYERS
    ],
    "calibration": {"quantity": "latency_ms", "setting": {"batch_size": 1, **_SETTING}, "anchors": 1, **_ORIGIN},
    "warnings": [],
}


_SHOWN: tuple[tuple[str, str, Document | None, Document | None], ...] = (  # method, route, body, answer
    ("get", "costs", None, LAYER_COST),
    ("post", "costs:query", LAYERS, LAYER_COSTS),
    ("post", "costs:network", NETWORK, NETWORK_COST),
    ("get", "table", None, TABLE),
    ("post", "table", TABLE, None),
)


def show(paths: Document) -> None:
    """Puts the examples into an OpenAPI document's paths.  FastAPI itself would leave out every null of theirs."""
    for method, route, body, answer in _SHOWN:
        operation = paths[f"/v1/devices/{{name}}/{route}"][method]
        if body is not None:
            operation["requestBody"]["content"]["application/json"]["example"] = body
        if answer is not None:
            operation["responses"]["200"]["content"]["application/json"]["example"] = answer
