//! Finds libdpdk, compiles the shims over its inline functions, and generates the raw bindings.

use std::env;
use std::fmt::Display;
use std::path::PathBuf;
use std::process::{Command, exit};

const MINIMUM_DPDK: &str = "22.11";

/// Linked dynamically. EAL loads the drivers itself from its plugin directory; `rte_net_ring` is
/// the exception, because rings are turned into ports by calling that driver.
const LIBRARIES: [&str; 9] = [
    "rte_ethdev",
    "rte_net_ring",
    "rte_bus_vdev",
    "rte_mbuf",
    "rte_mempool",
    "rte_rcu",
    "rte_ring",
    "rte_eal",
    "rte_log",
];

/// Libraries of [`LIBRARIES`] that only later releases have: logging left `rte_eal` in 23.11.
const OPTIONAL_LIBRARIES: [&str; 1] = ["rte_log"];

const FUNCTIONS: [&str; 19] = [
    "dpdk_.*",
    "rte_eal_alarm_set",
    "rte_eal_(init|cleanup|hotplug_add|hotplug_remove)",
    "rte_strerror",
    "rte_log_set_(global_level|level_pattern)",
    "rte_thread_(register|unregister)",
    "rte_dev_probe",
    "rte_vdev_(init|uninit)",
    "rte_pktmbuf_(pool_create|free_bulk)",
    "rte_mempool_(free|in_use_count)",
    "rte_ring_(create|free)",
    "rte_eth_from_rings",
    "rte_eth_find_next",
    "rte_eth_(rx|tx)_queue_setup",
    "rte_eth_(promiscuous|allmulticast)_(enable|disable)",
    "rte_eth_(macaddr_get|stats_get|stats_reset)",
    "rte_eth_dev_(start|stop|close|get_mtu|set_mtu|set_mc_addr_list|default_mac_addr_set)",
    "rte_eth_dev_(adjust_nb_rx_tx_desc|get_port_by_name|get_name_by_port)",
    "rte_rcu_qsbr_(get_memsize|init|thread_register|thread_unregister)",
];

const TYPES: [&str; 2] = ["rte_mbuf", "rte_rcu_qsbr"];

/// Known only behind a pointer: their insides change between releases and nothing here needs them.
const OPAQUE_TYPES: [&str; 5] = [
    "rte_mempool",
    "rte_ring",
    "rte_eth_rxconf",
    "rte_eth_txconf",
    "rte_mbuf_ext_shared_info",
];

fn main() {
    for path in ["build.rs", "wrapper/wrapper.h", "wrapper/wrapper.c"] {
        println!("cargo:rerun-if-changed={path}");
    }
    println!("cargo:rerun-if-env-changed=LIBCLANG_PATH");

    let library = pkg_config::Config::new()
        .atleast_version(MINIMUM_DPDK)
        .cargo_metadata(false)
        .probe("libdpdk")
        .unwrap_or_else(|error| fail("pkg-config found no usable libdpdk", error));
    let cflags = raw_cflags();

    compile_shims(&cflags);
    generate_bindings(&cflags);
    link(&library);
}

/// Says what is missing and which packages bring it, then ends the build.
fn fail(what: &str, why: impl Display) -> ! {
    eprintln!("error: dpdk-sys needs DPDK {MINIMUM_DPDK} or later, libclang and pkg-config: {what}.");
    eprintln!("help: on Debian and Ubuntu: apt-get install libdpdk-dev libclang-dev pkg-config");
    eprintln!("      (libclang-14-dev is enough; LIBCLANG_PATH and PKG_CONFIG_PATH name other places)");
    eprintln!("help: rnic-engine builds without DPDK when its default feature `dpdk` is off");
    eprintln!("cause: {why}");
    exit(1);
}

/// The flags as they are: besides include paths they carry `-march` and a forced include, which
/// both compilers must see alike for structures and inline functions to agree.
fn raw_cflags() -> Vec<String> {
    let tool = env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into());
    let output = Command::new(tool)
        .args(["--cflags", "libdpdk"])
        .output()
        .unwrap_or_else(|error| fail("pkg-config does not run", error));
    if !output.status.success() {
        fail(
            "pkg-config --cflags libdpdk failed",
            String::from_utf8_lossy(&output.stderr),
        );
    }
    String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

fn compile_shims(cflags: &[String]) {
    let mut build = cc::Build::new();
    // Bursts go through these functions: they are optimised in debug builds too.
    build
        .file("wrapper/wrapper.c")
        .opt_level(3)
        .std("gnu11")
        .warnings(true);
    for flag in cflags {
        // DPDK's own headers are not warning-free, so they count as system headers.
        match flag.strip_prefix("-I") {
            Some(path) => build.flag("-isystem").flag(path),
            None => build.flag(flag),
        };
    }
    if let Err(error) = build.try_compile("rnic_dpdk_shims") {
        fail("the shims do not compile against the installed headers", error);
    }
}

fn generate_bindings(cflags: &[String]) {
    if let Err(error) = clang_sys::load() {
        fail("libclang was not found", error);
    }
    let mut builder = bindgen::Builder::default()
        .header("wrapper/wrapper.h")
        .clang_args(cflags)
        .use_core()
        .generate_comments(false)
        .derive_debug(false)
        .layout_tests(true)
        .wrap_unsafe_ops(true)
        .formatter(bindgen::Formatter::None)
        .allowlist_var("DPDK_.*");
    for pattern in FUNCTIONS {
        builder = builder.allowlist_function(pattern);
    }
    for pattern in TYPES {
        builder = builder.allowlist_type(pattern);
    }
    for pattern in OPAQUE_TYPES {
        builder = builder.opaque_type(pattern);
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bindings.rs");
    match builder.generate() {
        Ok(bindings) => bindings
            .write_to_file(out)
            .unwrap_or_else(|error| fail("bindings cannot be written", error)),
        Err(error) => fail("libclang could not read the DPDK headers", error),
    }
}

fn link(library: &pkg_config::Library) {
    for path in &library.link_paths {
        println!("cargo:rustc-link-search=native={}", path.display());
    }
    for name in LIBRARIES {
        let needed = !OPTIONAL_LIBRARIES.contains(&name) || library.libs.iter().any(|lib| lib == name);
        if needed {
            println!("cargo:rustc-link-lib=dylib={name}");
        }
    }
}
