"""A Ray head with a second raylet beside it, as one process: prints the dashboard's address, ends with its input.

Run as ``python -m tests.cluster.head``. Each raylet has one CPU.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

from ray.cluster_utils import Cluster


def main() -> None:
    dashboard, *agents = free_ports(3)
    first, second = (settings(port) for port in agents)
    cluster = Cluster(
        initialize_head=True, head_node_args={**first, "include_dashboard": True, "dashboard_port": dashboard}
    )
    try:
        cluster.add_node(**second)
        cluster.wait_for_nodes()
        print(f"http://127.0.0.1:{dashboard}", flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


def settings(port: int) -> dict[str, Any]:
    """One raylet. The job API lives in its agent, whose usual port another Ray of this machine may have."""
    return {"num_cpus": 1, "object_store_memory": 100 * 2**20, "dashboard_agent_listen_port": port}


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


if __name__ == "__main__":
    main()
