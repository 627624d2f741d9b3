//! Pools, bursts and ports on one EAL. Tests take turns: DPDK's control path is not for several
//! threads, and a pool's counts are compared.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dpdk_sys::{
    AllocError, Applied, Burst, Eal, EthDev, LogLevel, MbufError, Mempool, PoolConfig, PortConfig, Rss,
    RxQueue, TxQueue, hotplug_add, hotplug_remove, pretend_removal, ring_pair, set_log_level,
    unprivileged_args, vdev_init, vdev_uninit,
};

/// EAL of this process, and the turn to use it.
fn eal() -> (Eal, MutexGuard<'static, ()>) {
    static EAL: OnceLock<Eal> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let eal = EAL.get_or_init(|| {
        set_log_level(LogLevel::Error);
        Eal::init(&unprivileged_args()).expect("EAL starts without privilege")
    });
    (eal.clone(), turn)
}

fn pool(eal: &Eal, name: &str, buffers: u32, data_room: u16) -> Mempool {
    let config = PoolConfig {
        name: name.to_owned(),
        buffers,
        cache: 32,
        data_room,
        socket: None,
    };
    Mempool::create(eal, &config).expect("there is memory for a small pool")
}

fn config(queues: u16, mtu: u16) -> PortConfig {
    PortConfig {
        rx_queues: queues,
        tx_queues: queues,
        mtu,
        ..PortConfig::default()
    }
}

/// Configures and starts a port, and takes all its queues.
fn start(port: &EthDev, pool: &Mempool, config: &PortConfig) -> Vec<(RxQueue, TxQueue)> {
    port.configure(config).expect("the device can do that");
    for queue in 0..config.rx_queues {
        port.rx_queue_setup(queue, 256, None, pool)
            .expect("the queue is configured");
        port.tx_queue_setup(queue, 256, None)
            .expect("the queue is configured");
    }
    port.start().expect("all queues are set up");
    (0..config.rx_queues)
        .map(|queue| {
            (
                port.rx_queue(queue).expect("free"),
                port.tx_queue(queue).expect("free"),
            )
        })
        .collect()
}

/// Frame `index` of a test: a length and bytes that tell frames apart.
fn frame(index: usize, longest: usize) -> Vec<u8> {
    let len = 60 + index * 131 % (longest - 59);
    (0..len).map(|i| (i * 7 + index * 13) as u8).collect()
}

fn burst_of(pool: &Mempool, first: usize, longest: usize) -> Burst {
    let mut burst = Burst::new();
    pool.alloc_burst(&mut burst, 32).expect("the pool has enough");
    for (index, buf) in burst.iter_mut().enumerate() {
        let bytes = frame(first + index, longest);
        buf.set_len(bytes.len() as u16)
            .expect("the data room is large enough");
        buf.data_mut().copy_from_slice(&bytes);
    }
    burst
}

#[test]
fn a_ring_pair_moves_bursts_of_32_frames_byte_for_byte() {
    let (eal, _turn) = eal();
    let data_room = Mempool::data_room_for_mtu(4200).expect("fits");
    let pool = pool(&eal, "bytes", 511, data_room);
    let (a, b) = ring_pair(&eal, "bytes_a", "bytes_b", 128, 2).expect("two ports");
    assert_eq!((a.name(), b.name()), ("net_ring_bytes_a", "net_ring_bytes_b"));
    let mut a_queues = start(&a, &pool, &config(2, 4200));
    let mut b_queues = start(&b, &pool, &config(2, 4200));
    assert!(a.link().expect("rings have a link").up);

    let registered = eal.register_thread().expect("a thread id is free");
    assert_ne!(registered.lcore(), 0);
    let mut received = Burst::<32>::new();
    for round in 0..20 {
        for (queue, (tx, rx)) in a_queues.iter_mut().zip(&mut b_queues).enumerate() {
            let mut burst = burst_of(&pool, round, 4200);
            assert_eq!(tx.1.tx_burst(&mut burst), 32);
            assert!(burst.is_empty());
            assert_eq!(rx.0.rx_burst(&mut received), 32, "queue {queue}");
            for (index, buf) in received.iter().enumerate() {
                assert_eq!(
                    buf.data(),
                    frame(round + index, 4200),
                    "frame {index} of round {round}"
                );
                assert_eq!((buf.nb_segs(), buf.stripped_vlan()), (1, None));
            }
            // And back by the other direction, without a copy.
            assert_eq!(rx.1.tx_burst(&mut received), 32);
            assert_eq!(tx.0.rx_burst(&mut received), 32);
            assert_eq!(received[31].data(), frame(round + 31, 4200));
            received.clear();
        }
    }
    assert_eq!(a.stats().expect("rings count").tx_packets, 20 * 2 * 32);

    // A full ring takes what it can; the rest stays in order.
    let tx = &mut a_queues[0].1;
    for _ in 0..4 {
        assert_eq!(tx.tx_burst(&mut burst_of(&pool, 0, 100)), 32);
    }
    let mut burst = burst_of(&pool, 7, 100);
    assert_eq!(tx.tx_burst(&mut burst), 0);
    assert_eq!(b_queues[0].0.rx_burst(&mut Burst::<8>::new()), 8);
    assert_eq!(tx.tx_burst(&mut burst), 8);
    assert_eq!((burst.len(), burst[0].data()), (24, &frame(15, 100)[..]));

    // Frames still in the rings come back to the pool when the ports go.
    drop((burst, a_queues, b_queues, a, b));
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_port_made_of_rings_can_be_made_again_after_it_is_gone() {
    let (eal, _turn) = eal();
    for _ in 0..3 {
        let (a, b) = ring_pair(&eal, "again_a", "again_b", 64, 1).expect("the names are free");
        assert!(ring_pair(&eal, "again_a", "again_c", 64, 1).is_err());
        assert!(EthDev::names(&eal).contains(&b.name().to_owned()));
        b.close().expect("not in use");
        drop((a, b));
        assert!(EthDev::names(&eal).is_empty());
    }
}

#[test]
fn a_device_that_vanishes_is_noticed_and_the_next_of_that_number_is_not_taken_for_it() {
    let (eal, _turn) = eal();
    let error = pretend_removal(&eal, "net_null7").expect_err("there is no such device");
    assert!(error.to_string().contains("no DPDK port is named"), "{error}");
    let pool = pool(&eal, "vanish", 1023, 2176);
    let started = || {
        vdev_init(&eal, "net_null7", "no-rx=1").expect("the name is free");
        let dev = EthDev::open(&eal, "net_null7").expect("it was just made");
        dev.configure(&config(1, 1500)).expect("one queue");
        dev.rx_queue_setup(0, 64, None, &pool).expect("a receive queue");
        dev.tx_queue_setup(0, 64, None).expect("a transmit queue");
        dev.start().expect("it is set up");
        dev
    };
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let dev = started();
        assert!(!dev.has_vanished());
        pretend_removal(&eal, "net_null7").expect("it is there");
        assert!(dev.has_vanished());
        // Stopped and started again it is still gone.
        dev.stop().expect("nobody holds a queue");
        dev.start().expect("it is set up");
        assert!(dev.has_vanished());
        numbers.push(dev.id());
        dev.remove().expect("nobody holds a queue");
        assert!(!dev.has_vanished(), "it is closed, and the number another's");
    }
    numbers.dedup();
    assert_eq!(numbers.len(), 1, "the number was given again");
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn an_unknown_device_is_named_along_with_what_there_is() {
    let (eal, _turn) = eal();
    let none = EthDev::open(&eal, "0000:3b:00.1")
        .err()
        .expect("there is no such device")
        .to_string();
    assert!(
        none.contains("no DPDK port is named \"0000:3b:00.1\"; ports present: []"),
        "{none}"
    );

    let (_a, _b) = ring_pair(&eal, "seen_a", "seen_b", 64, 1).expect("two ports");
    let some = EthDev::open(&eal, "net_nosuch0")
        .err()
        .expect("there is no such device")
        .to_string();
    assert!(some.contains("[net_ring_seen_a, net_ring_seen_b]"), "{some}");

    let driver = vdev_init(&eal, "net_nosuch0", "")
        .expect_err("there is no such driver")
        .to_string();
    assert!(
        driver.starts_with("cannot create virtual device net_nosuch0: "),
        "{driver}"
    );
}

#[test]
fn an_exhausted_pool_refuses_and_recovers() {
    let (eal, _turn) = eal();
    let pool = pool(&eal, "small", 63, 512);
    let mut burst = Burst::<64>::new();
    assert_eq!(pool.alloc_burst(&mut burst, 64), Err(AllocError::PoolEmpty));
    assert_eq!(pool.alloc_burst(&mut burst, 65), Err(AllocError::BurstFull));
    assert!(burst.is_empty());
    pool.alloc_burst(&mut burst, 63).expect("exactly what is there");
    assert!(pool.alloc().is_none());
    assert_eq!((pool.in_use(), pool.size()), (63, 63));
    drop(burst.pop());
    let last = pool.alloc().expect("one came back");
    assert!(burst.push(last).is_ok());
    burst.clear();
    assert_eq!(pool.in_use(), 0);

    let huge = PoolConfig {
        name: "huge".to_owned(),
        buffers: 1 << 24,
        cache: 0,
        data_room: 4608,
        socket: None,
    };
    let error = Mempool::create(&eal, &huge)
        .err()
        .expect("there is no such memory")
        .to_string();
    assert!(
        error.contains("pool huge of 16777216 buffers of 4608 bytes"),
        "{error}"
    );
}

#[test]
fn a_pool_dropped_while_a_buffer_is_out_keeps_its_memory() {
    let (eal, _turn) = eal();
    let pool = pool(&eal, "outlived", 63, 512);
    let mut buffer = pool.alloc().expect("the pool is fresh");
    drop(pool);
    buffer.set_len(300).expect("fits");
    buffer.data_mut().fill(0x5a);
    assert_eq!(buffer.data(), [0x5a; 300]);
}

#[test]
fn buffers_guard_their_bounds() {
    let (eal, _turn) = eal();
    let pool = pool(&eal, "bounds", 63, 512);
    let mut buf = pool.alloc().expect("the pool is fresh");
    assert_eq!(
        (buf.headroom(), buf.tailroom(), buf.pkt_len()),
        (Mempool::HEADROOM, 384, 0)
    );
    assert_eq!(buf.set_len(385), Err(MbufError::NoRoom));
    buf.set_len(384).expect("exactly the room there is");
    buf.data_mut()[..4].copy_from_slice(b"abcd");
    assert_eq!(buf.prepend(129), Err(MbufError::NoRoom));
    buf.prepend(128).expect("exactly the headroom");
    assert_eq!((buf.data_len(), buf.pkt_len(), buf.headroom()), (512, 512, 0));
    assert_eq!(buf.trim_front(513), Err(MbufError::NoRoom));
    buf.trim_front(129).expect("shorter than the frame");
    assert_eq!((&buf.data()[..3], buf.pkt_len()), (&b"bcd"[..], 383));
    assert_eq!(Mempool::data_room_for_mtu(4200), Some(4416));
    assert_eq!(Mempool::data_room_for_mtu(u16::MAX), None);
}

#[test]
fn chained_frames_are_linearised_or_dropped() {
    let (eal, _turn) = eal();
    let pool = pool(&eal, "chains", 63, 512);
    let mut burst = Burst::<8>::new();
    for (first, second) in [(100, 200), (300, 200), (10, 374)] {
        let mut head = pool.alloc().expect("the pool is fresh");
        let mut tail = pool.alloc().expect("the pool is fresh");
        head.set_len(first).expect("fits");
        tail.set_len(second).expect("fits");
        head.data_mut().fill(1);
        tail.data_mut().fill(2);
        head.chain(tail).expect("two segments are few");
        assert_eq!((head.nb_segs(), head.pkt_len()), (2, u32::from(first + second)));
        assert_eq!(head.set_len(1), Err(MbufError::Segmented));
        assert!(burst.push(head).is_ok());
    }
    assert_eq!(burst.linearise_all(), 1, "500 bytes do not fit into one segment");
    assert_eq!(burst.len(), 2);
    let expected: Vec<u8> = [vec![1; 100], vec![2; 200]].concat();
    assert_eq!((burst[0].data(), burst[0].nb_segs()), (&expected[..], 1));
    assert_eq!((burst[1].data_len(), burst[1].data()[10]), (384, 2));

    // Draining takes them in order and frees what was not taken.
    let first = burst.drain().next().expect("two are there");
    assert_eq!((first.data_len(), burst.len(), pool.in_use()), (300, 0, 1));
    drop(first);
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn a_port_is_held_once_and_stays_up_while_a_queue_is_polled() {
    let (eal, _turn) = eal();
    let pool = pool(&eal, "held", 511, 2048);
    vdev_init(&eal, "net_null0", "size=64").expect("the null driver is installed");
    let port = EthDev::open(&eal, "net_null0").expect("it was just plugged in");
    assert_eq!(
        message(EthDev::open(&eal, "net_null0")),
        "port net_null0 is already in use by this process; close its other handle first"
    );
    assert!(message(vdev_uninit(&eal, "net_null0")).contains("already in use"));
    assert!(message(hotplug_remove(&eal, "vdev", "net_null0")).contains("already in use"));
    assert!(message(port.rx_queue(0)).contains("has 0 rx queues"));
    assert!(port.start().is_err(), "not configured");

    port.configure(&config(1, 1500))
        .expect("the null driver has one queue");
    assert!(message(port.start()).contains("rx queue 0 of port net_null0 was not set up"));
    let mut queues = start(&port, &pool, &config(1, 1500));
    let (rx, _) = &mut queues[0];
    assert!(message(port.rx_queue(0)).contains("is held by another thread"));
    assert!(message(port.configure(&config(1, 1500))).contains("while it is started"));
    for refused in [port.stop(), port.close(), port.remove()] {
        assert!(message(refused).contains("2 of its queue handles are still held"));
    }

    let mut burst = Burst::<32>::new();
    assert_eq!(rx.rx_burst(&mut burst), 32);
    assert!(
        burst
            .iter()
            .all(|buf| buf.data_len() == 64 && buf.port() == port.id())
    );
    assert_eq!(rx.rx_burst(&mut burst), 0, "a full burst takes no more");
    drop((burst, queues));
    port.stop().expect("no queue is held");
    port.start().expect("as before");
    drop(port.rx_queue(0).expect("it was given back"));
    port.remove().expect("no queue is held");
    assert_eq!(message(port.stats()), "port net_null0 is closed");
    assert!(EthDev::open(&eal, "net_null0").is_err());
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn hash_and_limits_follow_what_the_device_can_do() {
    let (eal, _turn) = eal();
    hotplug_add(&eal, "vdev", "net_null1", "").expect("the null driver is installed");
    let port = EthDev::open(&eal, "net_null1").expect("it was just plugged in");
    let info = port.info().expect("open");
    assert_eq!(
        (info.driver.as_str(), info.device.as_str()),
        ("net_null", "net_null1")
    );
    let with_rss = |queues| PortConfig {
        rss: Some(Rss::UDP),
        vlan_strip: true,
        ..config(queues, 1500)
    };
    assert_eq!(
        port.configure(&with_rss(1)),
        Ok(Applied {
            rss: None,
            vlan_strip: false
        })
    );
    if info.max_rx_queues > 1 {
        assert_eq!(
            port.configure(&with_rss(2)).expect("two queues").rss,
            info.usable_rss(Rss::UDP)
        );
    }
    let queues = message(port.configure(&config(info.max_rx_queues + 1, 1500)));
    assert!(
        queues.contains("port net_null1 (net_null) supports receive queues from 0 to"),
        "{queues}"
    );
    assert!(message(port.configure(&config(1, 20))).contains("supports an MTU from"));

    port.set_promiscuous(true).expect("the null driver has that");
    port.set_allmulticast(true).expect("the null driver has that");
    port.set_mac_addr([2, 0, 0, 0, 0, 1])
        .expect("the null driver has that");
    assert_eq!(port.mac_addr(), Ok([2, 0, 0, 0, 0, 1]));
    port.set_mtu(1400).expect("the null driver has that");
    assert_eq!(port.mtu(), Ok(1400));
    let multicast = port
        .set_multicast(&[[0x33, 0x33, 0, 0, 0, 1]])
        .expect_err("the null driver lacks that");
    assert!(multicast.is_unsupported(), "{multicast}");
    drop(port);
    vdev_uninit(&eal, "net_null1").expect("nobody holds it");
}

#[test]
fn memif_ports_of_one_process_carry_4096_byte_payloads() {
    let (eal, _turn) = eal();
    let pool = pool(&eal, "memif", 2047, 4608);
    let socket = format!("/tmp/rnic-dpdk-sys-{}.sock", std::process::id());
    let args = |role| format!("role={role},id=0,socket={socket},socket-abstract=no,bsize=4352");
    vdev_init(&eal, "net_memif0", &args("server")).expect("the memif driver is installed");
    vdev_init(&eal, "net_memif1", &args("client")).expect("the memif driver is installed");
    let server = EthDev::open(&eal, "net_memif0").expect("it was just plugged in");
    let client = EthDev::open(&eal, "net_memif1").expect("it was just plugged in");
    let server_queues = start(&server, &pool, &config(1, 4200));
    let mut client_queues = start(&client, &pool, &config(1, 4200));
    let (mut rx, _tx) = server_queues.into_iter().next().expect("one queue");
    until("both links are up", || {
        server.link().unwrap().up && client.link().unwrap().up
    });

    let mut burst = burst_of(&pool, 0, 4200);
    assert_eq!(client_queues[0].1.tx_burst(&mut burst), 32);
    let mut received = Burst::<32>::new();
    until("all frames have come", || {
        rx.rx_burst(&mut received);
        received.len() == 32
    });
    for (index, buf) in received.iter().enumerate() {
        assert_eq!(buf.data(), frame(index, 4200), "frame {index}");
    }
    drop((received, rx, _tx, client_queues));
    client.remove().expect("no queue is held");
    server.remove().expect("no queue is held");
    assert_eq!(pool.in_use(), 0);
}

/// The text of an error that must have happened.
fn message<T>(result: Result<T, dpdk_sys::Error>) -> String {
    result.err().expect("the call must fail").to_string()
}

/// Waits for something another thread brings about.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "not after 20 s: {what}");
        std::thread::yield_now();
    }
}
