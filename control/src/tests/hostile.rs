use std::sync::atomic::Ordering;

use rnic_abi::*;

use crate::testing::*;

/// Claims more WQEs than the send queue has, and rings.
pub fn forge_tail(client: &Client, qp: &CreateQpReply) {
    let Context {
        layout,
        region,
        wakes,
        ..
    } = client.context();
    region
        .u32(qp.sq_offset as usize)
        .unwrap()
        .store(1 << 20, Ordering::Release);
    let base = layout.doorbells + layout.doorbell.size() * qp.doorbell_block as usize;
    let slot = Handle(qp.handle).slot();
    let level0 = region
        .u64(base + layout.doorbell.level0() + 8 * (slot / 64) as usize)
        .unwrap();
    let level1 = region
        .u64(base + DoorbellLayout::LEVEL1 + 8 * (slot / 4096) as usize)
        .unwrap();
    let sleeping = region.u32(base + DoorbellLayout::SLEEPING).unwrap();
    protocol::ring_doorbell(&level0, &level1, slot, &sleeping);
    crate::socket::wake(&wakes[qp.doorbell_block as usize]);
}

fn connected(daemon: &TestDaemon) -> (Client, CreateQpReply) {
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let qp = client.qp(pd, cq);
    client.to_init(qp.handle);
    client.to_rtr(qp.handle, "10.0.0.2", qp.qpn).unwrap();
    client.to_rts(qp.handle);
    (client, qp)
}

#[test]
fn a_forged_send_queue_is_a_fatal_event_of_its_qp_with_a_cause() {
    let daemon = TestDaemon::start(1);
    let (mut client, qp) = connected(&daemon);
    forge_tail(&client, &qp);
    assert_eq!(client.event(0), (qp.handle, event_kind::QP_FATAL));
    let reply: QueryQpReply = client
        .call(
            Op::QueryQp,
            &HandleArg {
                handle: qp.handle,
                reserved: 0,
            },
        )
        .unwrap();
    assert_eq!(reply.attrs.qp_state, 6);
    assert_ne!(reply.cause.check, 0);
    let listed = daemon.qps();
    assert!(listed[0].last_cause.is_some());
    // It can be used again, as the specification has it.
    client
        .modify(qp.handle, qp_mask::STATE, QpAttrs::default())
        .unwrap();
    client.to_init(qp.handle);
}

#[test]
fn a_forged_event_ring_disconnects_its_client_alone() {
    let daemon = TestDaemon::start(1);
    let mut other = daemon.client();
    let (client, qp) = connected(&daemon);
    let Context { layout, region, .. } = client.context();
    region
        .u32(layout.events + RingIndices::HEAD)
        .unwrap()
        .store(12_345, Ordering::Release);
    forge_tail(&client, &qp);
    wait_for(|| daemon.status().clients == 1);
    assert!(client.receive().is_none());
    other.pd();
    drop((client, other));
    daemon.wait_for_baseline();
}

#[test]
fn a_region_full_of_ones_hurts_only_its_owner() {
    let daemon = TestDaemon::start(2);
    let (client, _) = connected(&daemon);
    let Context {
        layout,
        region,
        wakes,
        ..
    } = client.context();
    let ones = vec![0xFF; 1 << 16];
    let mut at = layout.events;
    while at < layout.queues + (1 << 16) {
        region.copy_in(at, &ones[..ones.len().min(layout.size - at)]);
        at += ones.len();
    }
    for wake in wakes {
        crate::socket::wake(wake);
    }
    let (mut other, qp) = connected(&daemon);
    other.destroy_counting(Op::DestroyQp, qp.handle);
    drop((client, other));
    daemon.wait_for_baseline();
}

#[test]
fn a_client_that_sends_and_never_reads_keeps_nobody_waiting() {
    let daemon = TestDaemon::start(1);
    let mut flood = daemon.client();
    let mut other = daemon.client();
    for _ in 0..2000 {
        let header = flood.header(Op::QueryDevice, 8);
        let packet = [zerocopy::IntoBytes::as_bytes(&header), &[0; 8][..]].concat();
        if crate::socket::send(&flood.socket, &packet, &[]).is_err() {
            break;
        }
    }
    let (pd, cq) = (other.pd(), other.cq());
    other.qp(pd, cq);
    drop((flood, other));
    daemon.wait_for_baseline();
}
