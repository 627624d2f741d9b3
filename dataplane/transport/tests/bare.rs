//! FLUSH and ATOMIC WRITE (A19): executed once, in order, each answered by the response to a READ of no bytes.

mod common;

use common::*;
use rnic_sim::{Effect, Node, Packet, connect};
use rnic_transport::{
    Access, Check, DropReason, EventKind, Flush, PostError, QpState, Received, SendFlags, SendWr, WcOpcode,
    WcStatus, WrOpcode,
};
use rnic_wire::{Feth, Mtu, Operation, Reth, Syndrome};

const TIMEOUT: u64 = 4_096 << 10;
const GLOBAL: u8 = Feth::GLOBAL_VISIBILITY;

/// Two nodes, the second with memory that may be flushed.
fn nodes() -> (Node, Node) {
    let (a, mut b) = connect(Mtu::M256, |_| ());
    register(&mut b, 1024);
    let region = b.host.region_mut(KEY).expect("registered");
    region.access = region.access.union(Access::FLUSH_GLOBAL);
    (a, b)
}

fn flush(wr_id: u64, placement: u8, selectivity: u8, len: u64) -> SendWr {
    SendWr {
        wr_id,
        opcode: WrOpcode::Flush,
        flags: SendFlags::SIGNALED,
        rkey: KEY,
        remote_addr: BASE,
        compare_add: len,
        swap: Flush::to_bits(placement, selectivity),
        ..SendWr::default()
    }
}

fn flush_packet(psn: u32, placement: u8, selectivity: u8, dma_len: u32) -> Packet {
    with_headers(Operation::Flush, psn, b"", |headers| {
        headers.feth = Some(Feth {
            placement,
            selectivity,
        });
        headers.reth = Some(Reth {
            va: BASE,
            rkey: KEY,
            dma_len,
        });
    })
}

fn atomic_write(psn: u32, va: u64, dma_len: u32, payload: &[u8]) -> Packet {
    with_headers(Operation::AtomicWrite, psn, payload, |headers| {
        headers.reth = Some(Reth {
            va,
            rkey: KEY,
            dma_len,
        });
    })
}

/// Refuses `packet`; whatever it asks for is not done.
fn refused(adjust: impl Fn(&mut Node), packet: &Packet, check: Check, syndrome: Syndrome) {
    let (_, mut b) = nodes();
    adjust(&mut b);
    assert_eq!(b.receive(packet), Received::Refused(check));
    assert_eq!(answer(&mut b), (syndrome, 100));
    assert_eq!((b.qp.state(), &b.host.effects[..]), (QpState::Err, &[][..]));
    let kind = match syndrome {
        ACCESS => EventKind::QpAccessErr,
        _ => EventKind::QpReqErr,
    };
    assert_eq!(b.event_kinds().last(), Some(&kind));
}

#[test]
fn an_atomic_write_places_eight_bytes_and_a_flush_follows_what_was_written() {
    let (mut a, mut b) = nodes();
    a.post_op(0, WrOpcode::Write, &[1; 300], KEY, BASE);
    a.post(flush(1, GLOBAL, Feth::RANGE, 300)).expect("RTS takes it");
    a.post_op(
        2,
        WrOpcode::AtomicWrite,
        b"\x01\x02\x03\x04\x05\x06\x07\x08",
        KEY,
        BASE + 512,
    );
    let requests = a.transmit_all();
    let names = [
        ("WRITE_FIRST", 100),
        ("WRITE_LAST", 101),
        ("FLUSH", 102),
        ("ATOMIC_WRITE", 103),
    ];
    assert_eq!(trace(&requests), names);
    let feth = Feth {
        placement: GLOBAL,
        selectivity: Feth::RANGE,
    };
    assert_eq!(requests[2].headers.feth, Some(feth));
    assert_eq!(requests[3].headers.reth.expect("it has one").dma_len, 8);
    assert_eq!(
        requests[3].payload,
        [1, 2, 3, 4, 5, 6, 7, 8],
        "as it lies in memory"
    );
    b.receive_all(&requests);
    let answers = b.transmit_all();
    assert_eq!(
        trace(&answers),
        [("READ_RESP_ONLY", 102), ("READ_RESP_ONLY", 103)]
    );
    assert!(answers.iter().all(|answer| answer.payload.is_empty()));
    let msns: Vec<_> = answers
        .iter()
        .filter_map(|p| p.aeth())
        .map(|aeth| aeth.2)
        .collect();
    assert_eq!(msns, [2, 3]);
    a.receive_all(&answers);
    assert_eq!(sends(&a), [0, 1, 2].map(|id| (id, WcStatus::Success)));
    let done = [1, 2].map(|at| (a.host.completions[at].opcode, a.host.completions[at].byte_len));
    assert_eq!(done, [(WcOpcode::Flush, 0), (WcOpcode::AtomicWrite, 0)]);
    let effects = [
        Effect::Write { addr: BASE, len: 300 },
        Effect::Flush {
            addr: BASE,
            len: 300,
            whole: false,
        },
        Effect::AtomicWrite { addr: BASE + 512 },
    ];
    assert_eq!(b.host.effects, effects);
    assert_eq!(
        b.host.region(KEY).expect("registered").bytes[512..520],
        [1, 2, 3, 4, 5, 6, 7, 8]
    );
}

#[test]
fn an_atomic_write_that_is_not_of_eight_aligned_bytes_is_an_invalid_request() {
    for (packet, check) in [
        (atomic_write(100, BASE, 8, &[0; 4]), Check::Length),
        (atomic_write(100, BASE, 4, &[0; 4]), Check::Length),
        (atomic_write(100, BASE, 16, &[0; 16]), Check::Length),
        (atomic_write(100, BASE, 0, b""), Check::Length),
        (atomic_write(100, BASE + 4, 8, &[0; 8]), Check::Alignment),
    ] {
        refused(|_| (), &packet, check, INVALID);
    }
}

#[test]
fn an_atomic_write_needs_the_right_to_write_of_qp_and_region() {
    let packet = atomic_write(100, BASE, 8, &[0; 8]);
    let read_only = |b: &mut Node| b.host.region_mut(KEY).expect("registered").access = Access::REMOTE_READ;
    refused(read_only, &packet, Check::Access, ACCESS);
    let far = atomic_write(100, BASE + 1024, 8, &[0; 8]);
    refused(|_| (), &far, Check::Range, ACCESS);
    let (_, mut b) = connect(Mtu::M256, |attr| attr.access = Access::REMOTE_ATOMIC);
    register(&mut b, 1024);
    assert_eq!(b.receive(&packet), Received::Refused(Check::QpAccess));
}

#[test]
fn a_flush_needs_its_right_of_qp_and_region() {
    let packet = flush_packet(100, GLOBAL, Feth::RANGE, 8);
    let no_right = |b: &mut Node| b.host.region_mut(KEY).expect("registered").access = Access::REMOTE_WRITE;
    refused(no_right, &packet, Check::Access, ACCESS);
    refused(
        no_right,
        &flush_packet(100, GLOBAL, Feth::REGION, 0),
        Check::Access,
        ACCESS,
    );
    refused(
        |_| (),
        &flush_packet(100, GLOBAL, Feth::RANGE, 1025),
        Check::Range,
        ACCESS,
    );
    // Nobody grants persistence: memory is volatile.
    for placement in [Feth::PERSISTENCE, GLOBAL | Feth::PERSISTENCE] {
        refused(
            |_| (),
            &flush_packet(100, placement, Feth::RANGE, 8),
            Check::QpAccess,
            INVALID,
        );
    }
}

#[test]
fn a_flush_of_reserved_placement_or_selectivity_or_with_data_is_an_invalid_request() {
    let mut with_data = flush_packet(100, GLOBAL, Feth::RANGE, 8);
    with_data.payload = vec![0; 8];
    for packet in [
        flush_packet(100, 0, Feth::RANGE, 8),
        flush_packet(100, 4 | GLOBAL, Feth::RANGE, 8),
        flush_packet(100, GLOBAL, 2, 8),
        flush_packet(100, GLOBAL, 3, 8),
        with_data,
    ] {
        refused(|_| (), &packet, Check::Length, INVALID);
    }
}

#[test]
fn a_flush_of_the_whole_region_looks_at_no_range() {
    let (_, mut b) = nodes();
    assert_eq!(
        b.receive(&flush_packet(100, GLOBAL, Feth::REGION, u32::MAX)),
        Received::Accepted
    );
    let whole = Effect::Flush {
        addr: 0,
        len: 0,
        whole: true,
    };
    assert_eq!(b.host.effects, [whole]);
}

#[test]
fn a_duplicate_is_answered_and_not_executed_again() {
    let (_, mut b) = nodes();
    let write = atomic_write(100, BASE, 8, &[1; 8]);
    let flush = flush_packet(101, GLOBAL, Feth::RANGE, 8);
    b.receive_all(&[write.clone(), flush.clone()]);
    b.receive(&rdma(Operation::WriteOnly, 102, 8, &[2; 8]));
    b.transmit_all();
    let effects = b.host.effects.len();
    assert_eq!(b.receive_all(&[write, flush]), [Received::Duplicate; 2]);
    assert_eq!(
        trace(&b.transmit_all()),
        [("READ_RESP_ONLY", 100), ("READ_RESP_ONLY", 101)]
    );
    assert_eq!(b.host.effects.len(), effects);
    assert_eq!(
        b.host.region(KEY).expect("registered").bytes[..8],
        [2; 8],
        "the later WRITE stands"
    );
}

#[test]
fn a_duplicate_of_what_was_something_else_is_dropped() {
    let (_, mut b) = nodes();
    b.receive(&fetch_add(100, BASE));
    b.receive(&atomic_write(101, BASE, 8, &[1; 8]));
    b.transmit_all();
    const REFUSED: Received = Received::Dropped(DropReason::ReplayRefused);
    assert_eq!(
        b.receive(&atomic_write(100, BASE, 8, &[1; 8])),
        REFUSED,
        "it was an atomic"
    );
    assert_eq!(
        b.receive(&fetch_add(101, BASE)),
        REFUSED,
        "it was an ATOMIC WRITE"
    );
    assert!(b.transmit_all().is_empty());
}

#[test]
fn an_ack_for_a_later_psn_completes_neither() {
    let (mut a, _) = nodes();
    a.post(flush(0, GLOBAL, Feth::RANGE, 8)).expect("RTS takes it");
    a.post_bytes(1, b"after");
    a.transmit_all();
    assert_eq!(a.receive(&ack(101, Syndrome::ACK)), Received::OutOfOrder);
    assert_eq!(sends(&a), []);
    assert_eq!(trace(&a.transmit_all()), [("FLUSH", 100), ("SEND_ONLY", 101)]);
    a.receive(&response(Operation::ReadResponseOnly, 100, b""));
    a.receive(&ack(101, Syndrome::ACK));
    assert_eq!(sends(&a), [(0, WcStatus::Success), (1, WcStatus::Success)]);
}

#[test]
fn a_response_with_data_or_of_another_kind_is_a_bad_response() {
    for answer in [
        response(Operation::ReadResponseOnly, 100, &[0; 8]),
        response(Operation::ReadResponseFirst, 100, &[0; 256]),
        atomic_ack(100, Syndrome::ACK, 1),
    ] {
        let (mut a, _) = nodes();
        a.post_op(0, WrOpcode::AtomicWrite, &[1; 8], KEY, BASE);
        a.transmit_all();
        assert_eq!(a.receive(&answer), Received::Refused(Check::BadResponse));
        assert_eq!(sends(&a), [(0, WcStatus::BadRespErr)]);
    }
}

#[test]
fn what_no_responder_takes_is_refused_when_posted() {
    let (mut a, _) = nodes();
    for (placement, selectivity) in [(0, 0), (4, 0), (GLOBAL, 2)] {
        let wr = flush(0, placement, selectivity, 8);
        let refused = PostError::BadFlush {
            feth: wr.swap,
            length: 0,
        };
        assert_eq!(a.post(wr), Err(refused));
    }
    let long = flush(0, GLOBAL, Feth::RANGE, 1 << 32);
    assert!(matches!(a.post(long), Err(PostError::BadFlush { .. })));
    let short = SendWr {
        opcode: WrOpcode::AtomicWrite,
        length: 4,
        ..SendWr::default()
    };
    assert_eq!(a.post(short), Err(PostError::AtomicLength { length: 4 }));
}

#[test]
fn one_whose_data_cannot_be_read_leaves_the_count_as_it_was() {
    let (mut a, mut b) = connect(Mtu::M256, |attr| attr.max_rd_atomic = 1);
    register(&mut b, 1024);
    a.post_op(0, WrOpcode::Read, &[0; 8], KEY, BASE);
    a.post_op(1, WrOpcode::AtomicWrite, &[1; 8], KEY, BASE);
    a.host.bad_send.push(1);
    let read = a.transmit_all();
    assert_eq!(trace(&read), [("READ_REQUEST", 100)]);
    b.receive_all(&read);
    a.receive_all(&b.transmit_all());
    assert!(a.transmit_all().is_empty());
    a.flush_all();
    assert_eq!(sends(&a), [(0, WcStatus::Success), (1, WcStatus::LocProtErr)]);
}

#[test]
fn a_lost_answer_is_asked_for_again_when_the_timer_ends() {
    let (mut a, mut b) = nodes();
    a.post(flush(0, GLOBAL, Feth::REGION, 0)).expect("RTS takes it");
    b.receive_all(&a.transmit_all());
    b.transmit_all();
    a.wait(TIMEOUT);
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [(0, WcStatus::Success)]);
    assert_eq!(b.host.effects.len(), 1);
}
