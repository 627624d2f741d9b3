//! Golden captures of the Linux kernel's rxe on UC and UD: our requester must send what rxe sent for the same work, and
//! our responder must take all of it and say nothing.

#[path = "../../wire/tests/common/pcap.rs"]
#[allow(dead_code)]
mod pcap;

use rnic_sim::{Node, Packet, connect_as};
use rnic_transport::{Access, QpType, Received, SendFlags, SendWr, WcStatus, WrOpcode};
use rnic_wire::{Frame, Mtu};
use std::collections::BTreeMap;
use std::path::Path;

/// The packets of one QP of a capture, by the number they are sent to.
fn flows(name: &str, qp_type: QpType) -> Vec<Vec<Packet>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/captures")
        .join(name)
        .with_extension("pcap");
    let mut flows: BTreeMap<(String, u32), Vec<Packet>> = BTreeMap::new();
    for bytes in pcap::read(&path) {
        let Ok(frame) = Frame::parse(&bytes, None) else {
            continue;
        };
        let mut headers = *frame.headers();
        if headers.bth.opcode.transport != qp_type.transport() || headers.bth.dest_qpn <= 1 {
            continue;
        }
        // The engine pads; the kernel clears MigReq.
        (headers.bth.pad, headers.bth.mig_req) = (0, true);
        let packet = Packet::new(&headers, frame.payload().to_vec());
        let source = headers.deth.map_or(0, |deth| deth.src_qpn);
        flows
            .entry((frame.net().src().to_string(), source))
            .or_default()
            .push(packet);
    }
    flows.into_values().collect()
}

/// A pair whose sender has the numbers of the flow, with memory for what it names.
fn pair(qp_type: QpType, packets: &[Packet]) -> (Node, Node) {
    let first = &packets[0].headers;
    let longest = packets.iter().map(|p| p.payload.len()).max().unwrap_or(0);
    let split = packets.iter().any(|p| p.headers.bth.opcode.is_first());
    let mtu = if split {
        Mtu::from_bytes(longest).unwrap()
    } else {
        Mtu::M4096
    };
    let (dest, psn, deth) = (first.bth.dest_qpn, first.bth.psn.get(), first.deth);
    let (mut from, mut to) = connect_as(qp_type, mtu, [psn, 0], |attr| {
        attr.dest_qpn = dest;
        attr.qkey = deth.map_or(0, |deth| deth.qkey);
    });
    let mut ranges: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    for reth in packets.iter().filter_map(|packet| packet.headers.reth) {
        let (low, high) = ranges.entry(reth.rkey).or_insert((reth.va, 0));
        (*low, *high) = (
            (*low).min(reth.va),
            (*high).max(reth.va + u64::from(reth.dma_len)),
        );
    }
    for (rkey, (low, high)) in ranges {
        to.host
            .register(rkey, low, vec![0; (high - low) as usize], Access::REMOTE_WRITE);
    }
    from.sq.resize(1 << 12, SendWr::default());
    (from, to)
}

/// Gives our requester the work behind `packets`, one message at a time, and compares header by header.
fn replay(name: &str, qp_type: QpType) -> usize {
    let mut compared = 0;
    for packets in flows(name, qp_type) {
        let (mut from, mut to) = pair(qp_type, &packets);
        // A capture may end inside a message.
        for message in packets.split_inclusive(|p| p.headers.bth.opcode.ends_message()) {
            let (first, last) = (&message[0].headers, &message[message.len() - 1].headers);
            if !last.bth.opcode.ends_message() {
                break;
            }
            let payload: Vec<u8> = message.iter().flat_map(|p| p.payload.clone()).collect();
            let mut wr = SendWr {
                opcode: match (first.reth.is_some(), last.imm.is_some()) {
                    (true, false) => WrOpcode::Write,
                    (true, true) => WrOpcode::WriteImm,
                    (false, true) => WrOpcode::SendImm,
                    (false, false) => WrOpcode::Send,
                },
                flags: if last.bth.solicited {
                    SendFlags::SOLICITED
                } else {
                    SendFlags::NONE
                },
                imm_or_rkey: last.imm.unwrap_or(0),
                remote_addr: first.reth.map_or(0, |reth| reth.va),
                rkey: first.reth.map_or(0, |reth| reth.rkey),
                length: payload.len() as u32,
                data: from.host.add_send_buf(payload),
                ..SendWr::default()
            };
            if let Some(deth) = first.deth {
                wr = wr.to(0, first.bth.dest_qpn, deth.qkey);
            }
            from.post(wr).expect("room");
            to.host.post_recv(0, 1 << 16);
            for theirs in message {
                let mut ours = from.transmit().unwrap_or_else(|| panic!("{name}: nothing sent"));
                if let (Some(ours), Some(theirs)) = (&mut ours.headers.deth, theirs.headers.deth) {
                    ours.src_qpn = theirs.src_qpn;
                }
                assert_eq!(ours.headers, theirs.headers, "{name}");
                assert!(ours.payload == theirs.payload, "{name}: other payload");
                assert_eq!(to.receive(theirs), Received::Accepted, "{name}");
                assert!(to.transmit().is_none(), "{name}: answered");
                compared += 1;
            }
        }
        assert!(to.host.completions.iter().all(|c| c.status == WcStatus::Success));
    }
    compared
}

#[test]
fn uc_sends_and_takes_what_rxe_sent() {
    for name in ["uc_send", "uc_write_bw"] {
        let compared = replay(name, QpType::Uc);
        println!("{name}: {compared} packets");
        assert!(compared > 3, "{name}: only {compared} packets");
    }
}

#[test]
fn ud_sends_and_takes_what_rxe_sent() {
    for name in ["ud_pingpong", "ud_send_lat", "mckey_mcast"] {
        let compared = replay(name, QpType::Ud);
        println!("{name}: {compared} packets");
        assert!(compared > 3, "{name}: only {compared} packets");
    }
}
