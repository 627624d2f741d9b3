//! UC and UD through poll cores, played by hand.
mod common;

use std::time::{Duration, Instant};

use common::{PD, Rig, path, strange_paths, wqe};
use rnic_engine::command::Path;
use rnic_engine::core::CoreCounters;
use rnic_engine::mem::Attachment;
use rnic_engine::nonblocking::CheckedAllocator;
use rnic_engine::port::{HeapPool, OpenPort, ring_pair};
use rnic_engine::view::number;
use rnic_transport::{Check, QpAttr, QpAttrMask, QpState, QpType};
use rnic_wire::Mtu;

#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

const WRITE: u8 = 0;
const WRITE_WITH_IMM: u8 = 1;
const SEND: u8 = 2;
const READ: u8 = 4;

const A: usize = 0;
const B: usize = 1 << 20;

fn wired() -> Vec<OpenPort> {
    let (a, b) = ring_pair("rnic0", "rnic1", 1, 4200, HeapPool::for_mtu(2048, 4200));
    vec![a, b]
}

/// Two QPs of one type, on different cores where there are two.
fn uc_pair(rig: &mut Rig, direct: bool) -> (usize, usize) {
    rig.qp_type = QpType::Uc;
    let (a, b) = (rig.create_qp(10), rig.create_qp(11));
    rig.connect(a, b, path(1, 2, direct), path(2, 1, direct), Mtu::M1024);
    (a, b)
}

/// Waits until the first core has told such counters.
fn settle(rig: &Rig, good: impl Fn(&CoreCounters) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !good(&rig.engine.core_status(0).counters) {
        assert!(
            Instant::now() < deadline,
            "{:?}",
            rig.engine.core_status(0).counters
        );
        std::thread::yield_now();
    }
}

#[test]
fn uc_moves_sends_and_writes_over_wires_and_within_the_appliance() {
    for (cores, direct) in [(1, true), (1, false), (2, true), (2, false)] {
        let mut rig = Rig::new(cores, wired());
        let (a, b) = uc_pair(&mut rig, direct);
        for (i, len) in [0, 1, 1024, 1025, 9000].into_iter().enumerate() {
            let sent = rig.fill(A, len, i as u8);
            let (source, target) = (rig.sge(A as u64, len as u32), rig.sge(B as u64, len as u32));
            rig.post_recv(b, 7, &[target]);
            rig.post_send(a, wqe(1, SEND, source, 0, 0));
            let (done, received) = (rig.wait_cqe(a), rig.wait_cqe(b));
            assert_eq!((done.wr_id, done.status), (1, 0));
            assert_eq!(
                (received.wr_id, received.status, received.byte_len),
                (7, 0, len as u32)
            );
            assert_eq!(received.src_qpn, rig.qps[a].qpn);
            assert_eq!(rig.bytes(B, len), sent, "SEND of {len} bytes");
            let sent = rig.fill(A, len, !(i as u8));
            rig.post_recv(b, 8, &[]);
            rig.post_send(a, wqe(2, WRITE_WITH_IMM, source, B as u64, rig.key));
            assert_eq!((rig.wait_cqe(a).status, rig.wait_cqe(b).wr_id), (0, 8));
            assert_eq!(rig.bytes(B, len), sent, "WRITE of {len} bytes");
        }
        // 1 + 1 + 1 + 2 + 9 packets each way of moving data, and nothing comes back.
        let packets = [a, b].map(|qp| rig.query(qp).received_packets);
        assert_eq!(packets, [0, 28]);
        rig.engine.stop();
    }
}

#[test]
fn a_uc_send_without_a_receive_and_a_write_with_a_bad_key_are_lost_and_counted_and_nothing_else_happens() {
    let mut rig = Rig::new(1, vec![]);
    let (a, b) = uc_pair(&mut rig, true);
    let sge = rig.sge(0, 64);
    rig.post_send(a, wqe(1, SEND, sge, 0, 0));
    rig.post_send(a, wqe(2, WRITE, sge, 0, rig.key ^ 1));
    assert_eq!(
        [rig.wait_cqe(a), rig.wait_cqe(a)].map(|c| (c.wr_id, c.status)),
        [(1, 0), (2, 0)]
    );
    assert_eq!([a, b].map(|qp| rig.query(qp).attr.state), [QpState::Rts; 2]);
    settle(&rig, |c| (c.no_receive_wqe, c.message_refused) == (1, 1));
    assert!(rig.events.is_empty());
    rig.engine.stop();
}

#[test]
fn a_bad_send_wqe_stops_the_send_queue_of_uc_and_flushes_what_follows() {
    let mut rig = Rig::new(1, vec![]);
    let (a, b) = uc_pair(&mut rig, true);
    let sge = rig.sge(0, 64);
    rig.post_send(a, wqe(1, READ, sge, B as u64, rig.key));
    rig.post_send(a, wqe(2, WRITE, sge, B as u64, rig.key));
    let seen = [rig.wait_cqe(a), rig.wait_cqe(a)].map(|c| (c.wr_id, c.status));
    assert_eq!(seen, [(1, 2), (2, 5)], "no READ on UC; flushed");
    assert_eq!(rig.query(a).attr.state, QpState::Sqe);
    rig.post_send(a, wqe(3, WRITE, sge, B as u64, rig.key));
    assert_eq!(rig.wait_cqe(a).status, 5, "flushed");
    // It still receives.
    rig.post_recv(a, 4, &[sge]);
    rig.post_send(b, wqe(5, SEND, sge, 0, 0));
    assert_eq!((rig.wait_cqe(b).status, rig.wait_cqe(a).wr_id), (0, 4));
    let rts = rnic_transport::QpAttr {
        state: QpState::Rts,
        ..Default::default()
    };
    rig.modify(a, rts, rnic_transport::QpAttrMask::STATE, None)
        .unwrap();
    rig.post_send(a, wqe(6, WRITE, sge, B as u64, rig.key));
    let done = rig.wait_cqe(a);
    assert_eq!((done.wr_id, done.status), (6, 0));
    assert!(rig.events.is_empty(), "SQE raises no event");
    rig.engine.stop();
}

const QKEY: u32 = 0x1111_1111;
/// The address handle from the first to the second host, and back.
const AHS: [u32; 2] = [number(3, 1), number(4, 1)];

/// Brings a new UD QP on this port to RTS.
fn ud_qp(rig: &mut Rig, slot: u32, port: u16) -> usize {
    use QpAttrMask as M;
    (rig.qp_type, rig.port) = (QpType::Ud, port);
    let qp = rig.create_qp(slot);
    let mut attr = QpAttr {
        state: QpState::Init,
        port: 1,
        qkey: QKEY,
        sq_psn: 7,
        ..QpAttr::default()
    };
    rig.modify(qp, attr, M::STATE | M::PKEY_INDEX | M::PORT | M::QKEY, None)
        .unwrap();
    attr.state = QpState::Rtr;
    rig.modify(qp, attr, M::STATE, None).unwrap();
    attr.state = QpState::Rts;
    rig.modify(qp, attr, M::STATE | M::SQ_PSN, None).unwrap();
    qp
}

/// Two UD QPs, each on a port of its own with an address and a way to the other.
fn ud_pair(rig: &mut Rig, direct: bool) -> (usize, usize) {
    for (port, (from, to)) in [(1, 2), (2, 1)].into_iter().enumerate() {
        let way = path(from, to, direct);
        assert!(rig.engine.ahs().validate(AHS[port], PD, &way));
        rig.engine.addresses().set(port as u16, [(way.local_ip, None)]);
    }
    (ud_qp(rig, 10, 0), ud_qp(rig, 11, 1))
}

#[test]
fn datagrams_arrive_behind_their_grh_area_over_wires_and_within_the_appliance() {
    for (cores, direct) in [(1, true), (1, false), (2, true), (2, false)] {
        let mut rig = Rig::new(cores, wired());
        let (a, b) = ud_pair(&mut rig, direct);
        for len in [0, 1, 1024] {
            let sent = rig.fill(A, len, 3);
            let (source, target) = (rig.sge(A as u64, len as u32), rig.sge(B as u64, 2000));
            rig.post_recv(b, 7, &[target]);
            rig.post_send(
                a,
                wqe(1, SEND, source, 0, 0).to(AHS[0], rig.qps[b].qpn, 0x8000_0000),
            );
            assert_eq!(rig.wait_cqe(a).status, 0);
            let received = rig.wait_cqe(b);
            assert_eq!(
                (received.wr_id, received.status, received.byte_len),
                (7, 0, 40 + len as u32)
            );
            assert_eq!(received.src_qpn, rig.qps[a].qpn);
            assert_eq!(
                received.flags,
                rnic_abi::cqe_flags::RECV | rnic_abi::cqe_flags::GRH
            );
            let bytes = rig.bytes(B, 40 + len);
            assert_eq!(
                bytes[..21],
                [[0; 20].as_slice(), &[0x45]].concat(),
                "an IPv4 header in the last 20"
            );
            assert_eq!(bytes[32..40], [10, 0, 0, 1, 10, 0, 0, 2]);
            assert_eq!(bytes[40..], sent, "{len} bytes");
        }
        rig.engine.stop();
    }
}

#[test]
fn a_datagram_to_an_address_that_is_not_the_ports_is_dropped() {
    let mut rig = Rig::new(1, wired());
    let (a, b) = ud_pair(&mut rig, false);
    let sge = rig.sge(0, 64);
    rig.post_recv(b, 7, &[rig.sge(B as u64, 200)]);
    let tagged = Path {
        vlan: Some(5),
        ..path(1, 2, false)
    };
    let from_nowhere = Path {
        local_ip: [0; 16],
        remote_ip: [1; 16],
        ..path(1, 2, false)
    };
    for (count, strange) in (1..).zip([path(1, 3, false), tagged, from_nowhere]) {
        rig.engine.ahs().repath(AHS[0], &strange);
        rig.post_send(a, wqe(1, SEND, sge, 0, 0).to(AHS[0], rig.qps[b].qpn, QKEY));
        assert_eq!(rig.wait_cqe(a).status, 0, "nobody knows");
        settle(&rig, |c| c.address_mismatch == count);
    }
    rig.engine.ahs().repath(AHS[0], &path(1, 2, false));
    rig.post_send(a, wqe(2, SEND, sge, 0, 0).to(AHS[0], rig.qps[b].qpn, QKEY));
    assert_eq!(rig.wait_cqe(b).wr_id, 7);
    rig.engine.stop();
}

#[test]
fn a_packet_whose_addresses_vlan_or_port_are_not_those_of_its_qp_is_dropped() {
    let mut rig = Rig::new(1, wired());
    rig.qp_type = QpType::Uc;
    for (count, strange) in (1..).zip(strange_paths()) {
        let slot = 8 + 2 * count as u32;
        let (a, b) = (rig.create_qp(slot), rig.create_qp(slot + 1));
        rig.connect(a, b, path(1, 2, false), strange, Mtu::M1024);
        rig.post_recv(b, 7, &[rig.sge(B as u64, 200)]);
        rig.post_send(a, wqe(1, SEND, rig.sge(0, 64), 0, 0));
        assert_eq!(rig.wait_cqe(a).status, 0, "nobody knows");
        settle(&rig, |c| c.address_mismatch == count);
        assert!(rig.poll_cq(b).is_none());
    }
    rig.engine.stop();
}

#[test]
fn a_wrong_qkey_and_a_receive_that_is_too_short_are_counted_and_nothing_else_happens() {
    let mut rig = Rig::new(1, wired());
    let (a, b) = ud_pair(&mut rig, true);
    let sge = rig.sge(0, 64);
    rig.post_recv(b, 7, &[rig.sge(B as u64, 103)]);
    for qkey in [QKEY ^ 1, QKEY] {
        rig.post_send(a, wqe(1, SEND, sge, 0, 0).to(AHS[0], rig.qps[b].qpn, qkey));
        assert_eq!(rig.wait_cqe(a).status, 0);
    }
    settle(&rig, |c| (c.qkey_mismatch, c.message_refused) == (1, 1));
    let short = wqe(1, SEND, rig.sge(0, 63), 0, 0);
    rig.post_send(a, short.to(AHS[0], rig.qps[b].qpn, QKEY));
    assert_eq!(rig.wait_cqe(b).wr_id, 7);
    assert!(rig.events.is_empty());
    rig.engine.stop();
}

#[test]
fn an_unknown_address_handle_and_one_of_another_pd_fail_their_requests() {
    let mut rig = Rig::new(1, wired());
    let (a, b) = ud_pair(&mut rig, true);
    let foreign = number(5, 1);
    assert!(rig.engine.ahs().validate(foreign, PD + 1, &path(1, 2, true)));
    let sge = rig.sge(0, 64);
    for ah in [number(3, 2), foreign, 0xFFFF_FFFF] {
        rig.post_send(a, wqe(1, SEND, sge, 0, 0).to(ah, rig.qps[b].qpn, QKEY));
        let failed = rig.wait_cqe(a);
        assert_eq!(
            (failed.status, failed.cause.check),
            (2, Check::AddressHandle as u8)
        );
        assert_eq!(rig.query(a).attr.state, QpState::Sqe);
        let rts = QpAttr {
            state: QpState::Rts,
            ..QpAttr::default()
        };
        rig.modify(a, rts, QpAttrMask::STATE, None).unwrap();
    }
    rig.engine.stop();
}

#[test]
fn datagrams_and_connections_do_not_take_each_others_packets() {
    let mut rig = Rig::new(1, wired());
    let (a, _) = ud_pair(&mut rig, false);
    (rig.qp_type, rig.port) = (QpType::Rc, 1);
    let (c, d) = (rig.create_qp(12), rig.create_qp(13));
    rig.connect(c, d, path(2, 1, false), path(1, 2, false), Mtu::M1024);
    rig.post_send(
        a,
        wqe(1, SEND, rig.sge(0, 64), 0, 0).to(AHS[0], rig.qps[c].qpn, QKEY),
    );
    settle(&rig, |counters| counters.no_effect == 1);
    assert_eq!(rig.query(c).attr.state, QpState::Rts);
    rig.engine.stop();
}

#[test]
fn a_multicast_datagram_reaches_every_attached_qp_of_a_port_on_every_core_and_nobody_else() {
    for cores in [1, 2] {
        let mut rig = Rig::new(cores, wired());
        let (a, b) = ud_pair(&mut rig, false);
        let members = [b, ud_qp(&mut rig, 12, 1), ud_qp(&mut rig, 13, 1)];
        let (stranger, neighbour) = (ud_qp(&mut rig, 14, 1), ud_qp(&mut rig, 15, 0));
        let group = {
            let mut mgid = path(1, 2, false).local_ip;
            mgid[12..].copy_from_slice(&[239, 1, 2, 3]);
            mgid
        };
        let attached = members
            .map(|qp| (1, qp))
            .into_iter()
            .chain([(0, a), (0, neighbour)]);
        for (port, qp) in attached {
            let attachment = Attachment {
                port,
                mgid: group,
                qpn: rig.qps[qp].qpn,
            };
            assert!(rig.engine.mcast().attach(&attachment));
        }
        let to_group = Path {
            remote_ip: group,
            remote_mac: [1, 0, 0x5E, 1, 2, 3],
            ..path(1, 2, false)
        };
        rig.engine.ahs().repath(AHS[0], &to_group);
        let everyone = members.into_iter().chain([stranger, neighbour, a]);
        for (at, qp) in everyone.enumerate() {
            let sge = rig.sge((B + at * 4096) as u64, 2000);
            rig.post_recv(qp, at as u64, &[sge]);
        }
        let sent = rig.fill(A, 500, 9);
        rig.post_send(
            a,
            wqe(99, SEND, rig.sge(A as u64, 500), 0, 0).to(AHS[0], 0xFF_FFFF, QKEY),
        );
        assert_eq!(rig.wait_cqe(a).wr_id, 99);
        // The members behind the wire, and the other member of the sender's own port.
        for (at, qp) in members.into_iter().enumerate().chain([(4, neighbour)]) {
            let received = rig.wait_cqe(qp);
            assert_eq!((received.wr_id, received.src_qpn), (at as u64, rig.qps[a].qpn));
            assert_eq!(rig.bytes(B + at * 4096 + 40, 500), sent);
        }
        // A group nobody is in: counted, and by then nothing more has come.
        let nobody = Path {
            remote_ip: path(1, 2, false).local_ip,
            ..to_group
        };
        rig.engine.ahs().repath(AHS[0], &nobody);
        rig.post_send(
            a,
            wqe(98, SEND, rig.sge(A as u64, 500), 0, 0).to(AHS[0], 0xFF_FFFF, QKEY),
        );
        assert_eq!(rig.wait_cqe(a).wr_id, 98);
        assert!(rig.poll_cq(stranger).is_none() && rig.poll_cq(a).is_none());
        rig.engine.stop();
    }
}
