//! What can be seen of a running daemon.
//!
//! ```text
//! events of a build ─▶ trace::Trail (its steps) ─┬─▶ debug   /debug/builds
//! calls ─▶ calls (a layer of the services) ─┐         └─▶ metrics, at the build's end
//! builds, store, registries, process ───────┴─▶ metrics ─▶ debug  /metrics
//! ```
//!
//! Nothing here is asked for while nobody looks: counters are atomics, and what is costly (the store's size) is measured
//! when the page is fetched. No page shows build arguments, attributes or logs, as those may hold secrets.
pub(super) mod metrics;
pub(super) mod text; // Prometheus' exposition format
pub(super) mod calls;
pub(super) mod debug;
