"""ray_nodes.py: print how many nodes of the Ray cluster at the given address are alive."""

import sys

import ray

ray.init(sys.argv[1], log_to_driver=False)
print(sum(node["Alive"] for node in ray.nodes()))
