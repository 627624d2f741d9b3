//! Bindings to DPDK: bindgen over libdpdk, and burst-level wrappers.
