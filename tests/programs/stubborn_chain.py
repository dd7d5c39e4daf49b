"""stubborn_chain.py: a chain whose step does not end when it is told to."""

from steps.config.command_line import compose_config
from steps.flow.launch import launch, start_here
from steps.flow.runs import open_run
from steps.safety.processes import end_on_signals, watch_launcher

STEP = "trap : TERM; echo started; while true; do sleep 0.1; done"

end_on_signals()
watch_launcher()
with open_run("main", compose_config([])) as chain:
    launch("fetch_model", {}, chain, lambda _command, variables: start_here(STEP, variables))
