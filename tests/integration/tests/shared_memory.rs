//! Shared memory in the hands of a client that means harm: forged indices, doorbells, events, and garbage. It may
//! lose its own QPs; two other clients go on byte-exact all the time.
use std::os::fd::AsFd;
use std::time::Duration;

use rnic_abi::{
    Cqe, CreateCq, CreateCqReply, Empty, EventSlot, HandleReply, Op, RING_ENTRIES, RingIndices, arm,
};
use rnic_tests::probe::Rng;
use rnic_tests::raw::{punch, write};
use rnic_tests::{Turn, poll_until};

mod villain;
use villain::{BASE, LEN, PATHS, Villain, scene};

#[test]
fn forged_indices_of_work_queues_cost_the_qp_only() {
    let _turn = Turn::take();
    let mut scene = scene(1, "wire");
    let mut rng = Rng::new(&[11]);
    let depth = 16;
    for step in [depth + 1, 2 * depth, 1 << 31, u32::MAX, u32::MAX - depth] {
        for queue in 0..2 {
            let mut villain = Villain::enter(&scene);
            villain.post(&villain.write(1, 1000));
            assert_eq!(villain.own.completion().status, 0);
            let words = if queue == 0 { villain.qp.sq } else { villain.qp.rq };
            let tail = words.offset + RingIndices::TAIL;
            let forged = villain.own.region.load(tail).wrapping_add(step);
            villain.own.region.store(tail, forged);
            villain.own.ring(&villain.qp);
            if queue == 1 {
                // A receive queue is looked at when a message wants one of its entries.
                villain.receive_from_peer(0);
            }
            villain.assert_fails(&format!("a tail moved by {step:#x} of queue {queue}"));
            scene.bystanders.check();
        }
    }
    // Heads are the daemon's: what the client writes there means nothing to it.
    let mut villain = Villain::enter(&scene);
    for id in 0..50 {
        for words in [villain.qp.sq, villain.qp.rq] {
            for word in [RingIndices::HEAD, RingIndices::NEED_KICK] {
                villain.own.region.store(words.offset + word, rng.next() as u32);
            }
        }
        villain.post(&villain.write(id, 5000));
        let done = villain.own.completion();
        assert_eq!((done.wr_id, done.status), (id, 0));
    }
    drop(villain);
    scene.end();
}

#[test]
fn doorbells_of_everyone_and_no_one_are_ignored() {
    let _turn = Turn::take();
    let mut scene = scene(2, "wire");
    let mut villain = Villain::enter(&scene);
    let layout = villain.own.layout;
    for id in 0..40 {
        for block in 0..layout.cores {
            let start = layout.doorbells + block as usize * layout.doorbell.size();
            villain
                .own
                .region
                .write(start, &vec![0xFF; layout.doorbell.size()]);
            for _ in 0..20 {
                villain.own.wake(block);
            }
        }
        villain.post(&villain.write(id, 300));
        let done = villain.own.completion();
        assert_eq!((done.wr_id, done.status), (id, 0));
    }
    // Sockets that are full, shut down, closed.
    for wake in villain.own.wakes.drain(..) {
        use rustix::net::{SendFlags, Shutdown, send, shutdown};
        while send(&wake, &[0; 512], SendFlags::DONTWAIT).is_ok() {}
        scene.bystanders.check();
        shutdown(&wake, Shutdown::Both).unwrap();
        scene.bystanders.check();
    }
    scene.bystanders.check();
    drop(villain);
    scene.end();
}

#[test]
fn a_completion_queue_that_is_forged_or_overflows_costs_its_owner_only() {
    let _turn = Turn::take();
    let mut scene = scene(1, "wire");
    let mut rng = Rng::new(&[12]);
    for round in 0..12 {
        let villain = Villain::enter(&scene);
        let region = &villain.own.region;
        for index in 0..villain.own.layout.cores {
            let ring = villain.own.subring(index);
            let forged = if round % 2 == 0 {
                rng.next() as u32
            } else {
                u32::MAX - round
            };
            region.store(ring.offset + RingIndices::HEAD, forged);
            region.store(ring.offset + RingIndices::TAIL, rng.next() as u32);
            let entries = rng.bytes(ring.depth as usize * size_of::<Cqe>());
            region.write(ring.offset + RING_ENTRIES, &entries);
        }
        region.store(villain.own.arm_word(), rng.next() as u32);
        let kinds = [arm::ANY, arm::SOLICITED, 3, u32::MAX];
        for id in 0..8 {
            villain.post(&villain.write(id, 100));
            region.store(villain.own.arm_word(), kinds[round as usize % 4]);
        }
        scene.bystanders.check();
    }
    // Never polled: after its depth of completions it is lost.
    let mut villain = Villain::enter(&scene);
    for id in 0..100 {
        let sq = villain.qp.sq.offset;
        let word = |at| villain.own.region.load(sq + at);
        let room = poll_until(Duration::from_secs(10), || {
            let filled = word(RingIndices::TAIL).wrapping_sub(word(RingIndices::HEAD));
            (filled < villain.qp.sq.depth).then_some(())
        });
        if room.is_none() {
            break;
        }
        villain.post(&villain.write(id, 10));
        if villain.state() == 6 {
            break;
        }
    }
    villain.assert_fails("an overflown completion queue");
    drop(villain);
    scene.end();
}

#[test]
fn a_channel_that_nobody_reads_or_that_is_closed_stalls_nobody() {
    let _turn = Turn::take();
    let mut scene = scene(1, "wire");
    let mut villain = Villain::enter(&scene);
    let line = &mut villain.own.line;
    let reply = line.request(Op::CreateCompChannel, &Empty::default(), &[]);
    let socket = reply.fds.first().unwrap().try_clone().unwrap();
    let channel = reply.body::<HandleReply>().handle;
    let body = CreateCq {
        depth: 64,
        channel,
        ..CreateCq::default()
    };
    let cq: CreateCqReply = line.request(Op::CreateCq, &body, &[]).body();
    villain.own.use_cq(cq);
    let qp = villain.own.qp(16);
    villain.own.connect(
        &qp,
        villain.peer.qps[0].made.qpn,
        rnic_tests::raw::ipv4_gid("10.0.0.2"),
    );
    let mut flood = |villain: &mut Villain, count: u64| {
        for id in 0..count {
            villain.own.region.store(villain.own.arm_word(), arm::ANY);
            // The first fails, the others are flushed: each is a completion, and wakes.
            let wqe = write(id, BASE, 10, 0, BASE, 0);
            villain.own.post(&qp, qp.sq, &wqe);
            assert_ne!(villain.own.completion().status, 0);
        }
        scene.bystanders.check();
    };
    flood(&mut villain, 1000);
    drop((socket, reply));
    flood(&mut villain, 50);
    drop(villain);
    scene.end();
}

#[test]
fn garbage_over_the_whole_region_under_traffic_harms_its_owner_only() {
    let _turn = Turn::take();
    for path in PATHS {
        let mut scene = scene(2, path);
        let mut rng = Rng::new(&[13]);
        for round in 0..40 {
            let mut villain = Villain::enter(&scene);
            let len = villain.own.region.len();
            for id in 0..4 {
                villain.post(&villain.write(id, LEN));
            }
            let mut garbage = vec![0; len.min(4 << 20)];
            match round % 4 {
                0 => rng.fill(&mut garbage),
                1 => garbage.fill(0xFF),
                _ => {}
            }
            if round % 4 == 3 {
                // Its own queues as the target of what its peer writes.
                let fd = villain.own.region_fd.try_clone().unwrap();
                let own = villain.own.mr(fd.as_fd(), len as u64, 0);
                let qp = villain.peer.qps[0];
                for start in (0..len as u64 - u64::from(LEN)).step_by(LEN as usize) {
                    let wqe = write(1, BASE, LEN, villain.target.lkey, start, own.rkey);
                    villain.peer.post(&qp, qp.sq, &wqe);
                }
            } else {
                villain.own.region.write(0, &garbage);
            }
            for block in 0..villain.own.layout.cores {
                villain.own.wake(block);
            }
            for slot in 0..villain.own.layout.slots.min(40) {
                villain.own.ring_bit(0, slot);
            }
            // An event now and then, into a ring of garbage.
            villain.receive_from_peer(10);
            if round % 5 == 0 {
                scene.bystanders.check();
            }
        }
        scene.end();
    }
}

#[test]
fn a_region_full_of_holes_harms_its_owner_only() {
    let _turn = Turn::take();
    let mut scene = scene(1, "wire");
    let mut rng = Rng::new(&[16]);
    for _ in 0..10 {
        let villain = Villain::enter(&scene);
        let pages = villain.own.region.len() / 4096;
        for id in 0..8 {
            villain.post(&villain.write(id, LEN));
            for _ in 0..20 {
                punch(&villain.own.region_fd, rng.below(pages) as u64 * 4096, 4096).unwrap();
            }
        }
        punch(&villain.own.region_fd, 0, villain.own.region.len() as u64).unwrap();
        villain.receive_from_peer(10);
        scene.bystanders.check();
    }
    scene.end();
}

#[test]
fn forged_event_rings_end_the_session_or_lose_its_events_and_nothing_else() {
    let _turn = Turn::take();
    let mut scene = scene(1, "wire");
    let mut rng = Rng::new(&[14]);
    for round in 0..10 {
        let villain = Villain::enter(&scene);
        let (layout, region) = (villain.own.layout, &villain.own.region);
        let slots = layout.slots as usize * size_of::<EventSlot>();
        let ring = layout.event_slots - layout.events;
        let mut fill = |len: usize| {
            if round % 2 == 0 {
                rng.bytes(len)
            } else {
                vec![0xFF; len]
            }
        };
        region.write(layout.event_slots, &fill(slots));
        region.write(layout.events, &fill(ring));
        // The QP fails, from either side, with an event.
        let mut wqe = villain.write(1, 10);
        wqe.rkey ^= 1;
        villain.post(&wqe);
        region.store(villain.qp.rq.offset + RingIndices::TAIL, 1 << 20);
        villain.own.ring(&villain.qp);
        villain.receive_from_peer(0);
        scene.bystanders.check();
    }
    scene.end();
}
