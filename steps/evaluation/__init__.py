"""Questions, scores, statistics and gates: functions of files and numbers. A candidate is a function too.

tasks.py        the questions: JSON Lines of messages, each with a reference and a scorer
asking.py       ask one candidate every question, and time each answer
scoring.py      whether one answer is right
choices.py      multiple choice: the choice that the model finds likeliest
predictions.py  the answers of all candidates side by side, scored
contract.py     whether a candidate does what its signature promises
fidelity.py     how close a build's probabilities are to its reference's
latency.py      how long generation takes, by prompt length and batch
statistics.py   estimates with 95 % intervals
metrics.py      all figures of a candidate, by name
gates.py        limits on figures, and the verdict
"""
