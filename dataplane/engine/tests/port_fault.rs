//! Faults on purpose: each kind seen, repeatable by seed, within bounds.
use rnic_engine::{
    frame::{BURST, FrameBurst},
    nonblocking::{CheckedAllocator, NonBlocking},
    port::{DeviceSpec, FaultRates, FaultSpec, OpenPort, PortSpec, open_all},
};

mod port_common;
use port_common::{burst, close, counter, pattern};

/// Aborts when the poll path allocates.
#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const ALWAYS: u32 = 1_000_000;
const LONGEST: usize = 1514;

/// A pair of ports, the first of which has faults.
fn faulty(faults: FaultSpec, buffers: u32) -> (OpenPort, OpenPort) {
    let end = |name: &str, peer: &str| PortSpec {
        buffers,
        ..PortSpec::new(
            name,
            DeviceSpec::SoftRing {
                peer: peer.to_owned(),
            },
            1500,
        )
    };
    let a = PortSpec {
        faults: Some(faults),
        ..end("rnic0", "rnic1")
    };
    let mut ports = open_all(&[a, end("rnic1", "rnic0")], &[]).expect("rings open");
    let b = ports.remove(1);
    (ports.remove(0), b)
}

fn tx(rates: FaultRates) -> FaultSpec {
    FaultSpec {
        seed: 7,
        tx: rates,
        ..FaultSpec::default()
    }
}

fn rx(rates: FaultRates) -> FaultSpec {
    FaultSpec {
        seed: 7,
        rx: rates,
        ..FaultSpec::default()
    }
}

/// Sends `total` numbered frames one burst a microsecond, and what comes out at the other end.
fn through(from: &mut OpenPort, to: &mut OpenPort, total: usize) -> Vec<Vec<u8>> {
    let pool = from.pool.clone();
    let mut all = Vec::new();
    for (step, first) in (0..total).step_by(BURST).enumerate() {
        let now = step as u64 * 1000;
        from.queues[0].tick(now);
        to.queues[0].tick(now);
        let mut frames = burst(&*pool, BURST.min(total - first), first, LONGEST);
        from.queues[0].tx_burst(&mut frames);
        assert!(frames.is_empty());
        drain(to, &mut all);
    }
    // Long after.
    from.queues[0].tick(1 << 40);
    to.queues[0].tick(1 << 40);
    drain(to, &mut all);
    all
}

fn drain(port: &mut OpenPort, all: &mut Vec<Vec<u8>>) {
    let mut received = FrameBurst::new();
    while port.queues[0].rx_burst(&mut received) > 0 {
        all.extend(received.drain(..).map(|frame| frame.bytes().to_vec()));
    }
}

fn patterns(total: usize) -> Vec<Vec<u8>> {
    (0..total).map(|i| pattern(i, LONGEST)).collect()
}

#[test]
fn without_faults_everything_passes_as_it_is() {
    let (mut a, mut b) = faulty(FaultSpec::default(), 256);
    assert_eq!(through(&mut a, &mut b, 500), patterns(500));
    assert_eq!(through(&mut b, &mut a, 500), patterns(500));
    assert!(a.link.counters().iter().all(|(_, count)| *count == 0));
    close([a, b]);
}

#[test]
fn the_same_seed_gives_the_same_faults_and_another_seed_others() {
    let some = FaultRates {
        drop_ppm: 50_000,
        duplicate_ppm: 50_000,
        reorder_ppm: 50_000,
        corrupt_ppm: 50_000,
        ecn_mark_ppm: 50_000,
        delay_ns: 1500,
    };
    let run = |seed| {
        let (mut a, mut b) = faulty(
            FaultSpec {
                seed,
                rx: some,
                tx: some,
            },
            512,
        );
        let received = (through(&mut a, &mut b, 2000), through(&mut b, &mut a, 2000));
        let counters = a.link.counters();
        close([a, b]);
        (received, counters)
    };
    let (first, again, other) = (run(1), run(1), run(2));
    assert!(first == again, "the same seed, other faults");
    assert!(first.0 != other.0, "another seed, the same faults");
    assert!(first.0.0 != first.0.1, "each direction has its own sequence");
    assert_eq!(
        first
            .1
            .iter()
            .filter(|(_, count)| (50..150).contains(count))
            .count(),
        8,
        "{:?}",
        first.1
    );
}

#[test]
fn drops_are_as_frequent_as_asked_for_and_counted_by_direction() {
    let rates = FaultRates {
        drop_ppm: 100_000,
        ..FaultRates::default()
    };
    let (mut a, mut b) = faulty(tx(rates), 256);
    let received = through(&mut a, &mut b, 10_000);
    let dropped = counter(&a, "fault_tx_dropped");
    assert_eq!(received.len() as u64 + dropped, 10_000);
    assert!((900..1100).contains(&dropped), "{dropped}");
    assert_eq!(through(&mut b, &mut a, 100).len(), 100);
    assert_eq!(counter(&a, "fault_rx_dropped"), 0);
    close([a, b]);

    let (mut a, mut b) = faulty(
        rx(FaultRates {
            drop_ppm: ALWAYS,
            ..rates
        }),
        256,
    );
    assert!(through(&mut b, &mut a, 100).is_empty());
    assert_eq!(counter(&a, "fault_rx_dropped"), 100);
    assert_eq!(through(&mut a, &mut b, 100).len(), 100);
    close([a, b]);
}

#[test]
fn duplicates_follow_their_original_and_a_lack_of_buffers_is_counted() {
    let rates = FaultRates {
        duplicate_ppm: ALWAYS,
        ..FaultRates::default()
    };
    for spec in [tx(rates), rx(rates)] {
        let (mut a, mut b) = faulty(spec, 256);
        let (from, to) = if spec.tx == rates {
            (&mut a, &mut b)
        } else {
            (&mut b, &mut a)
        };
        let received = through(from, to, 100);
        let twice: Vec<_> = patterns(100)
            .into_iter()
            .flat_map(|frame| [frame.clone(), frame])
            .collect();
        assert!(received == twice);
        close([a, b]);
    }
    let (mut a, mut b) = faulty(tx(rates), 40);
    let received = through(&mut a, &mut b, BURST);
    assert_eq!(received.len(), 40);
    assert_eq!(counter(&a, "fault_tx_duplicated"), 8);
    assert_eq!(counter(&a, "fault_tx_duplicates_without_buffer"), 24);
    close([a, b]);
}

#[test]
fn a_reordered_frame_comes_after_the_one_that_followed_it() {
    let rates = FaultRates {
        reorder_ppm: ALWAYS,
        ..FaultRates::default()
    };
    let (mut a, mut b) = faulty(tx(rates), 256);
    let received = through(&mut a, &mut b, 101);
    let mut expected = patterns(101);
    expected.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
    assert!(
        received == expected,
        "the last one, which none follows, comes late but comes"
    );
    assert_eq!(counter(&a, "fault_tx_reordered"), 51);
    close([a, b]);
}

#[test]
fn corruption_flips_one_bit_behind_the_headers() {
    let rates = FaultRates {
        corrupt_ppm: ALWAYS,
        ..FaultRates::default()
    };
    let (mut a, mut b) = faulty(rx(rates), 256);
    let received = through(&mut b, &mut a, 200);
    for (frame, sent) in received.iter().zip(patterns(200)) {
        let flipped: u32 = frame.iter().zip(&sent).map(|(x, y)| (x ^ y).count_ones()).sum();
        assert_eq!((frame.len(), flipped), (sent.len(), 1));
        assert_eq!(frame[..14], sent[..14]);
    }
    let places: std::collections::BTreeSet<_> = received
        .iter()
        .zip(patterns(200))
        .map(|(frame, sent)| frame.iter().zip(&sent).position(|(x, y)| x != y))
        .collect();
    assert!(places.len() > 100, "it is not always the same byte");
    close([a, b]);
}

#[test]
fn congestion_marks_are_set_on_capable_packets_only() {
    let rates = FaultRates {
        ecn_mark_ppm: ALWAYS,
        ..FaultRates::default()
    };
    let (mut a, mut b) = faulty(tx(rates), 256);
    // Version, length and class matter here: ECT(0), then no ECN.
    for (class, marked) in [(0x02, 0x03), (0x00, 0x00)] {
        let mut frame = vec![0; 74];
        frame[12..16].copy_from_slice(&[0x08, 0x00, 0x45, class]);
        let mut frames = burst(&*a.pool, 1, 0, LONGEST);
        frames[0].fill(&frame);
        a.queues[0].tx_burst(&mut frames);
        let mut received = Vec::new();
        drain(&mut b, &mut received);
        assert_eq!(received[0][15], marked);
    }
    assert_eq!(counter(&a, "fault_tx_ecn_marked"), 1);
    close([a, b]);
}

#[test]
fn delayed_frames_come_when_they_are_due_and_not_before() {
    let rates = FaultRates {
        delay_ns: 10_000,
        ..FaultRates::default()
    };
    for spec in [tx(rates), rx(rates)] {
        let (mut a, mut b) = faulty(spec, 256);
        let (from, to) = if spec.tx == rates {
            (&mut a, &mut b)
        } else {
            (&mut b, &mut a)
        };
        let mut received = Vec::new();
        let at = |from: &mut OpenPort, to: &mut OpenPort, now, received: &mut Vec<Vec<u8>>| {
            from.queues[0].tick(now);
            to.queues[0].tick(now);
            drain(to, received);
            received.len()
        };
        at(from, to, 1000, &mut received);
        from.queues[0].tx_burst(&mut burst(&*from.pool.clone(), 10, 0, LONGEST));
        assert_eq!(at(from, to, 1000, &mut received), 0);
        assert_eq!(at(from, to, 5000, &mut received), 0);
        from.queues[0].tx_burst(&mut burst(&*from.pool.clone(), 10, 10, LONGEST));
        assert_eq!(at(from, to, 5000, &mut received), 0);
        assert_eq!(at(from, to, 10_999, &mut received), 0);
        assert_eq!(at(from, to, 11_000, &mut received), 10);
        assert_eq!(at(from, to, 15_000, &mut received), 20);
        assert!(received == patterns(20));
        close([a, b]);
    }
}

#[test]
fn no_more_frames_come_than_were_asked_for() {
    let rates = FaultRates {
        delay_ns: 10,
        ..FaultRates::default()
    };
    let (mut a, mut b) = faulty(rx(rates), 256);
    b.queues[0].tx_burst(&mut burst(&*b.pool.clone(), 10, 0, LONGEST));
    let mut received = FrameBurst::new();
    a.queues[0].tick(0);
    assert_eq!(a.queues[0].rx_burst(&mut received), 0, "they are delayed");
    a.queues[0].tick(10);
    assert_eq!(a.queues[0].rx_at_most(&mut received, 3), 3);
    assert_eq!(a.queues[0].rx_burst(&mut received), 7);
    drop(received);
    close([a, b]);
}

#[test]
fn frames_held_back_are_bounded_and_the_rest_waits_outside() {
    let rates = FaultRates {
        delay_ns: 1 << 50,
        ..FaultRates::default()
    };
    let (mut a, mut b) = faulty(tx(rates), 4096);
    let mut accepted = 0;
    loop {
        let n = a.queues[0].tx_burst(&mut burst(&*a.pool.clone(), BURST, accepted, LONGEST));
        accepted += n;
        if n == 0 {
            break;
        }
    }
    assert!((900..=1024).contains(&accepted), "{accepted}");
    let mut received = Vec::new();
    drain(&mut b, &mut received);
    assert!(received.is_empty());
    a.queues[0].tick(1 << 51);
    // The ring takes as many as it has places for.
    drain(&mut b, &mut received);
    a.queues[0].tick(1 << 51);
    drain(&mut b, &mut received);
    assert_eq!(received.len(), accepted);
    close([a, b]);
}

#[test]
fn faults_neither_allocate_nor_block_on_a_poll_core() {
    let all = FaultRates {
        drop_ppm: 100_000,
        duplicate_ppm: 300_000,
        reorder_ppm: 300_000,
        corrupt_ppm: 300_000,
        ecn_mark_ppm: 300_000,
        delay_ns: 20_000,
    };
    let (mut a, mut b) = faulty(
        FaultSpec {
            seed: 3,
            rx: all,
            tx: all,
        },
        2048,
    );
    let section = NonBlocking::enter();
    let (mut from, mut to) = (&mut a, &mut b);
    for step in 0..4000 {
        from.queues[0].tick(step * 500);
        let mut frames = FrameBurst::new();
        from.pool.alloc_burst(BURST, &mut frames);
        for frame in &mut frames {
            frame.set_len(100);
        }
        from.queues[0].tx_burst(&mut frames);
        frames.clear();
        to.queues[0].rx_burst(&mut frames);
        std::mem::swap(&mut from, &mut to);
    }
    drop(section);
    assert!(counter(&a, "fault_rx_corrupted") > 0 && counter(&a, "fault_tx_duplicated") > 0);
    close([a, b]);
}
