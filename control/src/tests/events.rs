//! Which events are raised, with which cause, and what is reported of them.
use rnic_abi::*;
use rnic_transport::Check;
use rustix::io::Errno;

use crate::testing::*;

/// Posts receives without buffers and makes the QP flush them.
fn flush_receives(client: &mut Client, qp: &CreateQpReply, count: u32) {
    post_receives(client, qp, count);
    set_state(client, qp.handle, 6).unwrap();
}

/// Posts receives without buffers as the first WQEs of a receive queue.
fn post_receives(client: &Client, qp: &CreateQpReply, count: u32) {
    let region = &client.context().region;
    for index in 0..count {
        let mut wqe: Wqe = zerocopy::FromZeros::new_zeroed();
        (wqe.wr_id, wqe.units) = (index.into(), 1);
        region.write(
            qp.rq_offset as usize + RING_ENTRIES + index as usize * size_of::<Wqe>(),
            &wqe,
        );
    }
    let tail = region.u32(qp.rq_offset as usize + RingIndices::TAIL).unwrap();
    tail.store(count, std::sync::atomic::Ordering::Release);
}

fn set_state(client: &mut Client, handle: u32, qp_state: u8) -> Result<(), Refused> {
    let attrs = QpAttrs {
        qp_state,
        ..QpAttrs::default()
    };
    client.modify(handle, qp_mask::STATE, attrs)
}

fn cause_of(client: &mut Client, handle: u32) -> (u8, u8) {
    let reply: QueryQpReply = client
        .call(Op::QueryQp, &HandleArg { handle, reserved: 0 })
        .unwrap();
    (reply.attrs.qp_state, reply.cause.check)
}

#[test]
fn a_lost_completion_queue_takes_every_qp_that_completes_into_it_along() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let pd = client.pd();
    let (small, other) = (client.try_cq(2, 0).unwrap().handle, client.cq());
    let connected = |client: &mut Client, cq| {
        let qp = client.qp(pd, cq);
        client.make_init(qp.handle);
        client.make_rtr(qp.handle, "10.0.0.2", qp.qpn).unwrap();
        client.make_rts(qp.handle);
        qp
    };
    let qps: Vec<_> = (0..4).map(|_| connected(&mut client, small)).collect();
    let bystander = connected(&mut client, other);
    flush_receives(&mut client, &qps[0], 3);

    let events: Vec<_> = (0..5).map(|head| client.event_with_cause(head)).collect();
    let overflow = |(_, _, cause): &(u32, u32, Cause)| cause.check == Check::CqOverflow as u8;
    assert!(events.iter().all(overflow), "each says why: {events:?}");
    let mut events: Vec<_> = events.into_iter().map(|event| (event.0, event.1)).collect();
    assert!(events.contains(&(small, event_kind::CQ_ERR)), "{events:?}");
    events.retain(|event| event.0 != small);
    events.sort_unstable();
    let mut expected: Vec<_> = qps.iter().map(|qp| (qp.handle, event_kind::QP_FATAL)).collect();
    expected.sort_unstable();
    assert_eq!(events, expected);
    for qp in &qps[1..] {
        assert_eq!(cause_of(&mut client, qp.handle), (6, Check::CqOverflow as u8));
    }
    assert_eq!(cause_of(&mut client, bystander.handle), (3, 0));
    let refused = client.try_qp(pd, small).unwrap_err();
    assert_eq!(refused.errno, Errno::INVAL);
    assert!(refused.text.contains("overflowed"), "{}", refused.text);
    for qp in &qps {
        assert_eq!(client.destroy_counting(Op::DestroyQp, qp.handle), 1);
    }
    assert_eq!(client.destroy_counting(Op::DestroyCq, small), 1);
}

/// What a request does to a responder that has heard nothing before, and has told nothing.
struct Request {
    opcode: u8,
    length: u32,
    rkey: u32,
    kinds: u32,
    cause: Cause,
}

#[test]
fn a_responder_tells_what_it_refused_and_why_also_beside_what_is_no_error() {
    // Opcodes and syndromes as packets say them.
    const WRITE_ONLY: u8 = 0x0A;
    const SEND_ONLY: u8 = 0x04;
    const NAK_INVALID: u8 = 0x61;
    const NAK_ACCESS: u8 = 0x62;
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let fd = sealed_memfd(4096);
    let mr = client.try_mr(pd, &fd, 4096, 7).unwrap();
    let established = event_kind::COMM_EST;
    let cause = |check, opcode, syndrome| Cause {
        check: check as u8,
        opcode,
        syndrome,
        ..Cause::default()
    };
    let requests = [
        Request {
            opcode: 0,
            length: 64,
            rkey: mr.rkey,
            kinds: established,
            cause: Cause::default(),
        },
        Request {
            opcode: 0,
            length: 64,
            rkey: mr.rkey ^ 1,
            kinds: established | event_kind::QP_ACCESS_ERR,
            cause: cause(Check::Key, WRITE_ONLY, NAK_ACCESS),
        },
        // Longer than the receive it meets.
        Request {
            opcode: 2,
            length: 64,
            rkey: 0,
            kinds: established | event_kind::QP_REQ_ERR,
            cause: cause(Check::MessageTooLong, SEND_ONLY, NAK_INVALID),
        },
    ];
    let mut head = 0;
    for request in requests {
        let [a, b] = [client.qp(pd, cq), client.qp(pd, cq)];
        for (qp, peer) in [(a, b), (b, a)] {
            client.make_init(qp.handle);
            client.make_rtr(qp.handle, "10.0.0.1", peer.qpn).unwrap();
        }
        client.make_rts(a.handle);
        post_receives(&client, &b, 1);
        let local = Sge {
            addr: 0x10_0000,
            length: request.length,
            lkey: mr.lkey,
        };
        let wqe = Wqe {
            opcode: request.opcode,
            num_sge: 1,
            units: 1,
            remote_addr: 0x10_0000,
            rkey: request.rkey,
            sges: [local, Sge::default()],
            ..Wqe::default()
        };
        let at = a.sq_offset as usize + RING_ENTRIES;
        assert!(client.context().region.write(at, &wqe));
        super::hostile::ring(&client, &a, 1);
        let mut kinds = 0;
        // In one entry or two: the client may have been faster.
        while kinds != request.kinds {
            let (handle, more, cause) = client.event_with_cause(head);
            head += 1;
            assert_eq!((handle, kinds & more), (b.handle, 0));
            kinds |= more;
            if more & event_kind::ERRORS != 0 {
                assert_eq!(cause, request.cause);
            }
        }
    }
}

#[test]
fn a_drained_send_queue_is_told_when_asked_for_and_only_then() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let qp = client.qp(pd, cq);
    client.make_init(qp.handle);
    client.make_rtr(qp.handle, "10.0.0.2", qp.qpn).unwrap();
    client.make_rts(qp.handle);
    set_state(&mut client, qp.handle, 4).unwrap();
    set_state(&mut client, qp.handle, 3).unwrap();
    let notify = QpAttrs {
        qp_state: 4,
        en_sqd_async_notify: 1,
        ..QpAttrs::default()
    };
    client
        .modify(qp.handle, qp_mask::STATE | qp_mask::EN_SQD_ASYNC_NOTIFY, notify)
        .unwrap();
    assert_eq!(client.event(0), (qp.handle, event_kind::SQ_DRAINED));
    assert_eq!(
        client.destroy_counting(Op::DestroyQp, qp.handle),
        1,
        "one of two drains"
    );
}
