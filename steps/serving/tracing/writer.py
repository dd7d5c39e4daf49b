"""Writes traces to MLflow, in a process of its own: batches in, one line each as JSON, and for each one line out.

The line is empty, or says why the batch is lost. A trace takes MLflow some 5 ms of Python: in the server's own process,
answers would wait meanwhile.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Sequence

import psutil
from mlflow import MlflowClient
from mlflow.entities import Span
from mlflow.tracing.client import TracingClient
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

from steps.records import traces as names
from steps.records.errors import in_one_line
from steps.safety.processes import watch
from steps.serving.tracing.record import Record


def write(records: Sequence[Record]) -> None:
    """Write each of *records* as a trace: a span without parent. Raises what MLflow raises."""
    by_model: dict[str, list[Span]] = {}
    for record in records:
        by_model.setdefault(record.model, []).append(span_of(record))
    for model, spans in by_model.items():
        TracingClient().log_spans(experiment_of(model), spans)


def experiment_of(model: str) -> str:
    """Return the id of the experiment for the traces of *model*; make the experiment if it is missing."""
    name, client = names.experiment_name(model), MlflowClient()
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def span_of(record: Record) -> Span:
    """Return *record* as a span."""
    operation, trace_id = "chat" if record.chat else "text_completion", random.getrandbits(128)
    attributes = {
        "mlflow.traceRequestId": f"tr-{trace_id:032x}",
        f"mlflow.traceTag.{names.VERSION}": record.version,
        "mlflow.traceTag.mlflow.traceName": f"{record.model}/{record.version}",
        names.OPERATION: operation,
        names.MODEL: record.model,
        **record.attributes,
    }
    if record.sample:
        attributes[names.SCRIPT] = names.script_of(record.sample)
    if record.messages:
        attributes |= {
            names.INPUT: {"messages": [{"role": role, "content": text} for role, text in record.messages]},
            names.OUTPUT: {"choices": [{"message": {"role": "assistant", "content": text}} for text in record.answers]},
        }
    if record.tools:
        attributes[names.TOOLS] = json.loads(record.tools)
    return Span(
        ReadableSpan(
            name=f"{operation} {record.model}",
            context=SpanContext(trace_id, random.getrandbits(64), is_remote=False, trace_flags=TraceFlags(1)),
            resource=Resource.get_empty(),
            start_time=record.started,
            end_time=record.ended,
            # As MLflow has them: each in JSON.
            attributes={name: json.dumps(value, ensure_ascii=False) for name, value in attributes.items()},
            status=Status(StatusCode.ERROR, record.error) if record.error else Status(StatusCode.OK),
        )
    )


def main() -> None:
    """Write what standard input brings, until it ends or the server is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the server gets the signal too, and ends this process at last
    watch(psutil.Process(os.getppid()))
    replies, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        reply = ""
        try:
            write([Record(**each) for each in json.loads(line)])
        except Exception as error:  # noqa: BLE001  # whatever it is, the next batch may fare better
            reply = in_one_line(error)
        print(reply, file=replies, flush=True)


if __name__ == "__main__":
    main()
