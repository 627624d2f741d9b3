//! Ports of DPDK, all in one process with one EAL. Tests take turns: DPDK's control calls are for one thread.
#![cfg(feature = "dpdk")]
use std::sync::{Mutex, MutexGuard, PoisonError};

use rnic_engine::{
    frame::{BURST, FrameBurst},
    nonblocking::{CheckedAllocator, NonBlocking},
    port::{
        DeviceSpec, HeapPool, OpenPort, PortError, PortSpec, RssMode, mac_of_name, open_all, register_thread,
        ring_pair,
    },
};

mod port_common;
use port_common::{burst, close, exchange, pattern, until};

/// Aborts when the poll path allocates.
#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const MTU: u16 = 4200;
const LONGEST: usize = MTU as usize + 14;

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    dpdk_sys::set_log_level(dpdk_sys::LogLevel::Error);
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open(specs: &[PortSpec]) -> Result<Vec<OpenPort>, PortError> {
    open_all(specs, &dpdk_sys::unprivileged_args())
}

fn open_two(a: PortSpec, b: PortSpec) -> (OpenPort, OpenPort) {
    let mut ports = open(&[a, b]).expect("both ports open").into_iter();
    match (ports.next(), ports.next()) {
        (Some(a), Some(b)) => (a, b),
        _ => panic!("two specifications make two ports"),
    }
}

fn ring(name: &str, peer: &str) -> PortSpec {
    let peer = peer.to_owned();
    PortSpec::new(name, DeviceSpec::Ring { peer }, MTU)
}

fn vdev(name: &str, device: impl Into<String>, mtu: u16) -> PortSpec {
    PortSpec::new(name, DeviceSpec::Vdev(device.into()), mtu)
}

/// What opening just this port fails with.
fn error(spec: PortSpec) -> String {
    open(&[spec]).expect_err("the port cannot be opened").to_string()
}

#[test]
fn dpdk_rings_carry_frames_byte_exact_both_ways_on_every_queue() {
    let _turn = turn();
    let queues = |spec: PortSpec| PortSpec { queues: 2, ..spec };
    let (mut a, mut b) = open_two(queues(ring("rnic0", "rnic1")), queues(ring("rnic1", "rnic0")));
    assert_eq!(
        (a.name.as_str(), a.driver.as_str(), a.mtu),
        ("rnic0", "net_ring", MTU)
    );
    assert_eq!((a.mac, b.mac), (mac_of_name("rnic0"), mac_of_name("rnic1")));
    assert_eq!((a.queues.len(), a.queues[0].caps().max_frame), (2, LONGEST));
    assert!(a.link.is_up() && b.link.is_up());
    let _thread = register_thread();
    for queue in 0..2 {
        exchange(&mut *a.queues[queue], &mut *b.queues[queue], 500, LONGEST);
        exchange(&mut *b.queues[queue], &mut *a.queues[queue], 500, LONGEST);
    }
    let (sent, received) = (a.queues[0].stats(), b.queues[0].stats());
    assert_eq!((sent.tx_frames, sent.rx_frames), (500, 500));
    assert_eq!(sent.tx_bytes, received.rx_bytes);
    close([a, b]);
}

#[test]
fn bursts_neither_allocate_nor_block() {
    let _turn = turn();
    let (mut a, mut b) = open_two(ring("rnic0", "rnic1"), ring("rnic1", "rnic0"));
    let (mut heap, heap_end) = ring_pair("soft0", "soft1", 1, MTU, HeapPool::for_mtu(256, MTU));
    let foreign = heap.pool.clone();
    let _thread = register_thread();
    let mut received = 0;
    let section = NonBlocking::enter();
    for round in 0..50 {
        let mut frames = FrameBurst::new();
        let pool = if round % 2 == 0 {
            a.queues[0].pool()
        } else {
            &foreign
        };
        pool.alloc_burst(BURST, &mut frames);
        for frame in &mut frames {
            frame.set_len(100);
        }
        a.queues[0].tx_burst(&mut frames);
        a.queues[0].tick(round);
        received += b.queues[0].rx_burst(&mut frames);
        // And from there to a port of the other kind.
        heap.queues[0].tx_burst(&mut frames);
    }
    drop(section);
    assert_eq!(received, 50 * BURST);
    close([heap, heap_end, a, b]);
}

#[test]
fn what_a_full_ring_does_not_take_stays_in_order() {
    let _turn = turn();
    let small = |spec: PortSpec| PortSpec {
        rx_descriptors: 64,
        tx_descriptors: 64,
        ..spec
    };
    let (mut a, mut b) = open_two(small(ring("rnic0", "rnic1")), small(ring("rnic1", "rnic0")));
    let (tx, pool) = (&mut a.queues[0], a.pool.clone());
    assert_eq!(tx.tx_burst(&mut burst(&*pool, BURST, 0, LONGEST)), BURST);
    assert_eq!(tx.tx_burst(&mut burst(&*pool, 20, BURST, LONGEST)), 20);
    // Of each kind some: the frames of another pool are copied, and then stay as copies.
    let heap = HeapPool::new(64, LONGEST);
    let mut mixed = burst(&*pool, 10, 52, LONGEST);
    mixed.extend(burst(&heap, 10, 62, LONGEST));
    assert_eq!(tx.tx_burst(&mut mixed), 12);
    assert_eq!(tx.tx_burst(&mut mixed), 0);
    for (i, frame) in mixed.iter().enumerate() {
        assert_eq!(frame.bytes(), pattern(64 + i, LONGEST));
    }
    let mut next = 0;
    let mut received = FrameBurst::new();
    while b.queues[0].rx_burst(&mut received) > 0 {
        for frame in received.drain(..) {
            assert_eq!(frame.bytes(), pattern(next, LONGEST));
            next += 1;
        }
    }
    assert_eq!((next, heap.available()), (64, 64));
    drop(mixed);
    close([a, b]);
}

#[test]
fn a_burst_with_little_room_gets_the_rest_next_time() {
    let _turn = turn();
    let (mut a, mut b) = open_two(ring("rnic0", "rnic1"), ring("rnic1", "rnic0"));
    let pool = a.pool.clone();
    a.queues[0].tx_burst(&mut burst(&*pool, BURST, 0, 200));
    let mut received = burst(&*pool, BURST - 5, 1000, 200);
    assert_eq!(b.queues[0].rx_burst(&mut received), 5);
    assert_eq!(received[BURST - 1].bytes(), pattern(4, 200));
    assert_eq!(b.queues[0].rx_burst(&mut received), 0);
    received.clear();
    assert_eq!(b.queues[0].rx_burst(&mut received), BURST - 5);
    assert_eq!(received[0].bytes(), pattern(5, 200));
    drop(received);
    close([a, b]);
}

#[test]
fn a_device_is_asked_for_no_more_frames_than_are_wanted() {
    let _turn = turn();
    let (mut a, mut b) = open_two(ring("rnic0", "rnic1"), ring("rnic1", "rnic0"));
    let pool = a.pool.clone();
    a.queues[0].tx_burst(&mut burst(&*pool, BURST, 0, 200));
    let mut received = FrameBurst::new();
    for most in [1, 5, 0] {
        assert_eq!(b.queues[0].rx_at_most(&mut received, most), most);
    }
    // What the driver has handed out is counted; the rest is still on its ring.
    assert_eq!(b.queues[0].stats().rx_frames, 6);
    assert_eq!(b.queues[0].rx_burst(&mut received), BURST - 6);
    for (i, frame) in received.drain(..).enumerate() {
        assert_eq!(frame.bytes(), pattern(i, 200));
    }
    close([a, b]);
}

#[test]
fn an_exhausted_pool_says_so_and_frames_of_others_wait_for_it() {
    let _turn = turn();
    let few = |spec: PortSpec| PortSpec {
        buffers: 127,
        rx_descriptors: 64,
        tx_descriptors: 64,
        ..spec
    };
    let (mut a, b) = open_two(few(ring("rnic0", "rnic1")), few(ring("rnic1", "rnic0")));
    let mut held = Vec::new();
    loop {
        let mut frames = FrameBurst::new();
        if a.pool.alloc_burst(BURST, &mut frames) == 0 {
            break;
        }
        held.extend(frames);
    }
    assert_eq!(held.len(), 127, "every buffer is given out, down to the last");
    assert!(a.pool.alloc().is_none());

    let heap = HeapPool::new(8, LONGEST);
    let mut frames = burst(&heap, 3, 0, LONGEST);
    assert_eq!(a.queues[0].tx_burst(&mut frames), 0);
    assert_eq!((frames.len(), frames[0].bytes()), (3, &pattern(0, LONGEST)[..]));
    held.truncate(125);
    assert_eq!(a.queues[0].tx_burst(&mut frames), 2);
    assert_eq!(frames[0].bytes(), pattern(2, LONGEST));

    // A frame too long for any buffer does not block those behind it.
    let long = HeapPool::new(1, 9000);
    let mut frames = burst(&long, 1, 0, LONGEST);
    frames[0].set_len(9000);
    assert_eq!(a.queues[0].tx_burst(&mut frames), 1);
    assert_eq!(a.queues[0].stats().tx_dropped, 1);
    drop(held);
    close([a, b]);
}

#[test]
fn ports_close_without_leaks_and_open_again() {
    let _turn = turn();
    // Thirty pools of this size do not fit into EAL's memory at once.
    let large = |spec: PortSpec| PortSpec {
        buffers: 8191,
        ..spec
    };
    for round in 0..15 {
        let (mut a, mut b) = open_two(large(ring("rnic0", "rnic1")), large(ring("rnic1", "rnic0")));
        let pool = a.pool.clone();
        a.queues[0].tx_burst(&mut burst(&*pool, BURST, 0, LONGEST));
        let mut received = FrameBurst::new();
        b.queues[0].rx_burst(&mut received);
        b.queues[0].tx_burst(&mut received);
        drop((received, pool));
        match round % 3 {
            0 => close([a, b]),
            1 => close([b, a]),
            // Dropping whole ports does the same.
            _ => drop((b, a)),
        }
    }
    let null = || vdev("rnic0", "net_null0", 1500);
    for _ in 0..3 {
        close(open(&[null()]).expect("the device was taken off its bus"));
    }
}

#[test]
fn closing_while_a_queue_is_held_keeps_the_port_running() {
    let _turn = turn();
    let (mut a, mut b) = open_two(ring("rnic0", "rnic1"), ring("rnic1", "rnic0"));
    a.link.close();
    let pool = a.pool.clone();
    assert_eq!(a.queues[0].tx_burst(&mut burst(&*pool, 8, 0, LONGEST)), 8);
    assert_eq!(b.queues[0].rx_burst(&mut FrameBurst::new()), 8);
    drop(pool);
    drop((a, b));
    close(open(&[ring("rnic0", "rnic1"), ring("rnic1", "rnic0")]).expect("all is gone"));
}

#[test]
fn a_memif_pair_carries_path_mtu_4096() {
    let _turn = turn();
    let socket = std::env::temp_dir().join(format!("rnic-port-{}.sock", std::process::id()));
    let device = |n, role| {
        format!(
            "net_memif{n},role={role},id=0,socket={},socket-abstract=no",
            socket.display()
        )
    };
    let (mut a, mut b) = open_two(
        vdev("rnic0", device(0, "server"), MTU),
        vdev("rnic1", device(1, "client"), MTU),
    );
    until("both links are up", || a.link.is_up() && b.link.is_up());
    assert_eq!(
        a.mac,
        mac_of_name("rnic0"),
        "the driver's own changes at each start"
    );
    exchange(&mut *a.queues[0], &mut *b.queues[0], 2000, LONGEST);
    exchange(&mut *b.queues[0], &mut *a.queues[0], 2000, LONGEST);
    close([a, b]);
}

#[test]
fn frames_in_more_segments_than_a_buffer_holds_are_dropped_and_counted() {
    let _turn = turn();
    let socket = std::env::temp_dir().join(format!("rnic-segments-{}.sock", std::process::id()));
    let device = |n, role| {
        let socket = socket.display();
        format!("net_memif{n},role={role},id=0,socket={socket},socket-abstract=no,bsize=4352")
    };
    let specs = (
        vdev("rnic0", device(0, "server"), MTU),
        vdev("rnic1", device(1, "client"), 1500),
    );
    let (mut a, mut b) = open_two(specs.0, specs.1);
    until("both links are up", || a.link.is_up() && b.link.is_up());
    let pool = a.pool.clone();
    let mut sent = burst(&*pool, 3, 0, LONGEST);
    sent[1].set_len(4000);
    let mut received = FrameBurst::new();
    // The receiver of a memif provides the buffers, and does so when it polls.
    until("the frames have come", || {
        a.queues[0].tx_burst(&mut sent);
        b.queues[0].rx_burst(&mut received);
        received.len() == 2
    });
    assert_eq!(received[0].bytes(), pattern(0, LONGEST));
    assert_eq!(received[1].bytes(), pattern(2, LONGEST));
    assert_eq!(b.queues[0].stats().rx_dropped, 1);
    drop((received, pool));
    close([a, b]);
}

#[test]
fn vhost_is_made_before_the_virtio_user_that_connects_to_it() {
    let _turn = turn();
    let socket = std::env::temp_dir().join(format!("rnic-vhost-{}.sock", std::process::id()));
    let virtio = format!(
        "net_virtio_user0,path={},queues=1,packed_vq=1,in_order=1",
        socket.display()
    );
    let vhost = format!("net_vhost0,iface={},queues=1", socket.display());
    let (mut a, mut b) = open_two(vdev("rnic0", virtio, MTU), vdev("rnic1", vhost, MTU));
    until("both links are up", || a.link.is_up() && b.link.is_up());
    assert_eq!(
        (a.driver.as_str(), b.driver.as_str()),
        ("net_virtio_user", "net_vhost")
    );
    exchange(&mut *a.queues[0], &mut *b.queues[0], 2000, LONGEST);
    exchange(&mut *b.queues[0], &mut *a.queues[0], 2000, LONGEST);
    close([a, b]);
}

#[test]
fn a_device_gives_as_many_queues_as_it_has() {
    let _turn = turn();
    let device = |args: &str| vdev("rnic0", format!("net_null0{args}"), 1500);
    let many = PortSpec {
        queues: 4000,
        ..device("")
    };
    let ports = open(&[many]).expect("fewer queues than wanted are no error");
    let queues = ports[0].queues.len();
    assert!((1..4000).contains(&queues), "{queues}");
    close(ports);
    let spread = PortSpec {
        queues: 2,
        rss: RssMode::On,
        ..ring("rnic0", "rnic1")
    };
    let message = open(&[
        spread,
        PortSpec {
            queues: 2,
            ..ring("rnic1", "rnic0")
        },
    ])
    .expect_err("rings have no RSS")
    .to_string();
    assert_eq!(
        message,
        "port rnic0: cannot configure net_ring_rnic0: it cannot spread frames by RSS. Use one queue, or let RSS be `auto`"
    );
}

#[test]
fn errors_name_the_port_the_step_and_what_to_do() {
    let _turn = turn();
    let missing = error(vdev("rnic7", "net_af_packet0,iface=nosuch9", 1500));
    assert!(
        missing.starts_with("port rnic7: cannot make virtual device net_af_packet0: "),
        "{missing}"
    );
    assert!(
        missing.contains("No network interface is named nosuch9 here"),
        "{missing}"
    );

    let driver = error(vdev("rnic0", "net_nosuch0,a=1", 1500));
    assert!(driver.contains("the driver net_nosuch is installed"), "{driver}");

    let backend = error(vdev(
        "rnic0",
        "net_virtio_user0,path=/nonexistent/vhost.sock",
        1500,
    ));
    assert!(backend.contains("start the vhost side first"), "{backend}");

    let pci = error(PortSpec::new(
        "rnic0",
        DeviceSpec::Pci("0000:fe:1f.7".to_owned()),
        1500,
    ));
    assert!(
        pci.starts_with("port rnic0: cannot open PCI function 0000:fe:1f.7: "),
        "{pci}"
    );
    assert!(pci.contains("No PCI function is at 0000:fe:1f.7"), "{pci}");

    let memory = PortSpec {
        buffers: 1 << 22,
        ..vdev("rnic0", "net_null0", 9000)
    };
    let memory = error(memory);
    assert!(
        memory.contains("4194304 buffers") && memory.contains("Give DPDK more memory"),
        "{memory}"
    );

    let path = PortSpec {
        capture: Some(rnic_engine::port::CaptureSpec {
            path: "/nonexistent/frames.pcapng".into(),
            limit_bytes: 1 << 20,
        }),
        ..vdev("rnic0", "net_null0", 1500)
    };
    let path = error(path);
    assert!(
        path.starts_with("port rnic0: cannot write the capture file /nonexistent/frames.pcapng"),
        "{path}"
    );
    // None of the failures left anything behind.
    close(open(&[vdev("rnic0", "net_null0", 1500)]).expect("the name is free"));
}

#[test]
fn a_stable_address_is_kept_and_a_chosen_one_is_set() {
    let _turn = turn();
    let chosen = [2, 1, 2, 3, 4, 5];
    let specs = [
        PortSpec {
            mac: Some(chosen),
            ..ring("rnic0", "rnic1")
        },
        ring("rnic1", "rnic0"),
    ];
    let ports = open(&specs).expect("both open");
    assert_eq!((ports[0].mac, ports[1].mac), (chosen, mac_of_name("rnic1")));
    close(ports);
}
