//! Helpers of the named tests.
#![allow(dead_code)] // each test binary uses its part

use rnic_sim::{Node, Packet};
use rnic_transport::{Access, Queue, RcQp, WcStatus};
use rnic_wire::{
    Aeth, AtomicAckEth, AtomicEth, Bth, Headers, NakCode, Opcode, Operation, Psn, Reth, Syndrome, Transport,
};

/// Key and address of the memory that [`register`] gives a node.
pub const KEY: u32 = 0x77;
pub const BASE: u64 = 0x10_0000;

/// Registers `len` bytes, counting up, that the peer may read, write and execute atomics on.
pub fn register(node: &mut Node, len: usize) {
    let bytes = (0..len).map(|at| at as u8).collect();
    let access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);
    node.host
        .register(KEY, BASE, bytes, access.union(Access::REMOTE_ATOMIC));
}

/// A QP in words, but for what is of no meaning: the last receive WQE when none is in use, and whose turn is next, which may
/// differ where one had something to say and another has said it.
pub fn record(qp: &RcQp) -> String {
    let mut text = format!("{qp:?}").replace("turn_request: true", "turn_request: false");
    if qp.receiving().is_none()
        && let Some(start) = text.find("wqe: RecvWqe {")
        && let Some(len) = text[start..].find('}')
    {
        text.replace_range(start..start + len, "");
    }
    text
}

/// Delivers everything that both sides send until both are silent.
pub fn pump(a: &mut Node, b: &mut Node) {
    for _ in 0..10_000 {
        let (from_a, from_b) = (a.transmit_all(), b.transmit_all());
        if from_a.is_empty() && from_b.is_empty() {
            return;
        }
        b.receive_all(&from_a);
        a.receive_all(&from_b);
    }
    panic!("the nodes never fall silent");
}

/// Operation and PSN of each packet.
pub fn trace(packets: &[Packet]) -> Vec<(&'static str, u32)> {
    packets
        .iter()
        .map(|packet| (packet.name(), packet.psn()))
        .collect()
}

/// The only packet there is to send.
pub fn only(node: &mut Node) -> Packet {
    let mut packets = node.transmit_all();
    assert_eq!(packets.len(), 1, "{:?}", trace(&packets));
    packets.remove(0)
}

/// The syndrome and PSN of the only packet there is to send.
pub fn answer(node: &mut Node) -> (Syndrome, u32) {
    let packet = only(node);
    let (psn, syndrome, _) = packet.aeth().expect("an acknowledgement");
    (syndrome, psn)
}

/// A request to the second node of `connect`, whose expected PSN is 100.
pub fn request(operation: Operation, psn: u32, payload: &[u8]) -> Packet {
    with_headers(operation, psn, payload, |_| ())
}

/// The same with a RETH for the memory of [`register`].
pub fn rdma(operation: Operation, psn: u32, dma_len: u32, payload: &[u8]) -> Packet {
    with_headers(operation, psn, payload, |headers| {
        headers.reth = Some(Reth {
            va: BASE,
            rkey: KEY,
            dma_len,
        })
    })
}

/// FETCH_ADD of 1 at an address of the memory of [`register`].
pub fn fetch_add(psn: u32, va: u64) -> Packet {
    with_headers(Operation::FetchAdd, psn, b"", |headers| {
        headers.atomic = Some(AtomicEth {
            va,
            rkey: KEY,
            swap_or_add: 1,
            compare: 0,
        })
    })
}

/// The same with headers filled in by `fill`.
pub fn with_headers(operation: Operation, psn: u32, payload: &[u8], fill: impl Fn(&mut Headers)) -> Packet {
    let mut bth = Bth::new(Opcode::new(Transport::Rc, operation), 0x22, Psn::new(psn));
    bth.ack_req = true;
    let mut headers = Headers::new(bth);
    fill(&mut headers);
    Packet::new(&headers, payload.to_vec())
}

/// An acknowledgement to the first node of `connect`, whose first PSN is 100.
pub fn ack(psn: u32, syndrome: Syndrome) -> Packet {
    let bth = Bth::new(
        Opcode::new(Transport::Rc, Operation::Acknowledge),
        0x11,
        Psn::new(psn),
    );
    let mut headers = Headers::new(bth);
    headers.aeth = Some(Aeth { syndrome, msn: 0 });
    Packet::new(&headers, Vec::new())
}

/// An atomic ACK to the first node of `connect`.
pub fn atomic_ack(psn: u32, syndrome: Syndrome, original: u64) -> Packet {
    let mut packet = ack(psn, syndrome);
    packet.headers.bth.opcode = Opcode::new(Transport::Rc, Operation::AtomicAcknowledge);
    packet.headers.atomic_ack = Some(AtomicAckEth { original });
    Packet::new(&packet.headers, Vec::new())
}

/// A READ response to the first node of `connect`.
pub fn response(operation: Operation, psn: u32, payload: &[u8]) -> Packet {
    let mut headers = Headers::new(Bth::new(
        Opcode::new(Transport::Rc, operation),
        0x11,
        Psn::new(psn),
    ));
    if operation != Operation::ReadResponseMiddle {
        headers.aeth = Some(Aeth {
            syndrome: Syndrome::ACK,
            msn: 0,
        });
    }
    Packet::new(&headers, payload.to_vec())
}

pub const SEQUENCE_NAK: Syndrome = Syndrome::Nak(NakCode::PsnSequenceError);
pub const INVALID: Syndrome = Syndrome::Nak(NakCode::InvalidRequest);
pub const ACCESS: Syndrome = Syndrome::Nak(NakCode::RemoteAccessError);
pub const OPERATIONAL: Syndrome = Syndrome::Nak(NakCode::RemoteOperationalError);

pub fn sends(node: &Node) -> Vec<(u64, WcStatus)> {
    node.host.statuses(Queue::Send)
}

pub fn recvs(node: &Node) -> Vec<(u64, WcStatus)> {
    node.host.statuses(Queue::Recv)
}

/// Every request completed exactly once and in order; nothing succeeded after the first error.
pub fn every_request_completed_once(node: &Node, posted: u64, received: u64) {
    for (queue, count) in [(Queue::Send, posted), (Queue::Recv, received)] {
        let statuses = node.host.statuses(queue);
        assert!(
            statuses.iter().map(|(wr_id, _)| *wr_id).eq(0..count),
            "{queue:?}: {statuses:?}"
        );
        let failed = statuses
            .iter()
            .position(|(_, status)| *status != WcStatus::Success)
            .unwrap_or(statuses.len());
        assert!(
            statuses[failed..]
                .iter()
                .all(|(_, status)| *status != WcStatus::Success),
            "{statuses:?}"
        );
        let reasons = statuses[failed..]
            .iter()
            .filter(|(_, status)| *status != WcStatus::WrFlushErr);
        assert!(reasons.count() <= 1, "{statuses:?}");
    }
}
