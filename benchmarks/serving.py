"""One ranking request on one core: INFNet's engine beside its equations and the online baseline; prints Markdown.

    python benchmarks/serving.py --out runs/serving

All systems answer the same requests, ids in, logits out; they work in one process and take turns, and a ratio is the
median of the ratios of neighbouring turns. "Equations" computes eqs. 1 to 12 in PyTorch as printed, every arrow and
gate of every block for each candidate, from a batch that is made; "needed equations" leaves out what nobody reads, as
the engine does. Exported to ONNX Runtime, the equations stand behind the engine's tables of tokens, and the exporter
leaves that out by itself. DIN+DCNv2+PLE goes through the same export and engine as INFNet. Weights are random. Further
tables: raw keys in and probabilities out, growth with candidates, the floor.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equations import WrittenOut
from infnet.data.batches import BatchBuilder
from infnet.data.dataset import Dataset
from infnet.errors import InfnetError
from infnet.evaluation.efficiency import count_products
from infnet.evaluation.figures import COLOURS, GREY, new_figure, plain_axes, save_figure
from infnet.export.bundle import Bundle, serving_network, table_precision
from infnet.export.engine import EncodedRequest, Engine, EngineTables
from infnet.export.exporter import export_run
from infnet.export.graph import OnnxBackend, TorchBackend, quantize_dense, write_graph
from infnet.export.item_tables import write_tables
from infnet.export.networks import ServingNetwork
from infnet.export.replay import replayed
from infnet.export.tables import Precision, Table
from infnet.models import INFNet, INFNetConfig, build_model
from infnet.models.base import ModelConfig
from infnet.serving.encoding import RankRequest
from infnet.serving.ranker import Ranker
from infnet.training.checkpoint import write_atomically
from infnet.training.config import TrainConfig
from infnet.training.run import Run
from one_core import use_one_core
from sized_log import prepare_sized

SIZES = ((60, 150, 16), (89, 200, 64), (89, 1000, 64))
CANDIDATES = 500
TURNS, SLOW_TURNS = 15, 5
ROUNDS = 9
GROWTH = (1, 10, 100, 500, 1000, 2000, 5000, 10_000)


class Equations(ServingNetwork):
    """INFNet's equations behind the engine's tables of tokens."""

    def __init__(self, model: INFNet) -> None:
        super().__init__(model, padded=False)
        self.written_out = WrittenOut(model, is_complete=True)

    def forward(
        self, request: Tensor, fields: Tensor, own: Tensor, tables: list, events: list, present: list
    ) -> Tensor:
        """Logits (R, N, T)."""
        num = fields.shape[1]
        C = torch.cat([request[:, None].expand(-1, num, -1, -1), fields], dim=2).flatten(0, 1)
        histories = [each[:, None].expand(-1, num, -1, -1).flatten(0, 1) for each in events]
        presence = [(here > 0)[:, None].expand(-1, num, -1).flatten(0, 1) for here in present]
        return self.written_out.equations(C, histories, presence).unflatten(0, fields.shape[:2])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for the tables as JSON, and the figure")
    parser.add_argument("--settings", nargs="+", choices=("paper", "default"), default=["paper", "default"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 1, 2], help="of 0 (60, 150, 16), 1 and 2")
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    use_one_core()
    found: dict[str, list[dict]] = {"requests": [], "growth": [], "raw": [], "floor": []}
    with tempfile.TemporaryDirectory() as directory:
        for number in options.sizes:
            fields, seq_len, width = SIZES[number]
            dataset = prepare_sized(Path(directory) / f"data{number}", fields, seq_len)
            for setting in options.settings:
                place = Path(directory) / f"{setting}{number}"
                measure(dataset, place, setting, width, options.turns, found, is_small=number == 0)
                write_atomically(options.out / "serving.json", json.dumps(found, indent=1))
                shutil.rmtree(place)
    report(found)
    save_figure(figure(found), options.out / "serving.png")


def measure(
    dataset: Dataset, place: Path, setting: str, width: int, turns: int, found: dict, *, is_small: bool
) -> None:
    """Everything at one size; rows are added to ``found``."""
    size = {"setting": setting, "M": dataset.layout.num_fields, "L": dataset.layout.seq_len, "d": width}
    config = (INFNetConfig.paper() if setting == "paper" else INFNetConfig()).model_copy(
        update={"width": width, "proxy_width": None}
    )
    bundle, run = exported(dataset, place / "infnet", "infnet", config)
    model = run.load_model()
    assert isinstance(model, INFNet)
    engines = {"engine": bundle.engine("onnx"), "engine, PyTorch": bundle.engine("torch")}
    engines |= compressed(dataset, bundle, run, place)
    baseline, _ = exported(dataset, place / "baseline", "din_dcnv2_ple", {"width": width})
    engines["DIN+DCNv2+PLE"] = baseline.engine("onnx")
    tables = bundle.engine_tables
    bare = EngineTables(tables.embedding, tables.tokens, tables.events, {}, False, tables.dense)
    engines["equations, ONNX Runtime"] = Engine(bundle.layout, bare, as_graph(model, bundle, bare, place))
    written_out = {
        "equations": WrittenOut(model, is_complete=True).eval(),
        "needed equations": WrittenOut(model).eval(),
    }
    rows, rng = dataset.rows("test"), np.random.default_rng(1)
    chosen = [rng.integers(0, len(rows), CANDIDATES) for _ in range(8)]
    requests = [replayed(dataset, rows, each, gaps=False) for each in chosen]
    builder = BatchBuilder(dataset, rows)
    batches = [builder.build(each[None]) for each in chosen]
    answers: dict[str, Callable[[int], np.ndarray]] = {
        name: lambda i, engine=engine: engine.logits([requests[i]])[0] for name, engine in engines.items()
    } | {name: lambda i, module=module: module(batches[i])[0].numpy() for name, module in written_out.items()}
    with torch.inference_mode():
        timed = [
            {**size, "system": name, "difference": relative(answer(0), answers["engine"](0)), "ms": []}
            for name, answer in answers.items()
        ]
        for turn in range(turns):
            for row in timed:
                is_slow = "equations" in row["system"]
                if not is_slow or turn < SLOW_TURNS:
                    answer = answers[row["system"]]
                    warm_s = seconds(lambda a=answer, i=turn % 8: a(i), 1)
                    times = 1 if is_slow else max(1, min(20, int(0.1 / warm_s)))
                    row["ms"].append(1000 * seconds(lambda a=answer, i=turn % 8: a(i), times))
    found["requests"] += timed
    found["floor"].append({**size, **floor(bundle, engines["engine"], requests[0])})
    if is_small:
        for num in GROWTH:
            request = replayed(dataset, rows, rng.integers(0, len(rows), num), gaps=False)
            repeats = max(5, min(100, 10_000 // num))
            each = [seconds(lambda r=request: engines["engine"].logits([r]), 1) for _ in range(repeats)]
            found["growth"].append({**size, "candidates": num, "ms": 1000 * statistics.median(each)})
        found["raw"].append({**size, **from_raw(bundle)})


def exported(dataset: Dataset, place: Path, name: str, settings: dict | ModelConfig) -> tuple[Bundle, Run]:
    """A bundle of a model with random weights."""
    chosen = settings.model_dump() if isinstance(settings, ModelConfig) else settings
    run = Run.create(place / "run", dataset, TrainConfig(model=name, settings=chosen))
    torch.manual_seed(0)
    model = build_model(name, dataset.layout, chosen)
    with torch.no_grad():
        model.embedding.weight.mul_(30)  # as large as after training, so that softmaxes choose
    run.save_best(model, {})
    run.write_report({"metrics": {}})
    return export_run(run, place / "bundle", checkpoint=False), run


def compressed(dataset: Dataset, bundle: Bundle, run: Run, place: Path) -> dict[str, Engine]:
    """The engine with its tables in less, and with int8 products."""
    model, made = run.load_model(), {}
    network = serving_network(model, padded=False)
    for precision in ("bf16", "int8"):
        write_tables(network, dataset.items, place / precision, precision)
        tables = opened(bundle, place / precision, precision)
        made[f"engine, {precision} tables"] = Engine(bundle.layout, tables, bundle.engine("onnx").backend)
    graphs = []
    for name in ("whole", "padded"):
        graph = place / f"{name}.onnx"
        shutil.copyfile(bundle.path / graph.name, graph)
        quantize_dense(graph)
        graphs.append(graph.read_bytes())
    made["engine, int8 tables and products"] = Engine(bundle.layout, tables, OnnxBackend(*graphs))
    return made


def opened(bundle: Bundle, directory: Path, precision: Precision) -> EngineTables:
    names = bundle.manifest.item_tables
    return EngineTables(
        embedding=Table.open(directory / "embedding", precision),
        tokens=Table.open(directory / "tokens", precision),
        events=Table.open(directory / "events", precision),
        items={name: Table.open(directory / name, table_precision(name, precision)) for name in names},
        reads_targets=False,
        dense=bundle.engine_tables.dense,
    )


def as_graph(model: INFNet, bundle: Bundle, tables: EngineTables, place: Path) -> OnnxBackend:
    """The equations as they stand in ONNX Runtime."""
    network = Equations(model).eval()
    engine = Engine(bundle.layout, tables, TorchBackend(network, network))
    ranker, items = Ranker(bundle), [bundle.items.key(1 + i) for i in range(3)]
    request = ranker.encoder.encode(RankRequest(bundle.users.key(1), items))
    write_graph(network, engine.inputs([request, request]), place / "equations.onnx")
    graph = (place / "equations.onnx").read_bytes()
    return OnnxBackend(graph, graph)


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest difference over the largest logit."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def seconds(run: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - started) / times


def from_raw(bundle: Bundle) -> dict:
    """Raw keys in, probabilities out, a new user and new candidates every time: medians of rounds' percentiles."""
    ranker, rng = Ranker(bundle), np.random.default_rng(2)
    rounds = []
    for _ in range(ROUNDS):
        ms = []
        for number in range(550):
            items = [bundle.items.key(i) for i in rng.integers(1, len(bundle.items) + 1, CANDIDATES)]
            user = bundle.users.key(1 + number % len(bundle.users))
            started = time.perf_counter()
            ranker.score(user, items, context={"tab": number % 5})
            ms.append(1000 * (time.perf_counter() - started))
        rounds.append(np.percentile(ms[50:], [50, 99]))
    p50, p99 = np.median(rounds, axis=0).tolist()
    return {"p50_ms": p50, "p99_ms": p99, "rounds": [each.tolist() for each in rounds]}


def floor(bundle: Bundle, engine: Engine, request: EncodedRequest) -> dict:
    """What a request must cost: products at the speed of a large product, bytes at that of a large copy, one after the
    other."""
    inputs = engine.inputs([request])
    network = serving_network(bundle.load_model(), padded=False)
    arrays = [inputs.request, inputs.fields, inputs.own, *inputs.tables, *inputs.events, *inputs.present]
    tensors = [torch.from_numpy(each) for each in (inputs.request, inputs.fields, inputs.own)]
    lists = [[torch.from_numpy(each) for each in part] for part in (inputs.tables, inputs.events, inputs.present)]
    flops = count_products(network, lambda: network(*tensors, *lists))
    weights = sum(p.numel() for p in network.parameters()) * 4
    moved = sum(each.nbytes for each in arrays) + weights
    square = torch.rand(1024, 1024)
    flops_per_s = 2 * 1024**3 / min(seconds(lambda: square @ square, 1) for _ in range(20))
    block, other = (np.ones(64 * 2**20 // 4, np.float32) for _ in range(2))
    bytes_per_s = block.nbytes / min(seconds(lambda: np.copyto(other, block), 1) for _ in range(10))
    return {
        "mflops": flops / 1e6,
        "mbytes": moved / 1e6,
        "products_ms": 1000 * flops / flops_per_s,
        "bytes_ms": 1000 * moved / bytes_per_s,
        "gflops_per_s": flops_per_s / 1e9,
        "gbytes_per_s": bytes_per_s / 1e9,
    }


def report(found: dict) -> None:
    """All tables."""
    print("| settings | M, L, d | system | ms | times faster than the equations | .. in ONNX Runtime | difference |")
    print("|---|---|---|---:|---:|---:|---:|")
    for row in found["requests"]:
        slow = {r["system"]: r["ms"] for r in found["requests"] if same(r, row)}
        ratios = [
            statistics.median(s / own for s, own in zip(slow[name], row["ms"], strict=False))
            for name in ("equations", "equations, ONNX Runtime")
        ]
        difference = "" if row["system"].startswith("DIN") else f"{row['difference']:.1e}"
        cells = (f"{statistics.median(row['ms']):.2f}", *(f"{ratio:.1f}" for ratio in ratios), difference)
        print(f"| {row['setting']} | {row['M']}, {row['L']}, {row['d']} | {row['system']} | {' | '.join(cells)} |")
    print("\n| settings | candidates | ms | us a candidate |\n|---|---:|---:|---:|")
    for row in found["growth"]:
        cells = (f"{row['candidates']:,}", f"{row['ms']:.2f}", f"{1000 * row['ms'] / row['candidates']:.1f}")
        print(f"| {row['setting']} | {' | '.join(cells)} |")
    print("\n| settings | M, L, d | raw keys to probabilities, p50 ms | p99 ms |\n|---|---|---:|---:|")
    for row in found["raw"]:
        print(f"| {row['setting']} | {row['M']}, {row['L']}, {row['d']} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} |")
    print("\n| settings | M, L, d | MFLOPs | MB | floor, ms | measured, ms | measured / floor |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for row in found["floor"]:
        engine = next(r for r in found["requests"] if same(r, row) and r["system"] == "engine")
        least, ms = row["products_ms"] + row["bytes_ms"], statistics.median(engine["ms"])
        cells = (f"{row['mflops']:.0f}", f"{row['mbytes']:.1f}", f"{least:.2f}", f"{ms:.2f}", f"{ms / least:.1f}")
        print(f"| {row['setting']} | {row['M']}, {row['L']}, {row['d']} | {' | '.join(cells)} |")


def same(one: dict, other: dict) -> bool:
    return all(one[key] == other[key] for key in ("setting", "M", "L", "d"))


def figure(found: dict) -> object:
    """Milliseconds of a request by system, a panel per size, in the settings measured first."""
    setting = found["requests"][0]["setting"]
    rows = [row for row in found["requests"] if row["setting"] == setting]
    sizes = list(dict.fromkeys((row["M"], row["L"], row["d"]) for row in rows))
    drawn = new_figure(12, 3.6)
    title = f"One request of {CANDIDATES} candidates on one core, INFNet as in the {setting} settings"
    drawn.suptitle(title, fontsize=11)
    axes = drawn.subplots(1, len(sizes), sharex=True, sharey=True, squeeze=False)[0]
    for panel, size in zip(axes, sizes, strict=True):
        here = [row for row in rows if (row["M"], row["L"], row["d"]) == size][::-1]
        values = [statistics.median(row["ms"]) for row in here]
        colours = [COLOURS[1] if row["system"].startswith("engine") else GREY for row in here]
        bars = panel.barh([row["system"] for row in here], values, color=colours)
        panel.bar_label(bars, labels=[f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in values], padding=3, fontsize=8)
        panel.set_xscale("log")
        panel.set_xlabel("ms")
        panel.set_title("M {}, L {}, d {}".format(*size), fontsize=10)
        panel.set_xlim(1, 4 * max(statistics.median(row["ms"]) for row in rows))
        plain_axes(panel)
    return drawn


if __name__ == "__main__":
    try:
        main()
    except InfnetError as error:
        sys.exit(f"Error: {error}")
