"""The server of `mlflow run . -e serve`: a registered model behind OpenAI's API.

A request passes these files in this order:

    server.py              listens, ends on signals, and follows the alias
    guard.py               refuses by key, host and content type, and turns errors into OpenAI's shape
    app.py                 the endpoints
    openapi.py             what /openapi.json says of them
    models.py              the model that answers now, and its replacement by another version
    transformers_model.py  a model of MLflow's transformers flavour, with the interface of the ONNX wrapper
    generation.py          one request in the engine, until it is answered, cancelled or out of time
    answers.py             OpenAI's objects
    streams.py             server-sent events, and clients that do not read them
    metrics.py             what Prometheus reads
    tracing/               what is kept of each request, for monitor
    errors.py              the errors that a client gets

chat.html is the page at /. docs/guides/serve.md is the guide.
"""
