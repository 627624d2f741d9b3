//! Work requests through poll cores, played by hand: no control thread, no client library.
mod common;

use common::{PD, Rig, path, strange_paths, wqe};
use rnic_abi::{AtomicOperands, Sge, Wqe, event_kind};
use rnic_engine::{command::ObjectEvent, nonblocking::CheckedAllocator};
use rnic_transport::{Check, QpState};
use rnic_wire::Mtu;

#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const WRITE: u8 = 0;
const SEND: u8 = 2;
const READ: u8 = 4;
const FETCH_ADD: u8 = 6;

const A: usize = 0;
const B: usize = 1 << 20;

fn pair(rig: &mut Rig, direct: bool) -> (usize, usize) {
    let (a, b) = (rig.create_qp(10), rig.create_qp(11));
    rig.connect(a, b, path(1, 2, direct), path(2, 1, direct), Mtu::M1024);
    (a, b)
}

/// SEND, WRITE and READ of sizes around the MTU, byte for byte.
fn move_data(rig: &mut Rig, a: usize, b: usize) {
    for (i, len) in [0, 1, 7, 1023, 1024, 1025, 5000, 100_000].into_iter().enumerate() {
        let seed = i as u8;
        let sent = rig.fill(A, len, seed);
        rig.fill(B, len, !seed);
        let (source, target) = (rig.sge(A as u64, len as u32), rig.sge(B as u64, len as u32));
        rig.post_recv(b, 100 + i as u64, &[target]);
        rig.post_send(a, wqe(i as u64, SEND, source, 0, 0));
        let received = rig.wait_cqe(b);
        assert_eq!(
            (received.wr_id, received.status, received.byte_len),
            (100 + i as u64, 0, len as u32)
        );
        let done = rig.wait_cqe(a);
        assert_eq!((done.wr_id, done.status), (i as u64, 0));
        assert_eq!(rig.bytes(B, len), sent, "SEND of {len} bytes");

        let sent = rig.fill(A, len, seed ^ 0x5a);
        rig.post_send(a, wqe(200, WRITE, source, B as u64, rig.key));
        assert_eq!(rig.wait_cqe(a).status, 0);
        assert_eq!(rig.bytes(B, len), sent, "WRITE of {len} bytes");

        let there = rig.fill(B, len, seed ^ 0xa5);
        rig.post_send(a, wqe(300, READ, source, B as u64, rig.key));
        assert_eq!(rig.wait_cqe(a).status, 0);
        assert_eq!(rig.bytes(A, len), there, "READ of {len} bytes");
    }
}

#[test]
fn two_qps_of_one_appliance_exchange_data_without_frames() {
    let mut rig = Rig::new(1, vec![]);
    let (a, b) = pair(&mut rig, true);
    move_data(&mut rig, a, b);
    let status = rig.query(a);
    assert_eq!(status.attr.state, QpState::Rts);
    assert_eq!(rig.engine.core_status(0).counters.tx_roce, 0);
    rig.destroy_qp(a);
    rig.engine.stop();
}

/// Twelve packets of payload from two places into one, and one that is short; then what ends with a whole packet.
#[test]
fn a_long_write_without_frames_is_whole_and_counted_packet_by_packet() {
    let mut rig = Rig::new(1, vec![]);
    let (a, b) = pair(&mut rig, true);
    for (i, len) in [12 * 1024 + 100, 12 * 1024, 3 * 1024, 400_000]
        .into_iter()
        .enumerate()
    {
        let sent = rig.fill(A, len, i as u8);
        let behind = rig.fill(B + len, 64, 0xee);
        let first = len / 3;
        let mut request = wqe(i as u64, WRITE, rig.sge(0, first as u32), B as u64, rig.key);
        request.num_sge = 2;
        request.sges[1] = rig.sge(first as u64, (len - first) as u32);
        rig.fill(B, len, !(i as u8));
        let before = rig.engine.core_status(0).counters.direct_packets;
        rig.post_send(a, request);
        assert_eq!(rig.wait_cqe(a).status, 0);
        assert_eq!(rig.bytes(B, len), sent, "{len} bytes");
        assert_eq!(rig.bytes(B + len, 64), behind, "nothing behind {len} bytes");
        let packets = len.div_ceil(1024) as u64;
        let counted = |rig: &Rig| rig.engine.core_status(0).counters.direct_packets - before;
        while counted(&rig) <= packets {
            // Counters are shown now and then.
            std::thread::yield_now();
        }
        // And a few acknowledgements.
        assert!(counted(&rig) < 2 * packets, "{} of {packets}", counted(&rig));
    }
    // The other way: the PSNs of both sides still agree.
    let sge = rig.sge(B as u64, 5000);
    let sent = rig.fill(B, 5000, 77);
    rig.post_send(b, wqe(9, WRITE, sge, A as u64, rig.key));
    assert_eq!(rig.wait_cqe(b).status, 0);
    assert_eq!(rig.bytes(A, 5000), sent);
    rig.engine.stop();
}

#[test]
fn a_long_write_that_leaves_its_region_fails_without_frames_as_with_them() {
    let mut rig = Rig::new(1, vec![]);
    let (a, _) = pair(&mut rig, true);
    let len = rig.data.len() as u64;
    let sge = rig.sge(0, 100_000);
    rig.post_send(a, wqe(1, WRITE, sge, len - 50_000, rig.key));
    assert_eq!(rig.wait_cqe(a).status, 10, "remote access error");
    rig.engine.stop();
}

#[test]
fn a_long_write_whose_source_ends_too_soon_fails_where_it_does() {
    let mut rig = Rig::new(1, vec![]);
    let (a, b) = pair(&mut rig, true);
    let len = rig.data.len() as u64;
    let sge = rig.sge(len - 50_000, 100_000);
    rig.post_send(a, wqe(1, WRITE, sge, 0, rig.key));
    assert_eq!(rig.wait_cqe(a).status, 4, "local protection error");
    assert_eq!(rig.query(b).attr.state, QpState::Rts, "nothing was wrong there");
    rig.engine.stop();
}

#[test]
fn a_bad_rkey_fails_the_request_and_raises_access_error_at_the_responder() {
    for direct in [true, false] {
        for opcode in [WRITE, READ, FETCH_ADD] {
            let mut rig = Rig::new(1, if direct { vec![] } else { wired(1) });
            let (a, b) = pair(&mut rig, direct);
            let sge = rig.sge(0, if opcode == FETCH_ADD { 8 } else { 64 });
            let refused = Wqe {
                sges: [sge, AtomicOperands::default().into()],
                ..wqe(1, opcode, sge, 0, rig.key ^ 1)
            };
            rig.post_send(a, refused);
            let cqe = rig.wait_cqe(a);
            assert_eq!(cqe.status, 10, "remote access error of {opcode}, direct {direct}");
            let is_access = |e: &&ObjectEvent| e.kinds & event_kind::QP_ACCESS_ERR != 0;
            while !rig.events.iter().any(|e| is_access(&e)) {
                rig.poll();
                std::thread::yield_now();
            }
            let event = rig.events.iter().find(is_access).unwrap();
            assert_eq!(event.number, rig.qps[b].qpn);
            assert_eq!(event.cause.check, Check::Key);
            assert_eq!(event.cause.psn, 0xfffff0);
            assert_eq!(rig.query(a).attr.state, QpState::Err);
            assert_eq!(rig.query(b).attr.state, QpState::Err);
            // What is posted later is flushed.
            rig.post_send(a, wqe(2, WRITE, rig.sge(0, 64), 0, rig.key));
            assert_eq!(rig.wait_cqe(a).status, 5);
            rig.engine.stop();
        }
    }
}

#[test]
fn a_region_of_another_pd_is_refused_locally() {
    let mut rig = Rig::new(1, vec![]);
    let (a, _) = pair(&mut rig, true);
    let other = rnic_engine::mem::MrTable::key(4, 1, 0);
    let descriptor = rnic_engine::mem::MrDescriptor {
        mem: &rig.data,
        pd: PD + 1,
        access: rnic_transport::Access::LOCAL_WRITE,
        iova: 0,
        len: 4096,
        invalidatable: false,
    };
    assert!(rig.engine.mrs().validate(other, &descriptor));
    let sge = Sge {
        addr: 0,
        length: 8,
        lkey: other,
    };
    rig.post_send(a, wqe(1, WRITE, sge, 0, rig.key));
    assert_eq!(rig.wait_cqe(a).status, 4, "local protection error");
    rig.engine.stop();
}

#[test]
fn a_forged_tail_breaks_its_own_qp_and_no_other() {
    let mut rig = Rig::new(1, vec![]);
    let (a, b) = pair(&mut rig, true);
    let (c, d) = (rig.create_qp(12), rig.create_qp(13));
    rig.connect(c, d, path(3, 4, true), path(4, 3, true), Mtu::M4096);
    rig.publish(
        rig.qps[a].sq as usize,
        1_000_000,
        rig.qps[a].handle,
        rig.qps[a].core,
    );
    while rig.events.is_empty() {
        rig.poll();
        std::thread::yield_now();
    }
    assert_eq!(rig.events[0].kinds, event_kind::QP_FATAL);
    assert_eq!(rig.events[0].cause.check, Check::SendQueue);
    assert_eq!(rig.query(a).attr.state, QpState::Err);
    assert_eq!(rig.query(b).attr.state, QpState::Rts);
    move_data(&mut rig, c, d);
    rig.engine.stop();
}

#[test]
fn malformed_wqes_complete_in_order_each_with_its_error() {
    let mut rig = Rig::new(1, vec![]);
    let (a, _) = pair(&mut rig, true);
    let good = wqe(1, WRITE, rig.sge(0, 64), B as u64, rig.key);
    rig.post_send(a, good);
    let unknown = rnic_abi::Wqe {
        wr_id: 2,
        opcode: 99,
        ..good
    };
    let too_many = rnic_abi::Wqe {
        wr_id: 3,
        num_sge: 40,
        ..good
    };
    rig.post_send(a, unknown);
    rig.post_send(a, too_many);
    rig.post_send(a, rnic_abi::Wqe { wr_id: 4, ..good });
    let seen: Vec<_> = (0..4)
        .map(|_| rig.wait_cqe(a))
        .map(|c| (c.wr_id, c.status))
        .collect();
    assert_eq!(seen, [(1, 0), (2, 2), (3, 2), (4, 5)]);
    rig.engine.stop();
}

#[test]
fn doorbell_bits_without_a_qp_are_ignored() {
    let mut rig = Rig::new(1, vec![]);
    let (a, b) = pair(&mut rig, true);
    for slot in 0..64 {
        rig.ring(slot, 0);
    }
    move_data(&mut rig, a, b);
    rig.engine.stop();
}

use rnic_engine::port::{
    DeviceSpec, FaultRates, FaultSpec, HeapPool, OpenPort, PortSpec, open_all, ring_pair,
};

fn wired(queues: u16) -> Vec<OpenPort> {
    let pool = HeapPool::for_mtu(2048, 4200);
    let (a, b) = ring_pair("rnic0", "rnic1", queues, 4200, pool);
    vec![a, b]
}

#[test]
fn two_ports_carry_every_operation_at_every_path_mtu() {
    for mtu in [Mtu::M256, Mtu::M512, Mtu::M1024, Mtu::M2048, Mtu::M4096] {
        let mut rig = Rig::new(1, wired(1));
        let (a, b) = (rig.create_qp(10), rig.create_qp(11));
        rig.connect(a, b, path(1, 2, false), path(2, 1, false), mtu);
        move_data(&mut rig, a, b);
        let counters = rig.engine.core_status(0).counters;
        assert!(counters.tx_roce > 0);
        let dropped: Vec<_> = counters
            .named()
            .filter(|(n, v)| *v > 0 && !["rx_roce", "tx_roce"].contains(n))
            .collect();
        assert!(dropped.is_empty(), "{dropped:?}");
        rig.engine.stop();
    }
}

#[test]
fn frames_reach_the_owner_core_wherever_they_arrive() {
    // Slots 10 and 11 belong to different cores of two; each port has one queue, on core 0.
    for queues in [1, 2] {
        for direct in [false, true] {
            let mut rig = Rig::new(2, wired(queues));
            let (a, b) = (rig.create_qp(10), rig.create_qp(11));
            assert_ne!(rig.qps[a].core, rig.qps[b].core);
            rig.connect(a, b, path(1, 2, direct), path(2, 1, direct), Mtu::M1024);
            move_data(&mut rig, a, b);
            move_data(&mut rig, b, a);
            rig.engine.stop();
        }
    }
}

#[test]
fn every_message_of_one_packet_is_counted() {
    let mut rig = Rig::new(1, wired(1));
    let (a, b) = pair(&mut rig, false);
    for (wr_id, opcode) in [(0, WRITE), (1, SEND), (2, WRITE), (3, SEND)] {
        rig.post_recv(b, wr_id, &[rig.sge(B as u64, 64)]);
        rig.post_send(a, wqe(wr_id, opcode, rig.sge(0, 64), B as u64, rig.key));
        assert_eq!(rig.wait_cqe(a).status, 0);
    }
    assert_eq!(rig.query(b).received_packets, 4);
    rig.engine.stop();
}

#[test]
fn messages_of_one_packet_that_were_damaged_on_the_way_change_nothing() {
    const LEN: usize = 64;
    let end = |name: &str, peer: &str| PortSpec::new(name, DeviceSpec::SoftRing { peer: peer.into() }, 1500);
    let damaged = FaultSpec {
        seed: 5,
        tx: FaultRates {
            corrupt_ppm: 300_000,
            ..FaultRates::default()
        },
        ..FaultSpec::default()
    };
    let first = PortSpec {
        faults: Some(damaged),
        ..end("rnic0", "rnic1")
    };
    let ports = open_all(&[first, end("rnic1", "rnic0")], &[]).expect("rings open");
    let mut rig = Rig::new(1, ports);
    rig.timeout = 8;
    let (a, b) = pair(&mut rig, false);
    let around = rig.fill(B - LEN, 3 * LEN, 9);
    for wr_id in 0..60 {
        let opcode = [WRITE, SEND, READ][wr_id as usize % 3];
        let sent = rig.fill(if opcode == READ { B } else { A }, LEN, wr_id as u8);
        if opcode == SEND {
            rig.post_recv(b, wr_id, &[rig.sge(B as u64, LEN as u32)]);
        }
        rig.post_send(
            a,
            wqe(wr_id, opcode, rig.sge(A as u64, LEN as u32), B as u64, rig.key),
        );
        assert_eq!(rig.wait_cqe(a).status, 0, "{wr_id}");
        assert_eq!(rig.bytes(A, LEN), sent, "{wr_id}");
        assert_eq!(rig.bytes(B, LEN), sent, "{wr_id}");
        assert_eq!(rig.bytes(B - LEN, LEN), around[..LEN], "in front of it");
        assert_eq!(rig.bytes(B + LEN, LEN), around[2 * LEN..], "behind it");
    }
    assert!(
        rig.engine.core_status(0).counters.icrc_errors > 0,
        "nothing was damaged"
    );
    rig.engine.stop();
}

#[test]
fn messages_of_one_packet_from_other_addresses_vlans_and_ports_are_dropped() {
    for strange in strange_paths() {
        let mut rig = Rig::new(1, wired(1));
        rig.timeout = 8;
        rig.fill(A, 64, 1);
        let there = rig.fill(B, 64, 9);
        for (slot, opcode) in [(10, WRITE), (12, SEND)] {
            let (a, b) = (rig.create_qp(slot), rig.create_qp(slot + 1));
            rig.connect(a, b, path(1, 2, false), strange, Mtu::M1024);
            rig.post_recv(b, 7, &[rig.sge(B as u64, 64)]);
            rig.post_send(a, wqe(1, opcode, rig.sge(0, 64), B as u64, rig.key));
            assert_ne!(rig.wait_cqe(a).status, 0, "nobody answers");
            assert!(rig.poll_cq(b).is_none());
            assert_eq!(rig.query(b).received_packets, 0);
        }
        assert_eq!(rig.bytes(B, 64), there);
        rig.engine.stop();
    }
}

#[test]
fn a_qp_can_be_connected_to_itself() {
    let mut rig = Rig::new(1, wired(1));
    let a = rig.create_qp(10);
    let here = rnic_engine::command::Path {
        remote_ip: path(1, 2, true).local_ip,
        ..path(1, 1, true)
    };
    rig.connect_one(a, a, here, Mtu::M1024);
    let sent = rig.fill(A, 5000, 3);
    let (source, target) = (rig.sge(A as u64, 5000), rig.sge(B as u64, 5000));
    rig.post_recv(a, 1, &[target]);
    rig.post_send(a, wqe(2, SEND, source, 0, 0));
    let mut ids = [rig.wait_cqe(a).wr_id, rig.wait_cqe(a).wr_id];
    ids.sort();
    assert_eq!(ids, [1, 2]);
    assert_eq!(rig.bytes(B, 5000), sent);
    rig.engine.stop();
}
