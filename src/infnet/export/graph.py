"""Writing a serving network as an ONNX graph, and running it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from infnet.errors import ArtifactError, SpecError
from infnet.export.networks import ServingNetwork
from infnet.layers.table_read import plain_reads

__all__ = [
    "Backend",
    "GraphInputs",
    "OnnxBackend",
    "TorchBackend",
    "quantize_dense",
    "require_exporter",
    "require_runtime",
    "trace_graph",
    "write_graph",
]

_MOST = 2**30


@dataclass(frozen=True)
class GraphInputs:
    """See :meth:`infnet.export.networks.ServingNetwork.forward` for shapes."""

    request: NDArray[np.float32]
    fields: NDArray[np.float32]
    own: NDArray[np.float32]
    tables: Sequence[NDArray[np.float32]]
    events: Sequence[NDArray[np.float32]]
    present: Sequence[NDArray[np.float32]]


class Backend(Protocol):
    """Computes logits (R, N, T)."""

    def run(self, inputs: GraphInputs) -> NDArray[np.float32]:
        """Safe to call from several threads."""


class TorchBackend:
    """The network itself."""

    def __init__(self, whole: ServingNetwork, padded: ServingNetwork) -> None:
        self._whole, self._padded = whole, padded

    def run(self, inputs: GraphInputs) -> NDArray[np.float32]:
        """Logits (R, N, T)."""
        network = self._whole if len(inputs.request) == 1 else self._padded
        with torch.inference_mode():
            logits: torch.Tensor = network(*_tensors(inputs))
        return logits.numpy()


class OnnxBackend:
    """Its graphs in ONNX Runtime.

    Args:
        whole: Bytes of the graph for one request.
        padded: Of the graph for several.
        threads: Of one request.
    """

    def __init__(self, whole: bytes, padded: bytes, threads: int = 1) -> None:
        runtime = require_runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self._sessions = [
            runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for graph in (whole, padded)
        ]
        self._names = [{entry.name for entry in session.get_inputs()} for session in self._sessions]

    def run(self, inputs: GraphInputs) -> NDArray[np.float32]:
        """Logits (R, N, T)."""
        place = min(len(inputs.request) - 1, 1)
        session, names = self._sessions[place], self._names[place]
        feed = {name: value for name, value in _named(inputs) if name in names}  # a graph drops what it never reads
        logits: NDArray[np.float32] = session.run(None, feed)[0]
        return logits


def require_runtime() -> ModuleType:
    """ONNX Runtime.

    Raises:
        SpecError: It is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise SpecError(
            "onnxruntime is not installed; run pip install 'infnet[serve]', or choose backend torch"
        ) from error
    module: ModuleType = onnxruntime
    return module


def trace_graph(network: ServingNetwork, inputs: GraphInputs) -> bytes:
    """A network as a graph with dynamic candidates, histories and, if the example has several, requests.

    Every parameter stands in it under its own name, without its values: it is the same for all networks of one
    architecture, and :func:`write_graph` makes of it a graph that runs.

    Args:
        network: To be traced.
        inputs: An example of at least two candidates, and two events of each behaviour.

    Raises:
        SpecError: The exporter is not installed.
    """
    require_exporter()
    # Traced as "at least two", which never asks whether there is one; run, the products hold for one as well.
    candidates = torch.export.Dim("candidates", min=2, max=_MOST)
    requests = torch.export.Dim("requests", min=2, max=_MOST) if len(inputs.request) > 1 else None
    lengths = [torch.export.Dim(f"length{i}", min=2, max=_MOST) for i in range(len(inputs.events))]
    shapes = (
        {0: requests},
        {0: requests, 1: candidates},
        {0: requests, 1: candidates},
        [{0: requests, 1: candidates} for _ in inputs.tables],
        [{0: requests, 1: length} for length in lengths],
        [{0: requests, 1: length} for length in lengths],
    )
    with _quiet(), torch.no_grad(), plain_reads():
        program = torch.onnx.export(
            network,
            _tensors(inputs),
            input_names=[name for name, _ in _named(inputs)],
            output_names=["logits"],
            dynamic_shapes=shapes,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        proto = _simplified(program.model_proto, network.state_dict())
    for node in proto.graph.node:
        del node.metadata_props[:]  # where in which file it came from
    traced: bytes = proto.SerializeToString(deterministic=True)
    return traced


def _simplified(proto: Any, parameters: Mapping[str, torch.Tensor]) -> Any:
    """A graph without all that can be done before its parameters have values, and without their values."""
    import onnx
    from onnxscript import optimizer

    graph, own = proto.graph, [tensor for tensor in proto.graph.initializer if tensor.name in parameters]
    inputs, others = [*graph.input], [tensor for tensor in graph.initializer if tensor.name not in parameters]
    for tensor in own:
        tensor.ClearField("raw_data")
    del graph.initializer[:]
    graph.initializer.extend(others)
    # As inputs they could be anything.
    graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in own)
    proto = optimizer.optimize(proto)
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.graph.initializer.extend(own)
    return proto


def write_graph(traced: bytes, network: ServingNetwork, path: Path) -> None:
    """Write what :func:`trace_graph` gave with the parameters of a network.

    Raises:
        SpecError: The exporter is not installed.
        ArtifactError: It is of another architecture.
    """
    require_exporter()
    import onnx

    try:
        proto = onnx.load_from_string(traced)
    except Exception as error:  # of a parser that promises no type
        raise ArtifactError(f"{path.name}: the traced graph is damaged ({error}); export the run again") from error
    own = network.state_dict()
    for tensor in proto.graph.initializer:
        if tensor.name in own:
            values = own[tensor.name].detach().numpy()
            if tuple(tensor.dims) != values.shape:
                raise ArtifactError(
                    f"{path.name}: {tensor.name} has the shape {tuple(tensor.dims)} in the graph, {values.shape} in "
                    "the model; export the run again"
                )
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    path.write_bytes(proto.SerializeToString(deterministic=True))


def require_exporter() -> None:
    """See that graphs can be written.

    Raises:
        SpecError: The exporter is not installed.
    """
    try:
        import_module("onnx")
        import_module("onnxscript")
    except ImportError as error:
        raise SpecError(f"{error.name} is not installed; run pip install 'infnet[export]'") from error


def quantize_dense(path: Path) -> None:
    """Turn a graph's products with weights into int8 products; their inputs are quantised as they come.

    Weights take 7 bits: without VNNI, processors add products of 8 bits up in pairs of 16, which overflow.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxscript import optimizer

    with _quiet():
        # Weights that are transposed or cut before a product would not count as weights.
        path.write_bytes(optimizer.optimize(onnx.load_from_string(path.read_bytes())).SerializeToString())
        quantize_dynamic(
            path, path, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8, reduce_range=True
        )


def _tensors(inputs: GraphInputs) -> tuple[torch.Tensor | list[torch.Tensor], ...]:
    """What a network's forward takes."""
    single = [torch.from_numpy(each) for each in (inputs.request, inputs.fields, inputs.own)]
    lists = [[torch.from_numpy(each) for each in part] for part in (inputs.tables, inputs.events, inputs.present)]
    return (*single, *lists)


def _named(inputs: GraphInputs) -> list[tuple[str, NDArray[np.float32]]]:
    lists = {"table": inputs.tables, "events": inputs.events, "present": inputs.present}
    return [
        ("request", inputs.request),
        ("fields", inputs.fields),
        ("own", inputs.own),
        *((f"{name}{i}", each) for name, part in lists.items() for i, each in enumerate(part)),
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk a lot."""
    was = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(was)
