"""Reads stdin as others read what the proxy says, and prints what they understood as JSON.

metrics   a page of metrics, with the parser of prometheus_client
spans     an ExportTraceServiceRequest, with opentelemetry-proto
openapi   a description of an API, with openapi-spec-validator
"""

import json
import sys


def metrics(data):
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(data.decode())
    return {
        family.name: {"type": family.type, "samples": len(family.samples)} for family in families
    }


def spans(data):
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest.FromString(data)
    # A decoder keeps what it does not know; without that, all must still be there.
    request.DiscardUnknownFields()
    assert request.ByteSize() == len(data), "unknown fields"
    return [
        {
            "kind": span.kind,
            "name": span.name,
            "id": span.span_id.hex(),
            "parent": span.parent_span_id.hex(),
            "trace": span.trace_id.hex(),
            "attributes": sorted(pair.key for pair in span.attributes),
            "service": [
                pair.value.string_value
                for pair in batch.resource.attributes
                if pair.key == "service.name"
            ],
        }
        for batch in request.resource_spans
        for scope in batch.scope_spans
        for span in scope.spans
    ]


def openapi(data):
    from openapi_spec_validator import validate

    document = json.loads(data)
    validate(document)
    return {"paths": len(document["paths"])}


if __name__ == "__main__":
    judges = {"metrics": metrics, "spans": spans, "openapi": openapi}
    print(json.dumps(judges[sys.argv[1]](sys.stdin.buffer.read())))
