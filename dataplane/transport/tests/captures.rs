//! Golden captures of the Linux kernel's rxe: our requester must send what rxe sent for the same work, and
//! our responder must answer what rxe answered.

use rnic_sim::{Node, Packet, default_attr};
use rnic_transport::{Access, Limits, QpAttr, RcQp, Received, SendFlags, SendWr, WrOpcode};
use rnic_wire::{Frame, Headers, Mtu, Operation, Psn, Transport};
use std::collections::BTreeMap;
use std::path::Path;

/// Packets of one capture in order, each with its sender's address.
fn load(name: &str) -> Vec<(String, Packet)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/captures")
        .join(name)
        .with_extension("pcap");
    let bytes = std::fs::read(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    assert_eq!(bytes[..4], 0xA1B2_C3D4u32.to_le_bytes(), "a little-endian pcap");
    let mut rest = &bytes[24..];
    let mut packets = Vec::new();
    while rest.len() >= 16 {
        let len = u32::from_le_bytes([rest[8], rest[9], rest[10], rest[11]]) as usize;
        if let Ok(frame) = Frame::parse(&rest[16..16 + len], None)
            && frame.bth().opcode.transport == Transport::Rc
        {
            let sender = frame.net().src().to_string();
            let mut headers = *frame.headers();
            // The engine pads; the kernel's older ACKs clear MigReq.
            (headers.bth.pad, headers.bth.mig_req) = (0, true);
            packets.push((sender, Packet::new(&headers, frame.payload().to_vec())));
        }
        rest = &rest[16 + len..];
    }
    packets
}

/// The packets of one direction of requests: requests of one sender, and the responses to them.
struct Flow {
    packets: Vec<Packet>,
    mtu: Mtu,
}

impl Flow {
    fn first_psn(&self) -> u32 {
        self.packets
            .iter()
            .find(|packet| packet.headers.bth.opcode.is_request())
            .map_or(0, Packet::psn)
    }
}

fn flows(name: &str) -> Vec<Flow> {
    let packets = load(name);
    let mut flows: BTreeMap<&str, Vec<Packet>> = BTreeMap::new();
    let senders: Vec<&String> = packets.iter().map(|(sender, _)| sender).collect();
    let other = |sender: &str| senders.iter().find(|s| **s != sender).map_or("", |s| s.as_str());
    for (sender, packet) in &packets {
        let request = packet.headers.bth.opcode.is_request();
        flows
            .entry(if request { sender.as_str() } else { other(sender) })
            .or_default()
            .push(packet.clone());
    }
    let longest = packets
        .iter()
        .map(|(_, packet)| packet.payload.len())
        .max()
        .unwrap_or(0);
    let mtu = if packets
        .iter()
        .any(|(_, packet)| packet.headers.bth.opcode.is_first())
    {
        Mtu::from_bytes(longest).expect("FIRST packets are full")
    } else {
        Mtu::M1024
    };
    let flow = |packets: Vec<Packet>| Flow { packets, mtu };
    flows
        .into_values()
        .filter(|flow| flow.iter().any(|p| p.headers.bth.opcode.is_request()))
        .map(flow)
        .collect()
}

/// A node in RTS whose both PSNs are `psn`, with memory for every RETH of the flow.
fn node(flow: &Flow) -> Node {
    let peer = |request| {
        flow.packets
            .iter()
            .find(|p| p.headers.bth.opcode.is_request() == request)
            .map(|p| p.headers.bth.dest_qpn)
    };
    let mut node = Node::new(RcQp::new(1).with_limits(Limits::new(1 << 20, 20)), 1 << 12);
    let psn = flow.first_psn();
    let attr = QpAttr {
        path_mtu: flow.mtu,
        sq_psn: psn,
        rq_psn: psn,
        dest_qpn: peer(false).unwrap_or(0),
        ..default_attr()
    };
    node.to_rtr(&attr).expect("legal");
    node.to_rts(&attr).expect("legal");
    let access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);
    let mut regions: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    for reth in flow.packets.iter().filter_map(|packet| packet.headers.reth) {
        let (low, high) = regions.entry(reth.rkey).or_insert((reth.va, 0));
        (*low, *high) = (
            (*low).min(reth.va),
            (*high).max(reth.va + u64::from(reth.dma_len)),
        );
    }
    for (rkey, (low, high)) in regions {
        node.host
            .register(rkey, low, vec![0; (high - low) as usize], access);
    }
    // The captured atomics work on one word; what stood there at first its first answer says.
    let atomic = flow.packets.iter().find_map(|packet| packet.headers.atomic);
    let found = flow.packets.iter().find_map(|packet| packet.headers.atomic_ack);
    if let (Some(eth), Some(found)) = (atomic, found) {
        let word = found.original.to_ne_bytes().to_vec();
        node.host.register(eth.rkey, eth.va, word, Access::REMOTE_ATOMIC);
    }
    node
}

/// What an answer says: operation, PSN, syndrome and MSN, an atomic's result, payload length.
fn said(packet: &Packet) -> String {
    let Headers { aeth, atomic_ack, .. } = packet.headers;
    let len = packet.payload.len();
    format!(
        "{} {}: {aeth:?} {atomic_ack:?}, {len} bytes",
        packet.name(),
        packet.psn()
    )
}

/// Feeds the captured requests to our responder, and compares its answers with the captured ones.
fn replay_to_responder(name: &str) -> usize {
    let mut compared = 0;
    for flow in flows(name) {
        let mut responder = node(&flow);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for packet in &flow.packets {
            if !packet.headers.bth.opcode.is_request() {
                theirs.push(said(packet));
                continue;
            }
            responder.host.post_recv(0, 1 << 16);
            let outcome = responder.receive(packet);
            assert!(
                matches!(outcome, Received::Accepted | Received::Duplicate),
                "{name}: {outcome:?} to {}",
                packet.name()
            );
            ours.extend(responder.transmit_all().iter().map(said));
        }
        // A capture may end before the last answers.
        assert!(
            ours.len() >= theirs.len(),
            "{name}: {} answers instead of {}",
            ours.len(),
            theirs.len()
        );
        for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!(ours, theirs, "{name}: answer {at}");
        }
        compared += theirs.len();
    }
    compared
}

/// The work request whose packets begin with `packets[0]`, and how many packets it has; `None` when the
/// capture ends inside it.
fn work(packets: &[&Packet]) -> Option<(SendWr, Vec<u8>, usize)> {
    let first = packets[0];
    let count = packets
        .iter()
        .position(|packet| packet.headers.bth.opcode.ends_message())?
        + 1;
    let last = &packets[count - 1].headers;
    let payload: Vec<u8> = packets[..count]
        .iter()
        .flat_map(|packet| packet.payload.clone())
        .collect();
    let reth = first.headers.reth;
    let opcode = match (first.headers.bth.opcode.operation, reth, last.imm) {
        (Operation::ReadRequest, ..) => WrOpcode::Read,
        (Operation::CompareSwap, ..) => WrOpcode::CompSwap,
        (Operation::FetchAdd, ..) => WrOpcode::FetchAdd,
        (_, Some(_), None) => WrOpcode::Write,
        (_, Some(_), Some(_)) => WrOpcode::WriteImm,
        (_, None, Some(_)) => WrOpcode::SendImm,
        (_, None, None) => WrOpcode::Send,
    };
    let (remote_addr, rkey, length) = match (reth, first.headers.atomic) {
        (Some(reth), _) => (reth.va, reth.rkey, reth.dma_len),
        (_, Some(eth)) => (eth.va, eth.rkey, 8),
        _ => (0, 0, payload.len() as u32),
    };
    let (compare_add, swap) = match (opcode, first.headers.atomic) {
        (WrOpcode::CompSwap, Some(eth)) => (eth.compare, eth.swap_or_add),
        (_, Some(eth)) => (eth.swap_or_add, 0),
        (_, None) => (0, 0),
    };
    let wr = SendWr {
        opcode,
        flags: if last.bth.solicited {
            SendFlags::SOLICITED
        } else {
            SendFlags::NONE
        },
        imm_or_rkey: last.imm.unwrap_or(0),
        remote_addr,
        rkey,
        compare_add,
        swap,
        length,
        ..SendWr::default()
    };
    let buffer = if awaits_response(opcode) {
        vec![0; wr.length as usize]
    } else {
        payload
    };
    Some((wr, buffer, count))
}

fn awaits_response(opcode: WrOpcode) -> bool {
    matches!(opcode, WrOpcode::Read | WrOpcode::CompSwap | WrOpcode::FetchAdd)
}

/// Gives our requester the work that rxe had, and compares header by header what it sends.
fn replay_to_requester(name: &str) -> usize {
    let mut compared = 0;
    for flow in flows(name) {
        let mut requester = node(&flow);
        // Where rxe's timer was too quick a request is captured twice.
        let mut next = Psn::new(flow.first_psn());
        let mut requests: Vec<&Packet> = Vec::new();
        for packet in flow.packets.iter().filter(|p| p.headers.bth.opcode.is_request()) {
            if !packet.headers.bth.psn.is_before(next) {
                next = packet.headers.bth.psn.next();
                requests.push(packet);
            }
        }
        let dest_qpn = requests[0].headers.bth.dest_qpn;
        let mut rest = requests.as_slice();
        while let Some((wr, buffer, count)) = rest.first().and_then(|_| work(rest)) {
            let data = requester.host.add_send_buf(buffer);
            requester.post(SendWr { data, ..wr }).expect("room");
            for theirs in &rest[..count] {
                let mut ours = requester
                    .transmit()
                    .unwrap_or_else(|| panic!("{name}: nothing sent for {}", theirs.name()));
                ours.headers.bth.dest_qpn = dest_qpn;
                assert_eq!(ours, **theirs, "{name}");
                compared += 1;
            }
            // READs and atomics are bounded by max_rd_atomic: let the answers in.
            for answer in flow.packets.iter().filter(|p| !p.headers.bth.opcode.is_request()) {
                if awaits_response(wr.opcode) {
                    requester.receive(answer);
                }
            }
            rest = &rest[count..];
        }
    }
    compared
}

const CAPTURES: [&str; 11] = [
    "rc_send_bw",
    "rc_send_pingpong",
    "rc_write_bw",
    "rc_write_lat",
    "rc_read_bw",
    "rc_read_lat",
    "rc_atomic_cas",
    "rc_atomic_fadd",
    "mtu4096_rc_write",
    "v6_rc_send_pingpong",
    "cm_rstream_writeimm",
];

#[test]
fn our_responder_answers_what_rxe_answered() {
    for name in CAPTURES {
        let compared = replay_to_responder(name);
        println!("{name}: {compared} answers");
        assert!(compared > 3, "{name}: only {compared} answers");
    }
}

#[test]
fn our_requester_sends_what_rxe_sent() {
    for name in CAPTURES {
        let compared = replay_to_requester(name);
        println!("{name}: {compared} requests");
        assert!(compared > 3, "{name}: only {compared} requests");
    }
}
