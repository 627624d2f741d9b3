//! RDMA READ: loss, resumption, duplicates, limits, fence.

mod common;

use common::*;
use rnic_sim::{Node, connect, connect_at};
use rnic_transport::{
    Access, Check, DropReason, EventKind, KeyError, PostError, QpState, Received, SendFlags, SendWr,
    WcStatus, WrOpcode,
};
use rnic_wire::{Mtu, Operation, Reth, Syndrome};

const TIMEOUT: u64 = 4_096 << 10;

/// Two nodes, the second with 4 KiB of memory; the first has posted a READ of `len` bytes as request 0.
fn reading(len: usize) -> (Node, Node) {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    register(&mut b, 4_096);
    a.post_op(0, WrOpcode::Read, &vec![0; len], KEY, BASE);
    (a, b)
}

fn counting(range: std::ops::Range<usize>) -> Vec<u8> {
    range.map(|at| at as u8).collect()
}

#[test]
fn a_read_fetches_bytes_of_every_length_around_the_mtu() {
    for mtu in Mtu::ALL {
        let m = mtu.bytes();
        for len in [0, 1, m - 1, m, m + 1, 2 * m, 3 * m + 7] {
            let (mut a, mut b) = connect(mtu, |_| ());
            register(&mut b, 4 * m);
            a.post_op(0, WrOpcode::Read, &vec![0; len], KEY, BASE);
            pump(&mut a, &mut b);
            assert_eq!(sends(&a), [(0, WcStatus::Success)]);
            assert_eq!(a.host.completions[0].byte_len as usize, len);
            assert_eq!(a.host.send_bufs[0], counting(0..len));
        }
    }
}

#[test]
fn a_lost_response_resumes_in_the_middle_and_the_answer_starts_at_first_again() {
    let (mut a, mut b) = reading(1_280);
    b.receive_all(&a.transmit_all());
    let responses = b.transmit_all();
    a.receive_all(&responses[..2]);
    assert_eq!(a.receive(&responses[3]), Received::OutOfOrder);
    assert_eq!(a.receive(&responses[4]), Received::OutOfOrder);
    let retry = only(&mut a);
    assert_eq!((retry.name(), retry.psn()), ("READ_REQUEST", 102));
    assert_eq!(
        retry.headers.reth,
        Some(Reth {
            va: BASE + 512,
            rkey: KEY,
            dma_len: 768
        })
    );
    assert_eq!(b.receive(&retry), Received::Duplicate);
    let again = b.transmit_all();
    assert_eq!(
        trace(&again),
        [
            ("READ_RESP_FIRST", 102),
            ("READ_RESP_MIDDLE", 103),
            ("READ_RESP_LAST", 104)
        ]
    );
    a.receive_all(&again);
    assert_eq!(sends(&a), [(0, WcStatus::Success)]);
    assert_eq!(a.host.send_bufs[0], counting(0..1_280));
    assert_eq!(a.host.scattered[0], 1_280, "every byte was placed once");
}

#[test]
fn a_read_whose_last_response_is_lost_resumes_with_only() {
    let (mut a, mut b) = reading(600);
    b.receive_all(&a.transmit_all());
    let mut responses = b.transmit_all();
    responses.pop();
    a.receive_all(&responses);
    a.wait(TIMEOUT);
    b.receive_all(&a.transmit_all());
    let again = b.transmit_all();
    assert_eq!(trace(&again), [("READ_RESP_ONLY", 102)]);
    a.receive_all(&again);
    assert_eq!(a.host.send_bufs[0], counting(0..600));
}

#[test]
fn an_ack_for_a_later_psn_is_an_implied_nak_for_a_pending_read() {
    let (mut a, _) = reading(600);
    a.post_bytes(1, b"after");
    a.transmit_all();
    assert_eq!(a.receive(&ack(103, Syndrome::ACK)), Received::OutOfOrder);
    assert_eq!(sends(&a), [], "the READ is not complete, hence nothing after it");
    assert_eq!(
        trace(&a.transmit_all()),
        [("READ_REQUEST", 100), ("SEND_ONLY", 103)]
    );
    assert_eq!(a.receive(&ack(103, Syndrome::ACK)), Received::OutOfOrder);
    assert_eq!(a.transmit_all(), [], "only the first retry is immediate");
}

#[test]
fn a_response_to_what_is_no_read_completes_nothing() {
    let (mut a, _) = connect(Mtu::M256, |_| ());
    for wr_id in 0..3 {
        a.post_bytes(wr_id, b"send");
    }
    a.transmit_all();
    for (operation, psn) in [
        (Operation::ReadResponseOnly, 101),
        (Operation::ReadResponseMiddle, 102),
    ] {
        let outcome = a.receive(&response(operation, psn, b"data"));
        assert_eq!(outcome, Received::Dropped(DropReason::UnexpectedResponse));
    }
    let outcome = a.receive(&atomic_ack(102, Syndrome::ACK, 3));
    assert_eq!(outcome, Received::Dropped(DropReason::UnexpectedResponse));
    assert_eq!(sends(&a), [], "not even what lies before it");
    a.receive(&ack(102, Syndrome::ACK));
    assert_eq!(sends(&a).len(), 3);
}

#[test]
fn a_response_acknowledges_the_requests_before_its_read() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    register(&mut b, 64);
    a.post_op(0, WrOpcode::Write, b"new!", KEY, BASE);
    a.post_op(1, WrOpcode::Read, &[0; 6], KEY, BASE);
    b.receive_all(&a.transmit_all());
    assert_eq!(trace(&b.transmit_all()), [("READ_RESP_ONLY", 101)]);
    a.receive(&response(Operation::ReadResponseOnly, 101, b"new!\x04\x05"));
    assert_eq!(sends(&a), [(0, WcStatus::Success), (1, WcStatus::Success)]);
}

#[test]
fn an_ack_for_a_request_after_a_read_waits_for_its_responses() {
    let (mut a, mut b) = reading(600);
    b.host.post_recv(1, 16);
    a.post_bytes(1, b"after");
    b.receive_all(&a.transmit_all());
    let expected = [
        ("READ_RESP_FIRST", 100),
        ("READ_RESP_MIDDLE", 101),
        ("READ_RESP_LAST", 102),
        ("ACK", 103),
    ];
    assert_eq!(trace(&b.transmit_all()), expected);
}

#[test]
fn a_duplicate_write_is_acknowledged_without_the_reads_and_atomics_behind_it() {
    let (_, mut b) = connect(Mtu::M256, |_| ());
    register(&mut b, 4_096);
    let write = rdma(Operation::WriteOnly, 100, 4, b"abcd");
    b.receive(&write);
    assert_eq!(answer(&mut b), (Syndrome::ACK, 100));
    for behind in [rdma(Operation::ReadRequest, 101, 600, b""), fetch_add(104, BASE)] {
        assert_eq!(b.receive(&behind), Received::Accepted);
        b.transmit_all();
        // What it answered may be lost, and only another such answer may stand for it.
        assert_eq!(b.receive(&write), Received::Duplicate);
        assert_eq!(answer(&mut b), (Syndrome::ACK, 100));
    }
}

#[test]
fn a_duplicate_read_is_executed_again_and_sees_the_memory_as_it_is_now() {
    let (mut a, mut b) = reading(300);
    let request = only(&mut a);
    b.receive(&request);
    let first = b.transmit_all();
    b.host.region_mut(KEY).expect("registered").bytes[0] = 0xAA;
    assert_eq!(b.receive(&request), Received::Duplicate);
    let second = b.transmit_all();
    assert_eq!(trace(&first), trace(&second));
    assert_eq!((first[0].payload[0], second[0].payload[0]), (0, 0xAA));
}

#[test]
fn a_repeated_read_still_being_answered_starts_where_it_was_asked_to() {
    let (mut a, mut b) = reading(1_024);
    b.receive(&only(&mut a));
    let early: Vec<_> = (0..2).filter_map(|_| b.transmit()).collect();
    assert_eq!(
        trace(&early),
        [("READ_RESP_FIRST", 100), ("READ_RESP_MIDDLE", 101)]
    );
    let mut partial = rdma(Operation::ReadRequest, 101, 768, b"");
    partial.headers.reth = Some(Reth {
        va: BASE + 256,
        rkey: KEY,
        dma_len: 768,
    });
    assert_eq!(b.receive(&partial), Received::Duplicate);
    let rest = b.transmit_all();
    assert_eq!(
        trace(&rest),
        [
            ("READ_RESP_FIRST", 101),
            ("READ_RESP_MIDDLE", 102),
            ("READ_RESP_LAST", 103)
        ]
    );
    a.receive_all(&early);
    a.receive_all(&rest);
    assert_eq!(a.host.send_bufs[0], counting(0..1_024));
}

#[test]
fn a_repeated_read_counts_no_message_that_is_still_to_be_answered() {
    let (mut a, mut b) = reading(4);
    for id in 1..3 {
        a.post_op(id, WrOpcode::Read, &[0; 300], KEY, BASE);
    }
    let requests = a.transmit_all();
    let msn = |node: &mut Node| node.transmit().expect("a response").aeth().expect("an AETH").2;
    b.receive(&requests[0]);
    assert_eq!(msn(&mut b), 1);
    b.receive_all(&requests[1..]);
    b.receive(&requests[0]);
    assert_eq!(msn(&mut b), 1, "the second READ is not answered yet");
    assert_eq!(msn(&mut b), 2);
    b.receive(&requests[0]);
    assert_eq!(
        msn(&mut b),
        2,
        "the second READ's first response has told its MSN"
    );
    let rest: Vec<u32> = b
        .transmit_all()
        .iter()
        .map(|p| p.aeth().expect("an AETH").2)
        .collect();
    assert_eq!(rest, [2, 2, 3, 3]);
}

#[test]
fn a_duplicate_read_beyond_what_was_asked_is_refused() {
    let (mut a, mut b) = reading(300);
    b.receive(&only(&mut a));
    b.transmit_all();
    for (psn, len) in [(100, 600), (101, 300), (100, u32::MAX)] {
        let outcome = b.receive(&rdma(Operation::ReadRequest, psn, len, b""));
        assert_eq!(outcome, Received::Dropped(DropReason::ReplayRefused));
    }
    assert_eq!(b.transmit_all(), []);
    assert_eq!(b.qp.state(), QpState::Rts);
}

#[test]
fn a_duplicate_read_whose_key_is_gone_is_refused_but_does_not_end_the_qp() {
    let (mut a, mut b) = reading(300);
    let request = only(&mut a);
    b.receive(&request);
    b.transmit_all();
    b.host.region_mut(KEY).expect("registered").valid = false;
    assert_eq!(b.receive(&request), Received::Refused(Check::Key));
    assert_eq!(answer(&mut b), (ACCESS, 100));
    assert_eq!(b.qp.state(), QpState::Rts);
    a.receive(&ack(100, ACCESS));
    assert_eq!(sends(&a), [(0, WcStatus::RemAccessErr)]);
}

#[test]
fn a_zero_length_read_needs_no_key_and_none_on_replay() {
    let (mut a, mut b) = connect(Mtu::M256, |_| ());
    a.post_op(0, WrOpcode::Read, b"", 0xBAD, u64::MAX);
    let request = only(&mut a);
    for outcome in [Received::Accepted, Received::Duplicate] {
        assert_eq!(b.receive(&request), outcome);
        assert_eq!(trace(&b.transmit_all()), [("READ_RESP_ONLY", 100)]);
    }
    a.receive(&response(Operation::ReadResponseOnly, 100, b""));
    assert_eq!(sends(&a), [(0, WcStatus::Success)]);
}

#[test]
fn reads_outstanding_are_bounded_by_max_rd_atomic() {
    let (mut a, mut b) = connect(Mtu::M256, |attr| attr.max_rd_atomic = 2);
    register(&mut b, 64);
    for id in 0..5 {
        a.post_op(id, WrOpcode::Read, &[0; 4], KEY, BASE);
    }
    assert_eq!(
        trace(&a.transmit_all()),
        [("READ_REQUEST", 100), ("READ_REQUEST", 101)]
    );
    a.receive(&response(Operation::ReadResponseOnly, 100, &[0; 4]));
    assert_eq!(trace(&a.transmit_all()), [("READ_REQUEST", 102)]);
    a.wait(TIMEOUT);
    assert_eq!(
        trace(&a.transmit_all()),
        [("READ_REQUEST", 101), ("READ_REQUEST", 102)]
    );
    b.with(|qp, _| assert_eq!(qp.state(), QpState::Rts));
}

#[test]
fn more_reads_than_max_dest_rd_atomic_are_an_invalid_request() {
    let (_, mut b) = connect(Mtu::M256, |attr| attr.max_dest_rd_atomic = 2);
    register(&mut b, 64);
    for psn in 100..102 {
        assert_eq!(
            b.receive(&rdma(Operation::ReadRequest, psn, 4, b"")),
            Received::Accepted
        );
    }
    let refused = b.receive(&rdma(Operation::ReadRequest, 102, 4, b""));
    assert_eq!(refused, Received::Refused(Check::RdAtomicResources));
    let sent = b.transmit_all();
    assert_eq!(
        trace(&sent),
        [("READ_RESP_ONLY", 100), ("READ_RESP_ONLY", 101), ("ACK", 102)]
    );
    assert_eq!(sent[2].aeth().map(|(_, syndrome, _)| syndrome), Some(INVALID));
    assert_eq!(b.event_kinds(), [EventKind::QpReqErr]);
}

#[test]
fn answered_reads_free_their_resources_and_repeated_ones_take_none() {
    let (_, mut b) = connect(Mtu::M256, |attr| attr.max_dest_rd_atomic = 1);
    register(&mut b, 64);
    for psn in 100..200 {
        let request = rdma(Operation::ReadRequest, psn, 4, b"");
        assert_eq!(b.receive(&request), Received::Accepted);
        b.transmit_all();
        assert_eq!(b.receive(&request), Received::Duplicate);
    }
    assert!(
        b.transmit_all().len() <= 16,
        "repeated READs are answered from a bounded queue"
    );
}

#[test]
fn a_fence_waits_for_earlier_reads() {
    let (mut a, mut b) = reading(600);
    b.host.post_recv(1, 16);
    let data = a.host.add_send_buf(b"fenced".to_vec());
    let flags = SendFlags::SIGNALED.union(SendFlags::FENCE);
    a.post(SendWr {
        wr_id: 1,
        flags,
        length: 6,
        data,
        ..SendWr::default()
    })
    .expect("room");
    let request = only(&mut a);
    b.receive(&request);
    let responses = b.transmit_all();
    a.receive_all(&responses[..2]);
    assert_eq!(a.transmit_all(), []);
    a.receive_all(&responses[2..]);
    assert_eq!(trace(&a.transmit_all()), [("SEND_ONLY", 103)]);
}

#[test]
fn responses_that_make_no_sense_fail_the_read() {
    use Operation::{ReadResponseFirst, ReadResponseLast, ReadResponseMiddle, ReadResponseOnly};
    let wrong = [
        (ReadResponseMiddle, 256),
        (ReadResponseLast, 256),
        (ReadResponseOnly, 256),
        (ReadResponseFirst, 255),
        (ReadResponseFirst, 0),
        (ReadResponseFirst, 257),
    ];
    for (operation, len) in wrong {
        let (mut a, _) = reading(600);
        a.transmit_all();
        let outcome = a.receive(&response(operation, 100, &vec![0; len]));
        assert_eq!(
            outcome,
            Received::Refused(Check::BadResponse),
            "{operation:?} of {len} bytes"
        );
        assert_eq!(sends(&a), [(0, WcStatus::BadRespErr)]);
        assert_eq!(a.qp.state(), QpState::Err);
    }
    for (operation, len) in [
        (ReadResponseMiddle, 88),
        (ReadResponseLast, 87),
        (ReadResponseLast, 256),
        (ReadResponseOnly, 88),
    ] {
        let (mut a, _) = reading(600);
        a.transmit_all();
        a.receive(&response(ReadResponseFirst, 100, &[0; 256]));
        a.receive(&response(ReadResponseMiddle, 101, &[0; 256]));
        let outcome = a.receive(&response(operation, 102, &vec![0; len]));
        assert_eq!(
            outcome,
            Received::Refused(Check::BadResponse),
            "{operation:?} of {len} bytes"
        );
    }
}

#[test]
fn a_read_into_memory_that_is_gone_is_a_local_protection_error() {
    let (mut a, mut b) = reading(10);
    a.host.bad_send.push(0);
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [(0, WcStatus::LocProtErr)]);
}

#[test]
fn a_key_that_goes_while_a_read_is_answered_is_nakked() {
    let (mut a, mut b) = reading(600);
    b.receive(&only(&mut a));
    let first = b.transmit().expect("the first response");
    b.host.region_mut(KEY).expect("registered").valid = false;
    let (syndrome, psn) = answer(&mut b);
    assert_eq!((syndrome, psn), (ACCESS, 101));
    assert_eq!(b.qp.state(), QpState::Err);
    assert_eq!(b.event_kinds(), [EventKind::QpAccessErr]);
    a.receive(&first);
    a.receive(&ack(101, ACCESS));
    assert_eq!(sends(&a), [(0, WcStatus::RemAccessErr)]);
}

#[test]
fn a_key_that_goes_while_a_read_is_answered_again_is_nakked_but_ends_neither_the_qp_nor_other_answers() {
    const OTHER: u32 = 0x99;
    let (mut a, mut b) = reading(600);
    let bytes = counting(0..300);
    b.host.register(OTHER, 0, bytes, Access::REMOTE_READ);
    let request = only(&mut a);
    b.receive(&request);
    b.transmit_all();
    a.post_op(1, WrOpcode::Read, &[0; 300], OTHER, 0);
    let other = only(&mut a);
    assert_eq!(b.receive(&request), Received::Duplicate);
    assert_eq!(b.receive(&other), Received::Accepted);
    let first = b.transmit().expect("the first response");
    b.with(|qp, ctx| {
        let emit = qp.poll_transmit(ctx).expect("the second response");
        qp.gather_failed(ctx, &emit, KeyError::Key);
    });
    let rest = b.transmit_all();
    assert_eq!(
        trace(&rest),
        [("READ_RESP_FIRST", 103), ("READ_RESP_LAST", 104), ("ACK", 101)]
    );
    assert_eq!(b.qp.state(), QpState::Rts);
    assert_eq!(b.event_kinds(), []);
    a.receive(&first);
    a.receive(&rest[2]);
    assert_eq!(sends(&a)[0], (0, WcStatus::RemAccessErr));
}

#[test]
fn a_key_that_goes_while_reads_are_answered_is_nakked_where_the_answers_end_though_a_later_one_was_refused() {
    let (mut a, mut b) = reading(600);
    a.post_op(1, WrOpcode::Read, &[0; 600], KEY, BASE);
    let requests = a.transmit_all();
    b.receive(&requests[0]);
    let first = b.transmit().expect("the first response");
    b.host.region_mut(KEY).expect("registered").valid = false;
    // Refused as it comes, before the responses due have found out.
    b.receive(&requests[1]);
    let (syndrome, psn) = answer(&mut b);
    assert_eq!((syndrome, psn), (ACCESS, 101));
    assert_eq!(b.event_kinds(), [EventKind::QpAccessErr]);
    a.receive(&first);
    a.receive(&ack(101, ACCESS));
    assert_eq!(sends(&a)[0], (0, WcStatus::RemAccessErr));
    assert_eq!(a.qp.state(), QpState::Err);
}

#[test]
fn a_read_crosses_the_psn_wrap_with_a_loss() {
    let (mut a, mut b) = connect_at(Mtu::M256, [0xFF_FFFD, 0], |_| ());
    register(&mut b, 4_096);
    a.post_op(0, WrOpcode::Read, &[0; 1_500], KEY, BASE);
    b.receive_all(&a.transmit_all());
    let mut responses = b.transmit_all();
    responses.remove(3);
    a.receive_all(&responses);
    pump(&mut a, &mut b);
    assert_eq!(sends(&a), [(0, WcStatus::Success)]);
    assert_eq!(a.host.send_bufs[0], counting(0..1_500));
}

#[test]
fn a_read_without_resources_or_of_too_many_packets_is_not_accepted() {
    let (mut a, _) = connect(Mtu::M256, |attr| attr.max_rd_atomic = 0);
    let read = SendWr {
        opcode: WrOpcode::Read,
        length: 4,
        ..SendWr::default()
    };
    assert_eq!(a.post(read), Err(PostError::NoRdAtomicResources));
    let (mut a, _) = connect(Mtu::M256, |_| ());
    let length = 1 << 31;
    assert_eq!(
        a.post(SendWr { length, ..read }),
        Err(PostError::TooLong { length })
    );
    assert_eq!(
        a.post(SendWr {
            length: length - 256,
            ..read
        }),
        Ok(())
    );
    // Nothing else fits beside it in half the PSN space.
    assert_eq!(a.post(read), Ok(()));
    assert_eq!(a.transmit_all().len(), 1);
}

#[test]
fn a_read_interrupted_more_than_once_tells_no_msn_from_before() {
    let (_, mut b) = connect(Mtu::M256, |_| ());
    register(&mut b, 1_024);
    let again = rdma(Operation::ReadRequest, 100, 256, b"");
    b.receive(&again);
    b.receive(&rdma(Operation::ReadRequest, 101, 768, b""));
    let mut msns: Vec<_> = [b.transmit(), b.transmit()].into_iter().flatten().collect();
    // The first is asked for again while the second is being answered, and once more.
    for _ in 0..2 {
        b.receive(&again);
        msns.extend(b.transmit());
    }
    msns.extend(b.transmit_all());
    let msns: Vec<_> = msns
        .iter()
        .filter_map(|packet| packet.aeth())
        .map(|(_, _, msn)| msn)
        .collect();
    assert_eq!(msns, [1, 2, 2, 2, 2, 2]);
}
