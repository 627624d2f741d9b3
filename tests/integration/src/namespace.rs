//! Network namespaces joined by a veth pair.
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command::{output, run};
use crate::skipped;

/// Names of namespaces begin with this, then comes the process number of the test.
const PREFIX: &str = "rnic-test-";

/// Whether this process may make namespaces. When not, says loudly that `test` is skipped.
pub fn privileged(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skipped(test, "it makes network namespaces and needs root");
    }
    root
}

/// A network namespace, removed with everything in it on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one, empty but for its loopback device, with IPv6 switched off: in it the appliance alone answers.
    ///
    /// # Panics
    /// When it cannot be made; see [`privileged`].
    pub fn new() -> Namespace {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let namespace = Namespace { name };
        namespace.ipv6(false);
        namespace
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a program of the system inside.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        run("ip", &[&["netns", "exec", &self.name, program], args].concat())
    }

    /// Switches the kernel's own IPv6 on or off.
    pub fn ipv6(&self, on: bool) {
        for scope in ["all", "default"] {
            let setting = format!("net.ipv6.conf.{scope}.disable_ipv6={}", u8::from(!on));
            self.run("sysctl", &["-qw", &setting]);
        }
    }

    /// Opens something inside: a socket belongs to the namespace of the thread that made it.
    ///
    /// # Panics
    /// When the namespace cannot be entered.
    pub fn inside(&self, open: impl FnOnce() -> OwnedFd + Send) -> OwnedFd {
        let path = format!("/var/run/netns/{}", self.name);
        let file = File::open(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                use std::os::fd::AsFd;
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("entering a network namespace");
                open()
            });
            thread.join().expect("the thread in the namespace ends well")
        })
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let removed = output("ip", &["netns", "del", &self.name]);
        if !removed.status.success() {
            let why = String::from_utf8_lossy(&removed.stderr);
            eprintln!("namespace {} is left behind: {why}", self.name);
        }
    }
}

/// Removes namespaces of tests that were killed.
fn sweep() {
    for line in run("ip", &["netns", "list"]).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists()) {
            output("ip", &["netns", "del", name]);
        }
    }
}

/// Two namespaces, each with one end of a veth pair, `veth0`, up and of a jumbo MTU.
#[derive(Debug)]
pub struct Wire {
    /// One end.
    pub a: Namespace,
    /// The other.
    pub b: Namespace,
}

impl Wire {
    /// Joins two fresh namespaces.
    ///
    /// # Panics
    /// As [`Namespace::new`].
    pub fn new() -> Wire {
        let wire = Wire {
            a: Namespace::new(),
            b: Namespace::new(),
        };
        wire.join();
        wire
    }

    /// Joins them again, after the pair has been deleted.
    ///
    /// # Panics
    /// As [`Namespace::new`], and when they are joined.
    pub fn join(&self) {
        let (a, b) = (self.a.name(), self.b.name());
        run(
            "ip",
            &[
                "link", "add", "veth0", "netns", a, "type", "veth", "peer", "name", "veth0", "netns", b,
            ],
        );
        for end in [&self.a, &self.b] {
            end.run("ip", &["link", "set", "lo", "up"]);
            end.run("ip", &["link", "set", "veth0", "mtu", "9000", "up"]);
        }
    }
}

impl Default for Wire {
    fn default() -> Self {
        Self::new()
    }
}
