"""How a step becomes a run: configuration, launch, hand-over, provenance."""
