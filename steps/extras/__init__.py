"""Optional features, each with its own dependencies.

lm_eval.py          asks loaded candidates the tasks of lm-evaluation-harness (requirements-lm-eval.txt)
lm_eval_model.py    a candidate as the harness sees it
lm_eval_metrics.py  the harness's results as metrics
ray_cluster.py      the trials of a sweep on a Ray cluster (requirements-ray.in)
ray_node.py         what a node of the cluster does for a trial
signing.py          signs a registered model, and verifies the signature
bom.py              the bill of materials of a registered model
"""
