"""OpenTelemetry spans of ranking requests, made afterwards from the times of their stages."""

from __future__ import annotations

import time

from infnet.errors import SpecError
from infnet.serving.ticket import Ticket
from infnet.serving.wire import RankReply

__all__ = ["Tracer"]


class Tracer:
    """Sends one span a request, with one child a stage, over OTLP/HTTP.

    Where to is said by OpenTelemetry's own variables, such as OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_SERVICE_NAME.

    Raises:
        SpecError: OpenTelemetry is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise SpecError("--tracing needs OpenTelemetry; install it with: pip install 'infnet[tracing]'") from error
        self._provider = TracerProvider()
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("infnet")

    def answered(self, ticket: Ticket, reply: RankReply) -> None:
        """Send the spans of an answer."""
        from opentelemetry.trace import set_span_in_context

        now_ns, now = time.time_ns(), time.perf_counter()

        def at(moment: float) -> int:
            return now_ns - round(1e9 * (now - moment))

        span = self._tracer.start_span(
            "rank",
            start_time=at(ticket.arrived),
            attributes={
                "infnet.request_id": ticket.request_id,
                "infnet.model_version": reply.model_version,
                "infnet.candidates": len(ticket.items),
                "infnet.degraded": reply.degraded,
            },
        )
        moment = ticket.arrived
        for stage, seconds in dict(ticket.seconds).items():
            child = self._tracer.start_span(stage, context=set_span_in_context(span), start_time=at(moment))
            moment += seconds
            child.end(end_time=at(moment))
        span.end(end_time=now_ns)

    def close(self) -> None:
        """Send what waits."""
        self._provider.shutdown()
