//! The removal of a port waits for the flush completions of its QPs.
use rnic_abi::*;

use crate::{
    registry::DeviceState,
    testing::{Client, HeldControl},
};

/// Receives of each QP: far more than a core flushes in as many passes as the rest of a removal takes.
const RECEIVES: u32 = 1024;
const QPS: usize = 2;

const LIMITS: &str = "limits: {clients: 8, per_client: {queue_memory: 8MiB, cq_depth: 4096, wr_depth: 1024}}";

/// A client of `rnic1` with QPs full of receives, in RTS and in INIT, and the CQ they complete to.
fn full(client: &mut Client) -> CreateCqReply {
    let pd = client.try_pd_on(1).unwrap();
    let cq = client.try_cq_on(1, 4096, 0).unwrap();
    for i in 0..QPS {
        let arg = CreateQp {
            pd,
            send_cq: cq.handle,
            recv_cq: cq.handle,
            qp_type: 2,
            sq_units: 16,
            rq_units: RECEIVES,
            ..CreateQp::default()
        };
        let qp: CreateQpReply = client.call(Op::CreateQp, &arg).unwrap();
        client.make_init(qp.handle);
        if i > 0 {
            client.make_rtr(qp.handle, "10.0.0.1", qp.qpn).unwrap();
            client.make_rts(qp.handle);
        }
        let (region, ring) = (&client.context().region, qp.rq_offset as usize);
        for id in 0..RECEIVES {
            let wqe = Wqe {
                wr_id: id.into(),
                units: 1,
                ..Wqe::default()
            };
            region.write(ring + RING_ENTRIES + id as usize * WQE_UNIT, &wqe);
        }
        let tail = region.u32(ring + RingIndices::TAIL).unwrap();
        tail.store(RECEIVES, std::sync::atomic::Ordering::Release);
    }
    cq
}

/// Completions there are, of the one core.
fn completions(client: &Client, cq: &CreateCqReply) -> u32 {
    let ring = cq.offset as usize + cq_subring_offset(cq.depth, 0);
    let tail = client.context().region.u32(ring + RingIndices::TAIL).unwrap();
    tail.load(std::sync::atomic::Ordering::Acquire)
}

#[test]
fn a_removal_returns_when_every_qp_has_its_flush_completions_however_slow_the_core() {
    let (mut daemon, gate) = HeldControl::gated(LIMITS);
    let (client, cq) = daemon.serve(|socket| {
        let mut client = Client::connect(socket);
        client.hello();
        let cq = full(&mut client);
        (client, cq)
    });
    assert_eq!(completions(&client, &cq), 0);
    // From here on the core goes on only while the removal waits for it.
    gate.close();
    daemon.control.remove_port(None, "rnic1").unwrap();
    daemon.run_until(|control| {
        if control.devices[1].entry.state() == DeviceState::Gone {
            return true;
        }
        if control.ops.unanswered() > 0 || control.ops.await_grace() {
            gate.step();
        }
        false
    });
    assert_eq!(completions(&client, &cq), QPS as u32 * RECEIVES);
    drop(gate);
    drop(client);
    daemon.end();
}
