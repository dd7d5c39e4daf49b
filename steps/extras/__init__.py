"""Optional features: each serves only those who ask for it.

bom               the bill of materials of a registered version (CycloneDX)
signing           signatures over a model's files (OpenSSF model signing)
lm_eval           run tasks of EleutherAI's lm-evaluation-harness on the candidates
lm_eval_model     a candidate as the harness sees a model
lm_eval_metrics   the harness' results as metrics
ray_cluster       the trials of a sweep on a Ray cluster
ray_node          what one node of that cluster does
"""
