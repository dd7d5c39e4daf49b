"""Optional features, each with its own dependencies. One line names the file that installs what is missing.

lm_eval.py          asks loaded candidates the tasks of lm-evaluation-harness (requirements-lm-eval.txt)
lm_eval_model.py    a candidate as the harness sees it
lm_eval_metrics.py  the results of the harness as metrics
calibration.py      int4 weights from calibration: what a build asks for (requirements-calibration.in)
auto_round_int4.py  calibrates a checkpoint, in a process of its own
ray_cluster.py      the trials of a sweep on a Ray cluster (requirements-ray.in)
ray_node.py         what a node of the cluster does for a trial
ray_serve.py        the server as replicas on a Ray cluster (requirements-ray.in)
signing.py          signs a registered model, and verifies the signature (requirements-supply-chain.txt)
bom.py              the bill of materials of a registered model (requirements-supply-chain.txt)

`steps.config.validation.EXTRAS` has the keys that ask for them. A module here, or its library, is imported only where
its feature is asked for.
"""
