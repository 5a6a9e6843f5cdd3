import http.server
import itertools
import sys
import threading

import pytest
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from infnet.errors import SpecError
from infnet.serving.tracing import Tracer
from service_parts import Parts


@pytest.fixture
def parts(bundle, tmp_path):
    with Parts(bundle, tmp_path) as parts:
        yield parts


@pytest.fixture
def exporter(monkeypatch):
    """In memory, instead of the network."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", lambda: exporter)
    return exporter


def traced(exporter, ticket, reply):
    """The request's span, and those of its stages."""
    tracer = Tracer()
    tracer.answered(ticket, reply)
    tracer.close()
    spans = exporter.get_finished_spans()
    (request,) = [span for span in spans if span.parent is None]
    stages = [span for span in spans if span.parent is not None]
    assert all(stage.parent.span_id == request.context.span_id for stage in stages)
    assert all(stage.context.trace_id == request.context.trace_id for stage in stages)
    return request, sorted(stages, key=lambda stage: stage.start_time)


def test_a_request_is_a_span_that_says_what_it_was(parts, exporter):
    ticket = parts.ticket("u1", [1, 2, 3], request_id="r1")
    (reply,) = parts.service.answer([ticket])
    request, _ = traced(exporter, ticket, reply)
    assert request.name == "rank"
    assert dict(request.attributes) == {
        "infnet.request_id": "r1",
        "infnet.model_version": parts.bundle.manifest.version,
        "infnet.candidates": 3,
        "infnet.degraded": (),
    }


def test_its_stages_follow_each_other_within_it_and_take_what_they_took(parts, exporter):
    parts.store.delay_s = 0.02
    ticket = parts.ticket()
    (reply,) = parts.service.answer([ticket])
    request, stages = traced(exporter, ticket, reply)
    assert [stage.name for stage in stages] == ["queue", "features", "encode", "model", "reply"]
    assert stages[0].start_time == request.start_time
    for before, after in itertools.pairwise(stages):
        assert abs(after.start_time - before.end_time) < 10
    assert stages[-1].end_time <= request.end_time
    for stage in stages:
        assert (stage.end_time - stage.start_time) / 1e9 == pytest.approx(ticket.seconds[stage.name], abs=1e-7)
    assert (stages[1].end_time - stages[1].start_time) / 1e9 >= 0.02


def test_an_order_by_popularity_is_a_span_that_says_so(parts, exporter):
    ticket = parts.ticket()
    reply = parts.service.popular(ticket)
    request, stages = traced(exporter, ticket, reply)
    assert request.attributes["infnet.degraded"] == ("popularity_order",)
    assert stages == []


def test_what_waits_is_sent_at_the_end(parts, monkeypatch):
    """To a collector that OpenTelemetry's own variables name."""
    posts = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            posts.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    collector = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ranking-here")
    tracer = Tracer()
    ticket = parts.ticket(request_id="request-to-find")
    tracer.answered(ticket, *parts.service.answer([ticket]))
    tracer.close()
    collector.shutdown()
    thread.join()
    collector.server_close()
    ((path, body),) = posts
    assert path == "/v1/traces"
    assert b"request-to-find" in body
    assert b"ranking-here" in body


def test_without_opentelemetry_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SpecError, match=r"infnet\[tracing\]"):
        Tracer()
