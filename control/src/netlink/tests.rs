//! Against a kernel, in a network namespace of the test's own.

use std::{fs::File, io::Write, os::fd::AsFd, process::Command};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::*;

/// A namespace with an interface `d0`, joined to `p0`, removed on drop. The thread that made it is in it.
pub(crate) struct Inside(String);

impl Inside {
    /// Moves this thread, which ends with the test, into a fresh namespace; `None`, loudly, without the right to.
    pub fn new(test: &str) -> Option<Inside> {
        if !rustix::process::geteuid().is_root() {
            let why = "it makes network namespaces and needs root";
            let _ = writeln!(std::io::stderr(), "\n*** SKIPPED {test}: {why} ***\n");
            return None;
        }
        let name = format!("rnic-test-{}-{test}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &name]).status().unwrap();
        assert!(made.success());
        let inside = Inside(name);
        let file = File::open(format!("/var/run/netns/{}", inside.0)).unwrap();
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        inside.ip("link add d0 type veth peer name p0");
        inside.ip("link set p0 addrgenmode none up");
        Some(inside)
    }

    pub fn ip(&self, args: &str) {
        let done = Command::new("ip").args(args.split(' ')).output().unwrap();
        assert!(
            done.status.success(),
            "ip {args}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn addresses(netdev: &Netdev) -> Vec<String> {
    let text = |a: &NetdevAddress| format!("{}/{}", a.ip, a.prefix_len);
    netdev.addresses.iter().map(text).collect()
}

fn wait(monitor: &Monitor) {
    let patience = Timespec {
        tv_sec: 20,
        tv_nsec: 0,
    };
    let ready = poll(&mut [PollFd::new(monitor, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ready, 1, "no notification");
}

#[test]
fn a_look_tells_link_and_usable_addresses_of_one_interface() {
    let Some(inside) = Inside::new("look") else { return };
    let index = index_of("d0").unwrap();
    let mut scanner = Scanner::new().unwrap();
    let down = scanner.look(index).unwrap().unwrap();
    assert_eq!((down.name.as_str(), down.up, down.mtu), ("d0", false, 1500));
    assert_eq!(addresses(&down), [""; 0]);
    inside.ip("addr add 10.1.0.9/16 dev p0");
    inside.ip("link set d0 addrgenmode none");
    inside.ip("link set d0 mtu 4200 address 02:00:00:00:00:77 up");
    inside.ip("addr add fd00::1/64 dev d0 nodad");
    inside.ip("addr add 10.0.0.1/24 dev d0");
    inside.ip("addr add 10.0.0.2/24 dev d0");
    inside.ip("addr add 10.9.0.1 peer 10.9.0.2/32 dev d0");
    inside.ip("link set lo up");
    let own = scanner.look(index_of("lo").unwrap()).unwrap().unwrap();
    assert_eq!(addresses(&own), [""; 0], "what no station can have");
    let up = scanner.look(index).unwrap().unwrap();
    assert_eq!((up.up, up.mtu, up.mac), (true, 4200, Some([2, 0, 0, 0, 0, 0x77])));
    assert_eq!(
        addresses(&up),
        ["10.0.0.1/24", "10.9.0.1/32", "10.0.0.2/24", "fd00::1/64"]
    );
    inside.ip("addr del 10.0.0.2/24 dev d0");
    inside.ip("link set d0 name renamed");
    let renamed = scanner.look(index).unwrap().unwrap();
    assert_eq!((renamed.name.as_str(), renamed.addresses.len()), ("renamed", 3));
    inside.ip("link del renamed");
    assert_eq!(scanner.look(index).unwrap(), None);
    assert_eq!(index_of("renamed"), None);
}

#[test]
fn an_interface_with_more_addresses_than_one_answer_holds_is_seen_whole() {
    let Some(inside) = Inside::new("many") else { return };
    let index = index_of("d0").unwrap();
    let batch: String = (0..700u32)
        .map(|i| format!("addr add 10.0.{}.{}/16 dev d0\n", i / 250, i % 250 + 1))
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), batch).unwrap();
    inside.ip(&format!("-batch {}", file.path().display()));
    assert_eq!(
        Scanner::new()
            .unwrap()
            .look(index)
            .unwrap()
            .unwrap()
            .addresses
            .len(),
        700
    );
}

#[test]
fn changes_of_links_and_addresses_are_told_by_interface() {
    let Some(inside) = Inside::new("told") else { return };
    let index = index_of("d0").unwrap();
    let mut monitor = Monitor::new().unwrap();
    assert_eq!(monitor.drain(), Hints::default());
    for change in [
        "link set d0 up",
        "addr add 10.0.0.1/24 dev d0",
        "addr del 10.0.0.1/24 dev d0",
        "link del d0",
    ] {
        inside.ip(change);
        wait(&monitor);
        let hints = monitor.drain();
        assert!(!hints.all && hints.contains(index), "{change}: {hints:?}");
        assert!(!hints.contains(index + 1000));
    }
}

#[test]
fn after_lost_notifications_everything_is_worth_a_look_and_later_ones_are_told_again() {
    let Some(inside) = Inside::new("lost") else { return };
    let index = index_of("d0").unwrap();
    // As small as the kernel lets it be.
    let mut monitor = Monitor::with_queue(1).unwrap();
    let batch = "addr add 10.0.0.1/24 dev d0\naddr del 10.0.0.1/24 dev d0\n".repeat(100);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), batch).unwrap();
    inside.ip(&format!("-batch {}", file.path().display()));
    let hints = monitor.drain();
    assert!(hints.all && hints.contains(index) && hints.contains(index + 1));
    while monitor.drain() != Hints::default() {}
    inside.ip("addr add 10.0.0.1/24 dev d0");
    wait(&monitor);
    let hints = monitor.drain();
    assert_eq!((hints.all, hints.contains(index)), (false, true));
}
