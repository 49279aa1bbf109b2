import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs.families import Network
from costs.model import CostModel, Stepped
from costs.shapes import LayerShape
from costs.table import Anchor, Calibration, CostEntry, CostTable, NoCost, Setting, TableCost

ONE = Setting()
WIDTHS = (8, 16, 24, 40)


def conv(ins: int, outs: int, size: int = 14) -> LayerShape:
    return LayerShape("conv2d", ins, outs, 1, 1, 1, size, size, True, "silu")


def depthwise(width: int) -> LayerShape:
    return LayerShape("conv2d", width, width, 3, 1, width, 14, 14, True, "silu")


def entry(shape: LayerShape, value: float, setting: Setting = ONE, spread: float = 0.1) -> CostEntry:
    low, high = value * (1 - spread), value * (1 + spread)
    return CostEntry(shape, setting, "latency_ms", value, "ms", "measured", low, high, "wall_clock", 9, 1, "2026-01-01T00:00:00+00:00")


def cost_of(ins: int, outs: int) -> float:
    return 1.0 + ins * 100 + outs


def full_table() -> CostTable:
    convs = [entry(conv(i, o), cost_of(i, o)) for i in WIDTHS for o in WIDTHS]
    others = [entry(depthwise(w), 7.0 + w) for w in WIDTHS] + [entry(LayerShape("linear", w, 10), 3.0 + w) for w in WIDTHS]
    anchor = Anchor("seed", (8, 8), 1.0, 1.3, 1.2, 1.4)
    return CostTable("bench", convs + others, [Calibration("latency_ms", ONE, 1.25, 4.0, (anchor,) * 3)])


def test_a_measured_shape_is_answered_by_its_entry() -> None:
    found = full_table().entry(conv(16, 24), ONE, "latency_ms")
    assert (found.value, found.kind) == (cost_of(16, 24), "measured")


@given(st.integers(1, 50), st.integers(1, 50))
def test_between_measured_widths_each_axis_is_rounded_up_and_beyond_them_refused(ins: int, outs: int) -> None:
    table = full_table()
    up_in, up_out = (min((w for w in WIDTHS if w >= width), default=None) for width in (ins, outs))
    if up_in is None or up_out is None:
        with pytest.raises(
            NoCost, match=rf"latency_ms for conv2d 1x1/1 {ins}->{outs} .*batch 1, 1 thread.* on bench.*40->40.*wattle profile"
        ):
            table.entry(conv(ins, outs), ONE, "latency_ms")
        return
    found = table.entry(conv(ins, outs), ONE, "latency_ms")
    assert found.value == cost_of(up_in, up_out)
    assert found.shape == conv(ins, outs)
    assert found.kind == ("measured" if {ins, outs} <= set(WIDTHS) else "interpolated")
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high


@given(st.integers(1, 40), st.integers(1, 40))
def test_widths_that_round_up_to_the_same_edges_cost_the_same(ins: int, outs: int) -> None:
    model = TableCost(full_table(), "latency_ms", ONE)
    assert isinstance(model, Stepped)
    up_in, up_out = (
        min(edge for edge in edges if edge >= width) for edges, width in zip(model.edges(conv(8, 8)), (ins, outs), strict=True)
    )
    assert model.layer(conv(ins, outs)).value == model.layer(conv(up_in, up_out)).value
    assert model.edges(conv(8, 8, size=7)) == ((), ())  # no such layer was measured: no width has a cost


@given(st.integers(1, 50))
def test_depthwise_and_linear_have_one_free_axis(width: int) -> None:
    table, up = full_table(), min((w for w in WIDTHS if w >= width), default=None)
    for shape, base in ((LayerShape("linear", width, 10), 3.0), *(((depthwise(width), 7.0),) if width > 1 else ())):
        if up is None:
            with pytest.raises(NoCost):
                table.entry(shape, ONE, "latency_ms")
        else:
            assert table.entry(shape, ONE, "latency_ms").value == base + up


def test_an_interpolated_interval_reaches_over_both_neighbours() -> None:
    found = full_table().entry(depthwise(20), ONE, "latency_ms")
    assert found.low == pytest.approx(0.9 * 23)
    assert found.high == pytest.approx(1.1 * 31)
    sawtooth = CostTable("bench", [entry(depthwise(16), 9.0), entry(depthwise(24), 5.0)]).entry(depthwise(20), ONE, "latency_ms")
    assert sawtooth.value == 5.0
    assert sawtooth.low == pytest.approx(4.5)
    assert sawtooth.high == pytest.approx(9.9)


def test_nothing_is_known_below_the_smallest_measured_width() -> None:
    assert full_table().entry(conv(3, 8), ONE, "latency_ms").low == 0.0


def test_where_the_rounded_pair_was_not_measured_the_smallest_covering_pair_answers() -> None:
    table = CostTable("bench", [entry(conv(8, 32), 1.0), entry(conv(16, 8), 2.0), entry(conv(16, 48), 3.0), entry(conv(64, 64), 4.0)])
    assert table.entry(conv(12, 20), ONE, "latency_ms").value == 3.0


@pytest.mark.parametrize(
    "shape",
    [conv(8, 8, size=28), replace(conv(8, 8), activation="relu"), replace(conv(8, 8), kernel=3), replace(conv(8, 8), residual=True)],
)
def test_a_layer_of_another_form_is_refused(shape: LayerShape) -> None:
    with pytest.raises(NoCost, match="no layer of this form"):
        full_table().entry(shape, ONE, "latency_ms")


def test_another_setting_or_quantity_is_refused() -> None:
    table, four = full_table(), Setting(batch=4, threads=2)
    with pytest.raises(NoCost, match="batch 4, 2 threads"):
        table.entry(conv(8, 8), four, "latency_ms")
    with pytest.raises(NoCost, match="energy_mj"):
        table.entry(conv(8, 8), ONE, "energy_mj")
    with pytest.raises(NoCost, match=r"\(batch 4, 2 threads\) on bench: was profiled for batch 1, 1 thread"):
        table.calibration("latency_ms", four)


def test_a_table_survives_json() -> None:
    table = full_table()
    copy = CostTable.from_json(json.loads(json.dumps(table.to_json())))
    assert (copy.device, list(copy), copy.calibrations) == (table.device, list(table), table.calibrations)
    with pytest.raises(ValueError, match="not a cost table"):
        CostTable.from_json({"device": "bench", "entries": [{"shape": {}}], "calibrations": []})


def test_a_later_entry_replaces_an_earlier_one() -> None:
    table = CostTable("bench", [entry(conv(8, 8), 1.0), entry(conv(8, 8), 2.0)])
    assert [found.value for found in table] == [2.0]


def test_a_network_costs_the_scaled_sum_of_its_layers() -> None:
    model: CostModel = TableCost(full_table(), "latency_ms", ONE)
    shapes = [conv(8, 16), depthwise(16), conv(16, 16), conv(16, 16)]
    whole, layers = model.network(shapes), [model.layer(shape) for shape in shapes]
    assert (model.name, model.unit, whole.kind) == ("latency_ms", "ms", "calibrated_sum")
    assert layers[0].value == 1.25 * cost_of(8, 16)
    assert whole.value == pytest.approx(sum(layer.value for layer in layers))
    assert model.network(()).value == 0


def test_the_network_interval_holds_the_spread_of_the_layers_and_the_error_of_the_calibration() -> None:
    shapes = [conv(8, 16), conv(16, 16)]
    whole = TableCost(full_table(), "latency_ms", ONE).network(shapes)
    assert whole.low is not None
    assert whole.high is not None
    # layers add up: 10 % of the whole; calibration: 4 % mean error is 9.83 % at 95 %
    half = whole.value * (0.1**2 + (0.04 * 1.96 * 1.2533) ** 2) ** 0.5
    assert whole.high - whole.value == pytest.approx(half)
    assert whole.value - whole.low == pytest.approx(half)


def test_without_a_calibration_there_is_no_network_cost() -> None:
    bare = CostTable("bench", [entry(conv(8, 8), 1.0)])
    with pytest.raises(NoCost, match="no whole network was measured"):
        TableCost(bare, "latency_ms", ONE).network([conv(8, 8)])


def test_every_width_a_network_can_grow_to_is_priced_from_a_grid() -> None:
    network = Network("mobilenet_v1", (8,) * 14, 16, 1, 10)
    shapes = {s for a in WIDTHS for b in WIDTHS for s in network.wiring().shapes((a, b) * 7)}
    shapes |= {s for a in WIDTHS for s in network.wiring().shapes((a,) * 14)}
    table = CostTable("bench", [entry(s, s.macs + 1.0) for s in shapes])
    for widths in ((9, 12) * 7, (33, 40) * 7, (17,) * 14):
        assert all(table.entry(s, ONE, "latency_ms").value >= s.macs for s in network.wiring().shapes(widths))


def test_a_scale_fitted_to_other_networks_is_known_as_such() -> None:
    def shapes(network: Network) -> list[LayerShape]:
        return [shape for widths in ((8, 8), (16, 16)) for shape in network.wiring().shapes(widths)]

    def profiled(network: Network) -> tuple[list[CostEntry], Calibration]:
        anchors = (
            Anchor("a", widths, sum(s.macs + 1.0 for s in network.wiring().shapes(widths)), 1.0, 0.9, 1.1) for widths in ((8, 8), (16, 16))
        )
        return [entry(s, s.macs + 1.0) for s in shapes(network)], Calibration("latency_ms", ONE, 1.1, 3.0, tuple(anchors))

    small, large = Network("plain", (8, 8), 8, 1, 10), Network("plain", (8, 8), 16, 1, 10)
    (few, first), (many, second) = profiled(small), profiled(large)
    table = CostTable("bench", [*few, *many], [first, second])  # the second replaces the first: same quantity and setting
    cost = TableCost(table, "latency_ms", ONE)
    assert table.calibrations == (second,)
    assert cost.calibrated_on(large.wiring())
    assert cost.calibrated_on(replace(large, classes=9).wiring())
    assert not cost.calibrated_on(small.wiring())
    assert not cost.calibrated_on(Network("plain", (8, 8, 8), 16, 1, 10).wiring())
    assert not cost.calibrated_on(replace(large, activation="relu").wiring())
    assert TableCost(CostTable("bench", [*many, *few], [second, first]), "latency_ms", ONE).calibrated_on(small.wiring())
