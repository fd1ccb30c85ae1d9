"""Tracers, each with a way to get the statements of the spans that it would send."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Statements = list[str]


def load(name: str) -> Any:
    """Import a module of a library that not every environment has."""
    return importlib.import_module(name)


class Opentelemetry:
    """opentelemetry-instrumentation-psycopg."""

    library = "opentelemetry.instrumentation"
    exporter: Any
    tracer: Any

    def start(self) -> None:
        """Instrument psycopg."""
        provider = self.provide()
        load("opentelemetry.instrumentation.psycopg").PsycopgInstrumentor().instrument(
            tracer_provider=provider
        )

    def provide(self) -> Any:
        """Return a provider that keeps its spans in memory."""
        provider = load("opentelemetry.sdk.trace").TracerProvider()
        provider.add_span_processor(self.processor())
        self.tracer = provider.get_tracer("test")
        return provider

    def processor(self) -> Any:
        """Return a processor that keeps its spans in memory."""
        memory = load("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        self.exporter = memory.InMemorySpanExporter()
        return load("opentelemetry.sdk.trace.export").SimpleSpanProcessor(self.exporter)

    @contextmanager
    def record(self, seen: Statements) -> Iterator[None]:
        """Append the statement of each span that is a child of the block's."""
        self.exporter.clear()
        with self.tracer.start_as_current_span("test") as block:
            yield
        for span in self.exporter.get_finished_spans():
            statement = (span.attributes or {}).get("db.statement")
            if statement is not None and span.parent == block.get_span_context():
                seen.append(str(statement))


class OpentelemetryByConfigure(Opentelemetry):
    """opentelemetry-instrumentation-psycopg for the connections of one pool."""

    def start(self) -> None:
        """Make the provider."""
        self.provider = self.provide()

    @property
    def options(self) -> dict[str, Any]:
        """The options of the pool."""
        return {"configure": self.configure}

    async def configure(self, conn: Any) -> None:
        """Instrument one connection."""
        load("opentelemetry.instrumentation.psycopg").PsycopgInstrumentor.instrument_connection(
            conn, tracer_provider=self.provider
        )


class Logfire(Opentelemetry):
    """logfire, which uses OpenTelemetry's instrumentation."""

    library = "logfire"

    def start(self) -> None:
        """Instrument psycopg."""
        logfire = load("logfire")
        logfire.configure(
            send_to_logfire=False, console=False, additional_span_processors=[self.processor()]
        )
        logfire.instrument_psycopg("psycopg")
        self.tracer = load("opentelemetry.trace").get_tracer("test")


class Ddtrace:
    """ddtrace; the spans are read where its writer would get them."""

    library = "ddtrace"

    def start(self) -> None:
        """Instrument psycopg."""
        trace = load("ddtrace.trace")
        self.finished: list[Any] = []

        def keep(_: object, spans: list[Any]) -> None:
            self.finished.extend(spans)

        kind: Any = type("Keep", (trace.TraceFilter,), {"process_trace": keep})
        self.tracer = trace.tracer
        self.tracer.configure(trace_processors=[kind()])
        self.patch()

    def patch(self) -> None:
        """Patch psycopg alone."""
        load("ddtrace").patch(psycopg=True)

    @contextmanager
    def record(self, seen: Statements) -> Iterator[None]:
        """Append the statement of each span of the block."""
        self.finished.clear()
        with self.tracer.trace("test"):
            yield
        seen += [span.resource for span in self.finished if span.span_type == "sql"]


class DdtraceAuto(Ddtrace):
    """ddtrace, which patches all that it knows."""

    def patch(self) -> None:
        """Patch psycopg and all others."""
        load("ddtrace.auto")


class Elasticapm:
    """elastic-apm, with a transport that keeps what it gets."""

    library = "elasticapm"

    def start(self) -> None:
        """Instrument psycopg."""
        elasticapm = load("elasticapm")
        self.sent: list[Any] = []

        def queue(_: object, kind: str, data: Any, flush: bool = False) -> None:
            if kind == "span":
                self.sent.append(data)

        def nothing(*_: object, pid: int | None = None) -> None:
            """Start and close no thread."""

        methods = {"queue": queue, "start_thread": nothing, "close": nothing}
        base = load("elasticapm.transport.base").Transport
        # The client imports its transport by name.
        vars(sys.modules[__name__])["Keep"] = type("Keep", (base,), methods)
        self.client = elasticapm.Client(
            transport_class=f"{__name__}.Keep",
            service_name="test",
            central_config=False,
            metrics_interval="0s",
            cloud_provider="none",
            transaction_max_spans=10_000,
            span_compression_enabled=False,
        )
        elasticapm.instrument()

    @contextmanager
    def record(self, seen: Statements) -> Iterator[None]:
        """Append the statement of each span of the block."""
        self.sent.clear()
        self.client.begin_transaction("test")
        yield
        self.client.end_transaction("test")
        statements = [span["context"].get("db", {}).get("statement") for span in self.sent]
        seen += [each for each in statements if each is not None]


class Sentry:
    """sentry-sdk, with all of its own integrations."""

    library = "sentry_sdk"

    def start(self) -> None:
        """Start the SDK."""
        self.events: list[Any] = []

        def keep(event: Any, hint: Any) -> None:
            self.events.append(event)

        self.init(before_send_transaction=keep)

    def init(self, **options: Any) -> None:
        """Start the SDK with a transport that sends nothing."""
        self.sentry = load("sentry_sdk")

        def drop(_: object, envelope: Any) -> None:
            """Do not send."""

        base = load("sentry_sdk.transport").Transport
        kind = type("Drop", (base,), {"capture_envelope": drop})
        dsn = "http://key@127.0.0.1:9/1"
        self.sentry.init(dsn=dsn, traces_sample_rate=1.0, transport=kind, **options)

    @contextmanager
    def record(self, seen: Statements) -> Iterator[None]:
        """Append the statement of each span of the block."""
        self.events.clear()
        with self.sentry.start_transaction(name="test"):
            yield
        for event in self.events:
            seen += [each["description"] for each in event["spans"] if each["op"] == "db"]


class SentryCursors(Sentry):
    """sentry-sdk with the cursors of `asyncpool.integrations.sentry`."""

    @property
    def options(self) -> dict[str, Any]:
        """The options of the pool."""
        cursor = load("asyncpool.integrations.sentry").SentryCursor
        return {"kwargs": {"cursor_factory": cursor}}


class SentryStream(SentryCursors):
    """These in the SDK's streaming mode."""

    def start(self) -> None:
        """Start the SDK."""
        self.spans: list[Any] = []

        def keep(span: Any, hint: Any) -> Any:
            self.spans.append(span)
            return span

        self.init(trace_lifecycle="stream", before_send_span=keep)

    @contextmanager
    def record(self, seen: Statements) -> Iterator[None]:
        """Append the statement of each span of the block."""
        self.spans.clear()
        with self.sentry.traces.start_span(name="test"):
            yield
        spans = [span for span in self.spans if span["attributes"].get("sentry.op") == "db"]
        seen += [span["name"] for span in spans]


TRACERS: dict[str, Any] = {
    "opentelemetry": Opentelemetry,
    "opentelemetry by configure": OpentelemetryByConfigure,
    "logfire": Logfire,
    "ddtrace": Ddtrace,
    "ddtrace.auto": DdtraceAuto,
    "elasticapm": Elasticapm,
    "sentry with our cursors": SentryCursors,
    "sentry": Sentry,
    "sentry with our cursors, streaming": SentryStream,
}
