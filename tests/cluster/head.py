"""A Ray head with a second raylet beside it, as a process of its own: prints the dashboard's address, ends with its input.

Run as ``python -m tests.cluster.head``. Each raylet has one CPU.
"""

from __future__ import annotations

import socket
import sys

from ray.cluster_utils import Cluster


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    memory = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**memory, "include_dashboard": True, "dashboard_port": port})
    try:
        cluster.add_node(**memory)
        cluster.wait_for_nodes()
        print(f"http://127.0.0.1:{port}", flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
