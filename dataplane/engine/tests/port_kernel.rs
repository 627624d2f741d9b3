//! af_packet, af_xdp and tap in a network namespace of the test's own. Needs root.
#![cfg(feature = "dpdk")]
use std::process::Command;

use rnic_engine::{
    frame::FrameBurst,
    port::{DeviceSpec, PortSpec, open_all, register_thread},
};
use rustix::{
    net::{AddressFamily, SocketType},
    thread::{UnshareFlags, unshare_unsafe},
};

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

/// One test, because DPDK's control calls and the namespace are of one thread.
#[test]
fn ports_over_kernel_interfaces_carry_frames_and_tell_what_is_wrong_with_an_interface() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: a network namespace and CAP_NET_RAW need root");
        return;
    }
    // SAFETY: the thread keeps sharing memory and files with the others; only its network differs.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("root may have a network namespace");
    dpdk_sys::set_log_level(dpdk_sys::LogLevel::Error);
    af_packet();
    af_xdp();
    tap();
}

fn af_packet() {
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

/// The largest frames that af_xdp buffers hold, at the MTU it gets instead of the one asked for.
fn af_xdp() {
    let xdp = rustix::net::socket(AddressFamily::XDP, SocketType::RAW, None);
    if let Err(error) = xdp {
        eprintln!("af_xdp skipped: this kernel has none ({error})");
        return;
    }
    ip("link add veth2 type veth peer name veth3");
    for end in ["veth2", "veth3"] {
        ip(&format!("link set dev {end} mtu 3434 up"));
    }
    let spec = |name: &str, iface: &str, number| PortSpec {
        buffers: 16383,
        ..PortSpec::new(
            name,
            DeviceSpec::Vdev(format!("net_af_xdp{number},iface={iface}")),
            MTU,
        )
    };
    let args = dpdk_sys::unprivileged_args();
    let mut ports =
        open_all(&[spec("rnic2", "veth2", 0), spec("rnic3", "veth3", 1)], &args).expect("both open");
    let (mut b, mut a) = (ports.remove(1), ports.remove(0));
    let _thread = register_thread();
    assert_eq!((a.mtu, a.queues[0].caps().max_frame), (3434, 3448));
    exchange(&mut *a.queues[0], &mut *b.queues[0], 300, 3448);
    exchange(&mut *b.queues[0], &mut *a.queues[0], 300, 3448);
    close([a, b]);
}

/// A tap's MTU is bounded by its driver.
fn tap() {
    let spec = |mtu| PortSpec::new("rnic4", DeviceSpec::Vdev("net_tap0,iface=tap0".to_owned()), mtu);
    let args = dpdk_sys::unprivileged_args();
    let large = open_all(&[spec(MTU)], &args)
        .expect_err("taps have small MTUs")
        .to_string();
    assert!(large.contains("supports an MTU from"), "{large}");
    assert!(
        large.ends_with("not 4200. Choose a value in that range"),
        "{large}"
    );
    let ports = open_all(&[spec(1500)], &args).expect("the tap opens after the failure");
    assert_eq!(ports[0].driver, "net_tap");
    close(ports);
}
