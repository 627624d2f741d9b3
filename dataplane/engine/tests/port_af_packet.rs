//! af_packet over a veth pair in a network namespace of the test's own. Needs root.
#![cfg(feature = "dpdk")]
use std::process::Command;

use rnic_engine::{
    frame::FrameBurst,
    port::{DeviceSpec, PortSpec, open_all, register_thread},
};
use rustix::thread::{UnshareFlags, unshare_unsafe};

mod port_common;
use port_common::{burst, close, deadline, exchange};

const MTU: u16 = 4200;
const LONGEST: usize = MTU as usize + 14;

fn ip(args: &str) {
    let status = Command::new("ip")
        .args(args.split(' '))
        .status()
        .expect("iproute2 is installed");
    assert!(status.success(), "ip {args}");
}

fn spec(name: &str, iface: &str, number: u32) -> PortSpec {
    PortSpec::new(
        name,
        DeviceSpec::Vdev(format!("net_af_packet{number},iface={iface}")),
        MTU,
    )
}

/// One test, because the namespace is that of its thread.
#[test]
fn af_packet_carries_path_mtu_4096_over_a_veth_pair_and_tells_what_is_wrong_with_an_interface() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a network namespace and CAP_NET_RAW need root");
        return;
    }
    // SAFETY: the thread keeps sharing memory and files with the others; only its network differs.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("root may have a network namespace");
    dpdk_sys::set_log_level(dpdk_sys::LogLevel::Error);
    let args = dpdk_sys::unprivileged_args();
    ip("link add veth0 type veth peer name veth1");
    ip("link set veth0 up");
    ip("link set veth1 up");

    let small = open_all(&[spec("rnic0", "veth0", 0)], &args).expect_err("the interface has an MTU of 1500");
    let small = small.to_string();
    assert!(
        small.starts_with("port rnic0: cannot set the MTU of net_af_packet0: "),
        "{small}"
    );
    assert!(small.contains("MTU of 1500"), "{small}");
    assert!(
        small.ends_with("Say `ip link set dev veth0 mtu 4200`, or lower the port's mtu"),
        "{small}"
    );

    ip("link set dev veth0 mtu 4200");
    ip("link set dev veth1 mtu 4200");
    let mut ports =
        open_all(&[spec("rnic0", "veth0", 0), spec("rnic1", "veth1", 1)], &args).expect("both open");
    let (mut b, mut a) = (ports.remove(1), ports.remove(0));
    assert_eq!((a.driver.as_str(), a.mtu), ("net_af_packet", MTU));
    assert_ne!(a.mac, b.mac);
    let _thread = register_thread();
    exchange(&mut *a.queues[0], &mut *b.queues[0], 300, LONGEST);
    exchange(&mut *b.queues[0], &mut *a.queues[0], 300, LONGEST);

    // A tag arrives, in the frame or beside it, whatever the kernel does with it on the way.
    let pool = a.pool.clone();
    let mut tagged = burst(&*pool, 1, 0, 100);
    tagged[0].bytes_mut()[12..18].copy_from_slice(&[0x81, 0, 0, 5, 0x88, 0xb5]);
    a.queues[0].tx_burst(&mut tagged);
    let deadline = deadline();
    'wait: loop {
        assert!(
            std::time::Instant::now() < deadline,
            "the tagged frame did not come"
        );
        let mut received = FrameBurst::new();
        b.queues[0].rx_burst(&mut received);
        for frame in &received {
            let inside = frame.bytes().get(12..18) == Some(&[0x81, 0, 0, 5, 0x88, 0xb5]);
            let beside = frame.vlan() == Some(5) && frame.bytes().get(12..14) == Some(&[0x88, 0xb5]);
            if inside || beside {
                break 'wait;
            }
        }
    }
    drop(pool);
    close([a, b]);
}
