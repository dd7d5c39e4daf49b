"""Questions, scores, statistics and gates: functions of files and numbers. A candidate is a function too.

tasks         the questions: JSON Lines of messages, each with a reference and a scorer
asking        ask one candidate every question, and time each answer
scoring       whether one answer is right
choices       multiple choice: the choice that the model finds likeliest
predictions   the answers of all candidates side by side, scored
contract      whether a candidate does what its signature promises
fidelity      how close a build's probabilities are to its reference's
latency       how long generation takes, by prompt length and batch
statistics    estimates with 95 % intervals
metrics       all figures of a candidate, by name
gates         limits on figures, and the verdict
"""
