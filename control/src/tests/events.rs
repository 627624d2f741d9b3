//! Which events are raised, with which cause, and what is reported of them.
use rnic_abi::*;
use rnic_transport::Check;
use rustix::io::Errno;

use crate::testing::*;

/// Posts receives without buffers and makes the QP flush them.
fn flush_receives(client: &mut Client, qp: &CreateQpReply, count: u32) {
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
    set_state(client, qp.handle, 6).unwrap();
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

    let mut events: Vec<(u32, u32)> = (0..5).map(|head| client.event(head)).collect();
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
