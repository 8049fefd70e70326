"""What is measured: a module for each family of workloads."""

from benchmarks.workloads import beside_bulk, fanin, growth, importing, latency, persistent, restart, store, throughput

ALL = {
    workload.name: workload
    for module in (throughput, latency, beside_bulk, store, persistent, fanin, restart, importing, growth)
    for workload in module.WORKLOADS
}
