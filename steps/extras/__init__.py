"""Optional features. Each needs a requirements file of its own, which one line names where it is missing.

    bom              the bill of materials of a registered version (requirements-supply-chain.txt)
    signing          the signature of a registered version (requirements-supply-chain.txt)
    lm_eval          tasks of lm-evaluation-harness, put to loaded candidates (requirements-lm-eval.txt)
    lm_eval_model    a loaded candidate as a model of the harness
    lm_eval_metrics  the harness' results as our metrics
    ray_cluster      trials of a sweep as tasks of a Ray cluster (requirements-ray.in)
    ray_node         what a node of the cluster does for a trial

The keys that ask for them, and the packages that they need: `steps.config.validation.EXTRAS`. A step
imports such a module, or the module its library, only where the feature is asked for.
"""
