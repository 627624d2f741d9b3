use std::sync::atomic::Ordering;

use rnic_abi::*;

use crate::testing::*;

/// Claims more WQEs than the send queue has, and rings.
pub fn forge_tail(client: &Client, qp: &CreateQpReply) {
    ring(client, qp, 1 << 20);
}

/// Publishes a send queue's tail and rings its doorbell.
pub fn ring(client: &Client, qp: &CreateQpReply, tail: u32) {
    ring_queue(client, qp, qp.sq_offset, tail);
}

/// The same for either queue of a QP, which stands at `offset`.
pub fn ring_queue(client: &Client, qp: &CreateQpReply, offset: u64, tail: u32) {
    let Context {
        layout,
        region,
        wakes,
        ..
    } = client.context();
    region
        .u32(offset as usize)
        .unwrap()
        .store(tail, Ordering::Release);
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
    client.make_init(qp.handle);
    client.make_rtr(qp.handle, "10.0.0.2", qp.qpn).unwrap();
    client.make_rts(qp.handle);
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
    client.make_init(qp.handle);
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

/// Posts an RDMA WRITE of 64 bytes as the first WQE of a send queue.
fn post_write(client: &Client, qp: &CreateQpReply, from: &RegMrReply, to: &RegMrReply) {
    let addr = 0x10_0000;
    let local = Sge {
        addr,
        length: 64,
        lkey: from.lkey,
    };
    let wqe = Wqe {
        wr_id: 7,
        flags: wqe_flags::SIGNALED,
        num_sge: 1,
        units: 1,
        remote_addr: addr,
        rkey: to.rkey,
        sges: [local, Sge::default()],
        ..Wqe::default()
    };
    let at = qp.sq_offset as usize + RING_ENTRIES;
    assert!(client.context().region.write(at, &wqe));
    ring(client, qp, 1);
}

/// A QP connected to itself.
fn looped(client: &mut Client) -> (u32, CreateCqReply, CreateQpReply) {
    let pd = client.pd();
    let cq = client.try_cq(64, 0).unwrap();
    let qp = client.qp(pd, cq.handle);
    client.make_init(qp.handle);
    client.make_rtr(qp.handle, "10.0.0.1", qp.qpn).unwrap();
    client.make_rts(qp.handle);
    (pd, cq, qp)
}

#[test]
fn a_write_moves_bytes_between_regions_and_completes() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let (pd, cq, qp) = looped(&mut client);
    let (source, sink) = (sealed_memfd(4096), sealed_memfd(4096));
    rustix::io::pwrite(&source, &[0x5A; 64], 0).unwrap();
    let (from, to) = (
        client.try_mr(pd, &source, 4096, 7).unwrap(),
        client.try_mr(pd, &sink, 4096, 7).unwrap(),
    );
    post_write(&client, &qp, &from, &to);
    let ring = cq.offset as usize + cq_subring_offset(cq.depth, qp.doorbell_block);
    wait_for(|| client.context().region.read::<u32>(ring) == Some(1));
    let cqe: Cqe = client.context().region.read(ring + RING_ENTRIES).unwrap();
    assert_eq!((cqe.wr_id, cqe.status, cqe.handle), (7, 0, qp.handle));
    let mut bytes = [0; 64];
    rustix::io::pread(&sink, &mut bytes, 0).unwrap();
    assert_eq!(bytes, [0x5A; 64]);
}

#[test]
fn a_client_whose_memory_is_not_there_is_disconnected_alone() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    if free.is_ok_and(|free| free.trim() != "0") {
        eprintln!("only with an empty pool of 2 MiB pages can memory be mapped that is not there");
        return;
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let hole = memfd_create("hole", flags).unwrap();
    ftruncate(&hole, 2 << 20).unwrap();
    fcntl_add_seals(&hole, SealFlags::SHRINK).unwrap();
    let daemon = TestDaemon::start(1);
    let (mut client, mut other) = (daemon.client(), daemon.client());
    let (pd, _, qp) = looped(&mut client);
    let source = sealed_memfd(4096);
    let from = client.try_mr(pd, &source, 4096, 7).unwrap();
    let to = client.try_mr(pd, &hole, 2 << 20, 7).unwrap();
    post_write(&client, &qp, &from, &to);
    wait_for(|| daemon.status().clients == 1);
    assert!(client.receive().is_none());
    other.pd();
    drop((client, other));
    daemon.wait_for_baseline();
}

#[test]
fn memory_in_pages_too_large_to_replace_is_not_registered() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB;
    let Ok(huge) = memfd_create("huge", flags) else {
        eprintln!("this machine has no pages of 1 GiB");
        return;
    };
    ftruncate(&huge, 1 << 30).unwrap();
    fcntl_add_seals(&huge, SealFlags::SHRINK).unwrap();
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let pd = client.pd();
    let refused = client.try_mr(pd, &huge, 1 << 30, 7).unwrap_err();
    assert!(
        refused.text.contains("pages of 1073741824 bytes"),
        "{}",
        refused.text
    );
}
